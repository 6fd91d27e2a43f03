"""Showing an operation while it works: a live block on a terminal, log lines anywhere else.

    with display(sys.stderr, title="build my.ooc") as observer:
        pipeline.build(..., observer=observer)

Drawing goes on in a thread of its own, so that times and memory stay true while the work is in one
long call.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TextIO

from ooc import events
from ooc.cli.drawing import clock, draw, ended_line, log_line, started_line
from ooc.cli.tracker import MemoryMeter, Tracker
from ooc.errors import Stopped

__all__ = ["Display", "display", "observer_for"]

_FRAME_SECONDS = 0.25
_LOG_SECONDS = 10.0


class Display(Protocol):
    """An observer that shows what it is told."""

    def __call__(self, event: events.Event) -> None: ...

    def stopping(self, message: str) -> None:
        """Show that the operation was asked to stop."""


@contextlib.contextmanager
def display(stream: TextIO, *, title: str | None = None) -> Iterator[Display]:
    """An observer that shows progress on ``stream`` until the block ends.

    On a terminal one live block, which stays in its last state; elsewhere lines with the time of day,
    at starts and ends of stages and every ten seconds.
    """
    live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
    with _live(stream, title) if live else _log(stream, title) as shown:
        yield shown


@contextlib.contextmanager
def observer_for(progress: bool | None) -> Iterator[events.Observer]:
    """The observer for a Python caller's ``progress=``.

    True shows progress on stderr, None does so where stderr is a terminal, False never.
    """
    if progress or (progress is None and sys.stderr.isatty()):
        with display(sys.stderr) as shown:
            yield shown
    else:
        yield events.ignore


@contextlib.contextmanager
def _live(stream: TextIO, title: str | None) -> Iterator[Display]:
    from ooc.cli.screen import Screen

    screen, tracker, memory = Screen(stream), Tracker(title=title), MemoryMeter()

    def paint() -> None:
        memory.sample()
        snapshot = tracker.snapshot(memory)
        if snapshot.stages or snapshot.notes:
            screen.paint(draw(snapshot, screen.size()[0], unicode=screen.unicode))

    with screen.shown():
        try:
            with _every(_FRAME_SECONDS, paint):
                yield _Live(tracker)
        except BaseException as error:
            tracker.end("stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed")
            raise
        else:
            tracker.end("finished")
        finally:
            paint()


class _Live:
    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def __call__(self, event: events.Event) -> None:
        self._tracker(event)

    def stopping(self, message: str) -> None:
        self._tracker(events.Note(message=message, kind="stopping", level="warning"))


@contextlib.contextmanager
def _log(stream: TextIO, title: str | None) -> Iterator[Display]:
    log = Log(stream, title=title)
    with _every(0.1, log.tick):
        yield log


class Log:
    """Progress as lines with the time of day.

    Parameters
    ----------
    every_seconds : float
        Between two lines about the same stage.
    """

    def __init__(
        self, stream: TextIO, *, title: str | None = None, every_seconds: float = _LOG_SECONDS
    ) -> None:
        self._stream = stream
        self._every = every_seconds
        self._tracker = Tracker(title=title)
        self._memory = MemoryMeter()
        self._lock = threading.Lock()
        self._next = 0.0

    def __call__(self, event: events.Event) -> None:
        self._tracker(event)
        if isinstance(event, events.Progress):
            return
        snapshot = self._tracker.snapshot(self._memory)
        if isinstance(event, events.StageStarted):
            self._next = time.monotonic() + self._every
            self._say(*(started_line(s) for s in snapshot.stages if s.name == event.stage))
        elif isinstance(event, events.StageFinished):
            self._say(*(ended_line(s) for s in snapshot.stages if s.name == event.stage))
        elif isinstance(event, events.Note):
            self._say(f"{'warning: ' if event.level == 'warning' else ''}{event.message}")
        elif isinstance(event, events.Started):
            self._say(f"{snapshot.title} started")

    def tick(self) -> None:
        """Look at the memory, and say how far the running stage is when it is time to."""
        self._memory.sample()
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        snapshot = self._tracker.snapshot(self._memory)
        if snapshot.running is not None:
            self._say(log_line(snapshot))

    def stopping(self, message: str) -> None:
        """Say that the operation was asked to stop."""
        self._say(message)

    def _say(self, *lines: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write("".join(f"{clock()} {line.rstrip()}\n" for line in lines))
            self._stream.flush()


@contextlib.contextmanager
def _every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """Call ``do`` again and again in a thread while the block runs."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(seconds):
            do()

    thread = threading.Thread(target=work, name="ooc-display", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
