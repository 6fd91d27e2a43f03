"""Signals during one long call of faiss: training of a code, a graph of centroids.

Between their iterations such calls ask Python whether a signal came, and end where its handler raises. faiss
asks only for what the main thread computes.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ooc.errors import Stopped

__all__ = ["interruptible"]

#: A handler may leave it to another thread to set the event.
_SET_WITHIN_SECONDS = 0.2


@contextlib.contextmanager
def interruptible(stop: threading.Event | None) -> Iterator[None]:
    """A block in which a signal whose handler sets ``stop`` ends what faiss computes: raises ``Stopped``.

    In the main thread only, and only for SIGINT and SIGTERM where somebody handles these in Python. What the
    block was making is not to be used afterwards. The handlers are as before when it ends.
    """
    if stop is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handled = {number: handler for number, handler in before.items() if callable(handler)}

    def handle(number: int, frame: FrameType | None) -> None:
        handled[signal.Signals(number)](number, frame)
        if stop.wait(_SET_WITHIN_SECONDS):
            raise Stopped("stopped at a safe point")

    try:
        for number in handled:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)
