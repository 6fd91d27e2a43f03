"""What a long operation says while it works: a stream of typed events.

An observer is any callable that takes an event. The terminal display, JSON lines and the caller's
own function are three observers of the same stream; the operations know none of them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = [
    "Event",
    "Finished",
    "Note",
    "Observer",
    "Progress",
    "StageFinished",
    "StageStarted",
    "Started",
    "as_record",
    "broadcast",
    "ignore",
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
    """A stage begins; ``total`` is counted in ``unit`` (``"rows"`` or ``"bytes"``).

    ``done`` is above 0 where an earlier run did part of it. ``row_bytes`` turns rows into bytes.
    """

    stage: str
    total: int
    unit: Literal["rows", "bytes"] = "rows"
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
