"""Filling by several processes on this machine: `ooc fill`, so many times.

The processes share nothing but the directory: each takes the shards that no other one holds. This
one starts them, adds up what they say, and stops them all when one fails or the caller asks for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ooc import errors
from ooc.build.fill import report
from ooc.build.plan import Options, Plan, plan_store
from ooc.build.shards import Numbered, Shard, shards_done
from ooc.build.sizes import BLOCK_ROWS
from ooc.errors import ArgumentError, OocError, PlanError, ResourceError, Stopped
from ooc.events import Observer, stage
from ooc.index.layout import BuildLayout, Layout
from ooc.stores import Store
from ooc.types import StoreLike
from ooc.units import MIB, format_bytes

__all__ = ["PARENT_VARIABLE", "Team", "fill_in_processes", "team"]

#: Names the process that a filling process works for: without it there is nothing to work for.
PARENT_VARIABLE = "OOC_WORKER_OF"

#: What this process itself takes while the others fill: the interpreter and its libraries.
_OWN_BYTES = 96 * MIB

#: Shards for each process, so that one that is slower does less.
_SHARDS_EACH = 4

_LOOK_SECONDS = 0.2
_LAST_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """So many processes and what each of them gets. ``store`` is as the command line names it."""

    store: str
    count: int
    memory_bytes: int
    threads: int
    shard_rows: int

    def describe(self) -> str:
        """In words."""
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        return f"{self.count} workers, each with {format_bytes(self.memory_bytes)} and {threads}"


def team(named: StoreLike, store: Store, options: Options, plan: Plan, count: int) -> Team:
    """Divide budget and threads among ``count`` processes.

    Parameters
    ----------
    named : str or path
        The store as the caller named it.

    Raises
    ------
    ArgumentError
        ``count`` is below 1, or the store is not one that another process could open by its name.
    PlanError
        A share of the memory is too small.
    """
    if count < 1:
        raise ArgumentError(f"workers must be at least 1, not {count}", kind="workers")
    if not isinstance(named, str | os.PathLike):
        raise ArgumentError(
            "workers are processes of their own: they need a store that is named, not one in memory",
            kind="workers",
            hint="Write the rows to a file, and give its path.",
        )
    share = max(plan.memory_bytes - _OWN_BYTES, MIB) // count
    threads = max(1, plan.threads // count)
    # The code was chosen.
    options = dataclasses.replace(options, memory=share, threads=threads, factory=plan.factory)
    try:
        each = plan_store(store, options, n=plan.n, trained=True)
    except PlanError as error:
        if error.kind != "memory-too-small":
            raise
        raise PlanError(
            f"{count} workers get {format_bytes(share)} each of {format_bytes(plan.memory_bytes)} "
            f"({format_bytes(_OWN_BYTES)} are for the process that starts them): {error.message}",
            kind="memory-too-small",
            hint=f"{error.hint} That is for each: give more memory in all, or fewer workers.",
        ) from error
    rows = each.shard_rows
    if options.shard_rows is None:
        even = -(-plan.n // (_SHARDS_EACH * count) // BLOCK_ROWS) * BLOCK_ROWS
        rows = min(rows, max(even, 16 * BLOCK_ROWS))
    return Team(store=os.fspath(named), count=count, memory_bytes=share, threads=threads, shard_rows=rows)


def fill_in_processes(
    workers: Team,
    layout: Layout,
    plan: Plan,
    build: BuildLayout,
    *,
    grid_rows: int,
    row_bytes: int,
    observer: Observer,
    stop: threading.Event | None,
) -> list[Shard]:
    """Fill every shard that is not there yet, by several processes; all shards.

    Raises
    ------
    Stopped
        ``stop`` was set; all processes ended at a safe point.
    OocError
        What the first process that failed said; the others are stopped before.
    ResourceError
        A process was killed.
    """
    numbered = Numbered(build, plan.n, grid_rows)
    before = numbered.rows_done(range(numbered.count))
    count = min(workers.count, len(numbered.missing()))
    with stage(observer, "fill", plan.n, done=before, row_bytes=row_bytes) as at:
        with _running(workers, count, layout) as crew:
            most = before
            for worker, event in crew.events():
                worker.take(event)
                most = max(most, min(before + sum(one.rows for one in crew.workers), plan.n))
                at.tell(most)
                if (stop is not None and stop.is_set()) or any(one.failed for one in crew.workers):
                    crew.ask_to_stop()
            crew.raise_first()
        Stopped.raise_if(stop)
        numbered.look()
        if numbered.missing():
            raise Stopped("the workers were stopped; what they filled is kept")
        done = shards_done(build)
        at.figures.update(report(done, at, whole=True), workers=count)
        at.figures["workers_peak_bytes"] = sum(one.peak_bytes for one in crew.workers)
    return done


@dataclass(slots=True, eq=False)
class _Worker:
    """A filling process, and what it said."""

    process: subprocess.Popen[str]
    rows: int = 0
    peak_bytes: int = 0
    error: dict[str, Any] | None = None
    lines: list[str] = field(default_factory=list)
    _began: int = 0

    def take(self, event: dict[str, Any]) -> None:
        name = event.get("event")
        if name == "stage_started":
            self._began = event["done"]
        elif name == "progress":
            self.rows = event["done"] - self._began
        elif name == "finished":
            self.peak_bytes = event["figures"].get("peak_private_bytes", 0)
        elif name == "error":
            self.error = event
        elif name is None and "line" in event:
            self.lines = [*self.lines, event["line"]][-_LAST_LINES:]

    @property
    def failed(self) -> bool:
        code = self.process.poll()
        # A process that is asked to stop before it listens is ended by the signal.
        return code is not None and code not in (0, Stopped.exit_code, -signal.SIGINT)

    def problem(self) -> OocError:
        """Why it failed, as an error."""
        code = self.process.returncode
        if self.error is not None:
            named = (getattr(errors, name) for name in errors.__all__)
            classes = [one for one in named if issubclass(one, OocError)]
            cls = next((one for one in classes if one.exit_code == code), OocError)
            made: OocError = cls(self.error["message"], kind=self.error["kind"], hint=self.error["hint"])
            return made
        if code < 0:
            return ResourceError(
                f"a worker (process {self.process.pid}) was ended by {signal.Signals(-code).name}",
                kind="worker-killed",
                hint="Run the same command again: it goes on from what is filled. Where the machine ran out "
                "of memory, give fewer workers or a smaller budget.",
            )
        said = " ".join(self.lines) or "it said nothing"
        return ResourceError(
            f"a worker (process {self.process.pid}) ended with status {code}: {said}", kind="worker-failed"
        )


class _Crew:
    """Running processes and the threads that read what they say."""

    def __init__(self, processes: list[subprocess.Popen[str]]) -> None:
        self.workers = [_Worker(process) for process in processes]
        self._events: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()
        self._asked = False
        self._failed: list[_Worker] = []
        self._threads = [
            threading.Thread(target=self._read, args=(one,), daemon=True) for one in self.workers
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, worker: _Worker) -> None:
        for line in worker.process.stderr or ():
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            self._events.put((worker, event if isinstance(event, dict) else {"line": line.strip()}))
        worker.process.wait()
        self._events.put((worker, None))

    def events(self) -> Iterator[tuple[_Worker, dict[str, Any]]]:
        """What the processes say, until all have ended; and something every so often in any case."""
        left = len(self.workers)
        while left:
            try:
                worker, event = self._events.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                worker, event = self.workers[0], {}
            if event is None:
                left -= 1
            yield worker, event or {}

    def ask_to_stop(self) -> None:
        """Ask each once to end at a safe point: a second time would end it at once."""
        if not self._asked:
            self._asked = True
            self._failed = [worker for worker in self.workers if worker.failed]
            for worker in self.workers:
                worker.process.send_signal(signal.SIGINT)

    def raise_first(self) -> None:
        """Raise the error of a process that failed before any was asked to stop.

        How the others end says nothing: the signal may come in the middle of their imports.
        """
        for worker in self._failed:
            raise worker.problem()

    def end(self) -> None:
        """See all processes end."""
        self.ask_to_stop()
        try:
            for worker in self.workers:
                worker.process.wait()
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.wait()
            for thread in self._threads:
                thread.join()
            for worker in self.workers:
                if worker.process.stderr is not None:
                    worker.process.stderr.close()


@contextlib.contextmanager
def _running(workers: Team, count: int, layout: Layout) -> Iterator[_Crew]:
    command = [
        *(sys.executable, "-m", "ooc", "fill", workers.store, str(layout.root), "--log-json"),
        *("--memory", str(workers.memory_bytes), "--threads", str(workers.threads)),
    ]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(count):
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                process_group=0,  # Ctrl-C at the terminal comes to this process alone, which hands it on
            )
            processes.append(process)
    except BaseException:
        for process in processes:
            process.kill()
        raise
    crew = _Crew(processes)
    try:
        yield crew
    finally:
        crew.end()
