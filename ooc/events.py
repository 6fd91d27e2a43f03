"""What a long operation says while it works: a stream of typed events.

An observer is any callable that takes an event. The terminal display, JSON lines and the caller's
own function are three observers of the same stream; the operations know none of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = [
    "Event",
    "Finished",
    "Note",
    "Observer",
    "Progress",
    "Stage",
    "StageFinished",
    "StageStarted",
    "Started",
    "as_record",
    "broadcast",
    "ignore",
    "stage",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    #: Seconds since the epoch.
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(_Timed):
    """An operation begins.

    ``stages`` are the stages to come, in order, each with the share of the whole time (summing to
    1) that the plan expects of it. ``memory_bytes`` is the budget, 0 where there is none.
    """

    operation: str
    stages: Mapping[str, float]
    memory_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted(_Timed):
    """A stage begins; ``total`` is counted in ``unit`` (``"rows"``, ``"queries"`` or ``"bytes"``).

    ``done`` is above 0 where an earlier run did part of it. ``row_bytes`` turns rows into bytes.
    """

    stage: str
    total: int
    unit: Literal["rows", "queries", "bytes"] = "rows"
    done: int = 0
    row_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(_Timed):
    """``done`` of the stage's total has been done (a running sum, never a difference)."""

    stage: str
    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished(_Timed):
    """A stage is over. ``figures`` are results worth showing (JSON-ready)."""

    stage: str
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note(_Timed):
    """Something the user should know; ``kind`` is a stable word for programs."""

    message: str
    kind: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(_Timed):
    """The operation is over and its result is durable."""

    operation: str
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)


Event: TypeAlias = Started | StageStarted | Progress | StageFinished | Note | Finished
Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer of those who do not watch."""


class Stage:
    """A stage at work: tells the observer how far it is, and collects its figures.

    Made by ``stage``; ``figures`` go into the ``StageFinished`` event.
    """

    def __init__(self, observer: Observer, name: str) -> None:
        self._observer = observer
        self._name = name
        self.figures: dict[str, Any] = {}

    def tell(self, done: int) -> None:
        """``done`` of the total is done, in all."""
        self._observer(Progress(stage=self._name, done=done))

    def note(self, message: str, *, kind: str, warning: bool = False) -> None:
        """Something the user should know."""
        self._observer(Note(message=message, kind=kind, level="warning" if warning else "info"))


@contextlib.contextmanager
def stage(
    observer: Observer,
    name: str,
    total: int,
    *,
    unit: Literal["rows", "queries", "bytes"] = "rows",
    done: int = 0,
    row_bytes: int = 0,
) -> Iterator[Stage]:
    """Tell of a stage's beginning and, when the block ends well, of its end."""
    began = time.monotonic()
    observer(StageStarted(stage=name, total=total, unit=unit, done=done, row_bytes=row_bytes))
    at_work = Stage(observer, name)
    yield at_work
    observer(StageFinished(stage=name, seconds=time.monotonic() - began, figures=at_work.figures))


def broadcast(observers: Iterable[Observer | None]) -> Observer:
    """One observer that hands each event to several, in order; ``None`` among them is left out."""
    listening = [observer for observer in observers if observer is not None]

    def tell(event: Event) -> None:
        for observer in listening:
            observer(event)

    return tell


def as_record(event: Event) -> dict[str, Any]:
    """The event as a JSON-ready mapping with its name under ``"event"``."""
    name = type(event).__name__
    snake = "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
    return {"event": snake, **dataclasses.asdict(event)}
