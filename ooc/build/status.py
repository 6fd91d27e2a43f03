"""How a running build tells other processes how far it is: a small file that is replaced as it goes.

The file is for people who look; nothing else depends on it. So it is replaced atomically but not
flushed to the disk, and a write that fails is passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ooc import disk, events
from ooc.durable import partial_name
from ooc.mapping import private_bytes

__all__ = ["STATUS_NAME", "StageStatus", "State", "Status", "StatusWriter", "read_status"]

#: The file's name in a build's directory.
STATUS_NAME = "status.json"

_EVERY_SECONDS = 1.0

#: ``interrupted``: its process is gone without having said how it ended.
State = Literal["running", "finished", "stopped", "failed", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """A stage of the operation.

    Attributes
    ----------
    name : str
    share : float
        Part of the whole time that was expected of it.
    state : {"waiting", "running", "done"}
    done, done_before, total : int
        In ``unit``; ``done_before`` is what an earlier run had done.
    row_bytes : int
        Bytes of a row, where the unit is rows and it is known.
    seconds : float
        What it took, or has taken up to ``updated``.
    """

    name: str
    share: float = 0.0
    state: Literal["waiting", "running", "done"] = "waiting"
    done: int = 0
    done_before: int = 0
    total: int = 0
    unit: Literal["rows", "bytes"] = "rows"
    row_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far an operation is, as its own process last said.

    Attributes
    ----------
    operation : str
        ``"build"``, ``"compact"`` or ``"compact --retrain"``.
    state : str
        ``"running"``, ``"finished"``, ``"stopped"``, ``"failed"`` or ``"interrupted"``.
    pid : int
        Of the process, on ``host``.
    started, updated : float
        Seconds since the epoch.
    stages : tuple of StageStatus
        In order.
    private_bytes, peak_bytes, memory_bytes : int
        Private memory at ``updated``, at most so far, and the budget (0: none).
    message : str
        How it ended, where it failed.
    """

    operation: str
    state: State
    pid: int
    host: str
    started: float
    updated: float
    stages: tuple[StageStatus, ...]
    private_bytes: int
    peak_bytes: int
    memory_bytes: int
    message: str = ""

    def to_record(self) -> dict[str, Any]:
        """JSON-ready mapping."""
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name != "stages"},
            "stages": [
                {name: getattr(stage, name) for name in StageStatus.__slots__} for stage in self.stages
            ],
        }


class StatusWriter:
    """An observer that keeps a status file, written at most once a second and at every change of stage.

    A build whose process dies leaves the file as it was last; readers then see that the process is
    gone.

    Parameters
    ----------
    path : Path
        The file, in a directory that is there. When the directory goes, nothing more is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written = 0.0
        self._peak_bytes = 0
        self._running: tuple[str, float] | None = None  # the stage at work and when it began
        self._stages: dict[str, dict[str, Any]] = {}
        self._record: dict[str, Any] = {
            "operation": "",
            "state": "running",
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "host": socket.gethostname(),
            "started": time.time(),
            "memory_bytes": 0,
            "message": "",
        }

    def __call__(self, event: events.Event) -> None:
        with self._lock:
            self._take(event)
            if not isinstance(event, events.Progress) or time.monotonic() - self._written >= _EVERY_SECONDS:
                self._write()

    def _take(self, event: events.Event) -> None:
        if isinstance(event, events.Started):
            self._record.update(
                operation=event.operation, started=event.time, memory_bytes=event.memory_bytes
            )
            self._stages = {name: {"share": share} for name, share in event.stages.items()}
        elif isinstance(event, events.StageStarted):
            self._running = (event.stage, time.monotonic())
            self._stages.setdefault(event.stage, {}).update(
                state="running",
                done=event.done,
                done_before=event.done,
                total=event.total,
                unit=event.unit,
                row_bytes=event.row_bytes,
            )
        elif isinstance(event, events.Progress):
            self._stages.setdefault(event.stage, {})["done"] = event.done
        elif isinstance(event, events.StageFinished):
            self._running = None
            stage = self._stages.setdefault(event.stage, {})
            stage.update(state="done", seconds=event.seconds, done=stage.get("total", 0))
        elif isinstance(event, events.Finished):
            self._record["state"] = "finished"

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._running is not None:
            name, began = self._running
            self._stages[name]["seconds"] = self._written - began
        now_bytes = private_bytes()
        self._peak_bytes = max(self._peak_bytes, now_bytes)
        record = {
            **self._record,
            "updated": time.time(),
            "private_bytes": now_bytes,
            "peak_bytes": self._peak_bytes,
            "stages": [{"name": name, **stage} for name, stage in self._stages.items()],
        }
        partial = partial_name(self._path)
        with contextlib.suppress(OSError):
            disk.step("write", partial, partial.write_text, json.dumps(record))
            disk.rename(partial, self._path)

    def stopped(self, state: Literal["stopped", "failed"], message: str = "") -> None:
        """Record that the operation ended without its result; ``message`` says why."""
        with self._lock:
            self._record.update(state=state, message=message)
            self._write()


def read_status(index: Path) -> Status | None:
    """The status of the build or compaction that runs, or was interrupted, in an index directory.

    Where several processes fill shards, each has a file of its own. Of several one that runs, the
    one that started them before those, else the one that was updated last; None where there is none:
    a build that was published leaves nothing behind.
    """
    found = [
        (status.state == "running", status.state == "running" and path.name == STATUS_NAME, status)
        for path in index.glob("build/*/status*.json")
        if (status := _read(path)) is not None
    ]
    # What is trained anew is built as an index of its own, within this one.
    found += [
        (status.state == "running", path.name == STATUS_NAME, replace(status, operation="compact --retrain"))
        for path in index.glob("retrain/*/index/build/*/status*.json")
        if (status := _read(path)) is not None
    ]
    return max(found, key=lambda one: (*one[:2], one[2].updated), default=(False, False, None))[2]


def _read(path: Path) -> Status | None:
    try:
        record = json.loads(path.read_bytes())
        return _status(record)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # going away at this moment, or not ours


def _status(record: Mapping[str, Any]) -> Status:
    state = record["state"]
    if state not in get_args(State):
        raise ValueError(state)
    here = record["host"] == socket.gethostname()
    if state == "running" and here and not _alive(record["pid"], record.get("process_started")):
        state = "interrupted"
    fields = set(StageStatus.__slots__)
    return Status(
        operation=str(record["operation"]),
        state=state,
        pid=int(record["pid"]),
        host=str(record["host"]),
        started=float(record["started"]),
        updated=float(record["updated"]),
        stages=tuple(
            StageStatus(**{key: value for key, value in stage.items() if key in fields})
            for stage in record["stages"]
        ),
        private_bytes=int(record["private_bytes"]),
        peak_bytes=int(record["peak_bytes"]),
        memory_bytes=int(record["memory_bytes"]),
        message=str(record.get("message", "")),
    )


def _alive(pid: int, started: int | None) -> bool:
    """Whether the process is there, and is the same one: numbers are given out again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _process_started(pid)
    return now is None or started is None or now == started


def _process_started(pid: int) -> int | None:
    """When a process began, in ticks since the machine's start; None where ``/proc`` is missing."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in brackets, may hold blanks; the 22nd field is the 20th after it.
    after = text.rpartition(")")[2].split()
    # A process that is over and not yet waited for is as good as gone.
    return -1 if after[0] == "Z" else int(after[19])
