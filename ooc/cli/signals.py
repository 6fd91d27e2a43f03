"""Ctrl-C: the first asks the work to stop at a safe point, the second ends the process at once.

Before the work listens, while modules are loaded, and where a verb does too little to have safe points,
it is Python's own exception (``interruptions``).

Python runs its signal handlers between two steps of the main thread, which a long call into faiss
delays by minutes. So the signal's number is taken from a pipe by a thread of its own
(``signal.set_wakeup_fd``), and both presses are answered at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["STOPPING", "interruptions", "say", "stop_on_signals"]

STOPPING = "stopping at a safe point, press again to stop at once"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = b"\x1b[?25h\n"


@contextlib.contextmanager
def interruptions(*, to_the_end: bool) -> Iterator[list[int]]:
    """SIGINT raises ``KeyboardInterrupt`` in this block, and is kept in the list that it gives.

    ``to_the_end`` of the process: after the block there is nothing left to stop, and SIGINT ends it without
    a traceback of what Python tidies. Otherwise it is as before.

    The exception alone does not say it: numpy makes an ``ImportError`` of one that comes while it is loaded,
    and Python 3.11 a ``RuntimeError`` of one in ``__set_name__``. Outside of the main thread the list stays
    empty. Where somebody else handles SIGINT, or it is ignored, that stays as it is.
    """
    seen: list[int] = []
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield seen
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if to_the_end else signal.default_int_handler)


@contextlib.contextmanager
def stop_on_signals(announce: Callable[[str], None]) -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one exits with status 130.

    ``announce`` is called with a line for the user, in a thread of its own. The handlers that were there
    before are put back when the block ends. In a thread that is not the main one no handler can be
    set, and the event stays as it is.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        while data := os.read(reading, 16):
            for number in data:
                if number not in _SIGNALS:
                    continue
                if stop.is_set():
                    _leave()
                stop.set()
                # Not here: it may wait for a stream that nobody reads, and the second press must not.
                threading.Thread(target=announce, args=(STOPPING,), daemon=True).start()

    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="ooc-signals", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        thread.join()
        os.close(reading)


def say(message: str) -> None:
    """Announce on stderr: where no display is there to do it."""
    print(message, file=sys.stderr, flush=True)


def _leave() -> None:
    """Exit now: what is durable stays, and the terminal gets its cursor back."""
    with contextlib.suppress(OSError):
        if sys.stderr.isatty():
            os.write(2, _SHOW_CURSOR)
    os._exit(130)
