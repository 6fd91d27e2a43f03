"""What a progress display shows, computed from events: rates, times left, memory. Draws nothing.

``Tracker`` is an observer that can be asked for a ``Snapshot`` at any moment, from any thread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ooc import events

__all__ = ["MemoryMeter", "NoteLine", "Snapshot", "StageView", "Tracker", "time_left"]

#: A rate is that of the last so many seconds: short enough to follow, long enough to be calm.
_WINDOW_SECONDS = 20.0
_SAMPLE_SECONDS = 0.25

#: Nothing is foretold before this much time has passed.
LEAST_SECONDS = 1.0

State = Literal["waiting", "running", "done", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """A stage as it is to be shown.

    ``share`` is the part of the whole time that was expected of it; ``done_before`` what an earlier
    run did; ``seconds`` what it took, or takes so far; ``rate`` is in units a second; ``rate`` and
    ``left_seconds`` are None while unknown.
    """

    name: str
    share: float = 0.0
    state: State = "waiting"
    done: int = 0
    done_before: int = 0
    total: int = 0
    unit: str = "rows"
    row_bytes: int = 0
    seconds: float = 0.0
    rate: float | None = None
    left_seconds: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fraction(self) -> float:
        """Part done, 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(self.done / self.total, 1.0) if self.total else 0.0

    @property
    def part_here(self) -> float:
        """Part that this run has done, 0 to 1."""
        if self.state == "done" and not self.done_before:
            return 1.0
        return (self.done - self.done_before) / self.total if self.total else 0.0

    @property
    def bytes_rate(self) -> float | None:
        """Bytes a second, None where it is not known."""
        if self.rate is None:
            return None
        if self.unit == "bytes":
            return self.rate
        return self.rate * self.row_bytes if self.row_bytes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteLine:
    """A note under the stages."""

    message: str
    level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a display needs, at one moment. ``left_seconds`` is None while unknown."""

    title: str
    state: Literal["running", "finished", "stopped", "failed", "interrupted"]
    stages: tuple[StageView, ...]
    seconds: float
    left_seconds: float | None = None
    private_bytes: int = 0
    peak_bytes: int = 0
    memory_bytes: int = 0
    notes: tuple[NoteLine, ...] = ()

    @property
    def running(self) -> StageView | None:
        """The stage at work."""
        return next((stage for stage in self.stages if stage.state == "running"), None)


class MemoryMeter:
    """Private memory now and at most, read when asked and never more than ten times a second."""

    def __init__(self) -> None:
        from ooc.mapping import private_bytes  # brings numpy, which `ooc -h` does without

        self._read = private_bytes
        self._at = -1.0
        self.now_bytes = 0
        self.peak_bytes = 0

    def sample(self) -> None:
        """Look once."""
        now = time.monotonic()
        if now - self._at >= 0.1:
            self._at = now
            self.now_bytes = self._read()
            self.peak_bytes = max(self.peak_bytes, self.now_bytes)


@dataclass(slots=True)
class _Stage:
    name: str
    share: float
    state: State = "waiting"
    total: int = 0
    unit: str = "rows"
    row_bytes: int = 0
    done: int = 0
    #: What an earlier run had done already.
    done_before: int = 0
    began: float = 0.0
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    samples: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, now: float, done: int) -> None:
        self.done = done
        if self.samples and now - self.samples[-1][0] < _SAMPLE_SECONDS:
            return
        self.samples.append((now, done))
        while len(self.samples) > 2 and now - self.samples[1][0] > _WINDOW_SECONDS:
            self.samples.popleft()

    def rate(self, now: float) -> float | None:
        """Units a second over the window up to now; None before anything was measured."""
        if not self.samples:
            return None
        then, done = self.samples[0]
        return (self.done - done) / (now - then) if now > then and self.done > done else None


def time_left(stages: Sequence[StageView], seconds: float) -> float | None:
    """Seconds that an operation has yet to go; None while nothing can be said.

    The running stage's own time left, and for each stage to come its share, scaled by how the
    stages so far compare with theirs.

    Parameters
    ----------
    stages : sequence of StageView
        All stages.
    seconds : float
        How long the operation runs already.
    """
    begun = [stage for stage in stages if stage.state != "waiting"]
    measured = sum(stage.seconds for stage in begun if stage.share)
    covered = sum(stage.share * stage.part_here for stage in begun)
    if seconds < LEAST_SECONDS or covered < 0.005:
        return None
    left = 0.0
    for stage in stages:
        if stage.state == "running" and stage.left_seconds is not None:
            left += stage.left_seconds
        elif stage.state in ("running", "waiting"):
            left += stage.share * (1 - stage.fraction) * measured / covered
    return left


class Tracker:
    """An observer that knows how far an operation is.

    Parameters
    ----------
    title : str, optional
        Instead of the operation's name.
    clock : callable
        Seconds, never going back.
    """

    def __init__(self, *, title: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.RLock()
        self._clock = clock
        self._title = title
        self._began = clock()
        self._ended: float | None = None
        self._state: Literal["running", "finished", "stopped", "failed"] = "running"
        self._stages: dict[str, _Stage] = {}
        self._memory_bytes = 0
        self._notes: list[NoteLine] = []

    def __call__(self, event: events.Event) -> None:
        now = self._clock()
        with self._lock:
            if isinstance(event, events.Started):
                self._title = self._title or event.operation
                self._memory_bytes = event.memory_bytes
                self._stages = {name: _Stage(name, share) for name, share in event.stages.items()}
                self._began = now
            elif isinstance(event, events.StageStarted):
                stage = self._stages.setdefault(event.stage, _Stage(event.stage, 0.0))
                self._pass_over(event.stage)
                stage.state, stage.began = "running", now
                stage.total, stage.unit, stage.row_bytes = event.total, event.unit, event.row_bytes
                stage.done_before = event.done
                stage.samples.clear()
                stage.note(now, event.done)
            elif isinstance(event, events.Progress):
                if (known := self._stages.get(event.stage)) is not None:
                    known.note(now, event.done)
            elif isinstance(event, events.StageFinished):
                stage = self._stages.setdefault(event.stage, _Stage(event.stage, 0.0))
                stage.state, stage.seconds, stage.figures = "done", event.seconds, event.figures
                stage.done = max(stage.done, stage.total)
            elif isinstance(event, events.Note):
                self._notes.append(NoteLine(message=event.message, level=event.level))
            else:
                self._ended, self._state = now, "finished"

    def _pass_over(self, name: str) -> None:
        """Stages before this one that never began were done by an earlier run."""
        for stage in self._stages.values():
            if stage.name == name:
                break
            if stage.state == "waiting":
                stage.state, stage.share = "done", 0.0

    def end(self, state: Literal["finished", "stopped", "failed"]) -> None:
        """The operation is over; nothing changes where its Finished event came before."""
        with self._lock:
            if self._state == "running":
                self._ended, self._state = self._clock(), state

    def snapshot(self, memory: MemoryMeter | None = None) -> Snapshot:
        """How things stand now."""
        with self._lock:
            now = self._clock() if self._ended is None else self._ended
            stages = tuple(self._view(stage, now) for stage in self._stages.values())
            return Snapshot(
                title=self._title or "",
                state=self._state,
                stages=stages,
                seconds=now - self._began,
                left_seconds=time_left(stages, now - self._began) if self._state == "running" else None,
                private_bytes=memory.now_bytes if memory else 0,
                peak_bytes=memory.peak_bytes if memory else 0,
                memory_bytes=self._memory_bytes,
                notes=tuple(self._notes),
            )

    def _view(self, stage: _Stage, now: float) -> StageView:
        state, rate, left = stage.state, None, None
        if state == "running":
            stage.seconds = now - stage.began
            rate = stage.rate(now)
            if rate and stage.seconds >= LEAST_SECONDS:
                left = max(stage.total - stage.done, 0) / rate
            if self._state in ("stopped", "failed"):
                state, left = "stopped", None
        elif stage.seconds > 0 and stage.done > stage.done_before:
            rate = (stage.done - stage.done_before) / stage.seconds
        return StageView(
            name=stage.name,
            share=stage.share,
            state=state,
            done=stage.done,
            done_before=stage.done_before,
            total=stage.total,
            unit=stage.unit,
            row_bytes=stage.row_bytes,
            seconds=stage.seconds,
            rate=rate,
            left_seconds=left,
            figures=stage.figures,
        )
