"""One call that works on an index: who is told of it, what memory it took, and how it ended."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ooc import engine
from ooc.build.forecast import STAGES, shares
from ooc.build.plan import Plan
from ooc.build.status import StatusWriter
from ooc.build.watch import MemoryWatch
from ooc.durable import make_directory
from ooc.errors import ResourceError, Stopped
from ooc.events import Event, Finished, Observer, StageFinished, StageStarted, Started, broadcast
from ooc.index.layout import Layout
from ooc.mapping import release_free_memory

__all__ = ["Work"]


class Work:
    """What the stages of a call share.

    Parameters
    ----------
    operation : str
        One of ``ooc.build.forecast.STAGES``.
    layout : Layout
    observer : callable, optional
        Is told events.
    stop : threading.Event, optional
        When set, the stages end at a safe point.
    """

    def __init__(
        self, operation: str, layout: Layout, observer: Observer | None, stop: threading.Event | None
    ) -> None:
        self._operation = operation
        self.layout = layout
        self._outside = observer
        self._emit = broadcast([self._watch, observer])
        self._stop = stop
        self._stages: dict[str, dict[str, Any]] = {}
        self._memory = MemoryWatch()
        self._began = time.monotonic()

    def _watch(self, event: Event) -> None:
        """What the run itself learns from the events."""
        if isinstance(event, StageStarted):
            self._memory.begins(event.stage)
        elif isinstance(event, StageFinished):
            peak = self._memory.look(others=event.figures.get("workers_peak_bytes", 0))
            figures = {**event.figures, "peak_private_bytes": peak}
            self._stages[event.stage] = {"seconds": event.seconds, **figures}
            release_free_memory()  # the next stage's budget is its own

    @contextlib.contextmanager
    def at_work(self, plan: Plan, status_file: Path) -> Iterator[None]:
        """Tell of the beginning, and keep the status file, which says how it ended if not well."""
        make_directory(status_file.parent)
        self._memory.shares = plan.memory_by_stage
        status = StatusWriter(status_file)
        self._emit = broadcast([self._watch, status, self._outside])
        self._emit(
            Started(
                operation=self._operation,
                stages=shares(plan, self._operation),
                memory_bytes=plan.memory_bytes,
                settings=plan.to_record(),
            )
        )
        if "plan" in STAGES[self._operation]:
            self._emit(StageFinished(stage="plan", seconds=time.monotonic() - self._began))
        try:
            with ResourceError.if_refused(f"working on {self.layout.root} ({self._operation})"), self._memory:
                yield
        except Stopped as error:
            status.stopped("stopped")
            error.hint = "Everything finished so far is kept; the same command goes on from there."
            raise
        except BaseException as error:
            status.stopped("failed", str(error))
            raise

    def finish(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Tell of the end."""
        figures = {**figures, "seconds": time.monotonic() - self._began}
        figures["peak_private_bytes"] = self._memory.peak
        self._emit(Finished(operation=self._operation, seconds=figures["seconds"], figures=figures))
        return figures

    def report(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Times and figures, of a plan's record: unlike records, they differ from run to run."""
        return {
            "plan": plan,
            "seconds": time.monotonic() - self._began,
            "stages": self._stages,
            "finished": time.time(),
            "peak_private_bytes": self._memory.peak,
            "versions": {
                "faiss": engine.version(),
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
        }
