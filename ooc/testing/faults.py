"""Faults on purpose: a run that is killed at a step, whose writes are refused, or whose reads fail.

Every step by which ``ooc`` changes a file goes through ``ooc.disk`` and has a name of its operation and its
file, as in ``rename:segment/segment.json``; numbers, digests and names that a user gave are left out of it.
A watcher put in place by ``injected`` is told of each, and makes the call, refuses it, or ends the process.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ooc import disk

__all__ = ["Kill", "Recorder", "Refuse", "Short", "Step", "caller", "injected", "point"]

#: Directories whose names say what is in them.
_PLACES = frozenset({"generations", "segments", "segment", "shards", "template", "leases", "build"})

#: Files by whose names alone it is known what they are.
_KNOWN = frozenset({"ooc.json", "CURRENT", "lock", "plan.json", "status.json", "calibration.json"}) | {
    "witnesses.npz",
    "sketch.faiss",
    "sample.npy",
}

#: Held while a watcher counts: not its own, so that a watcher can be sent to another process.
_COUNTING = threading.Lock()


def point(operation: str, path: Path) -> str:
    """The stable name of a step."""
    return f"{operation}:{_file(path)}"


def _file(path: Path) -> str:
    name = path.name
    if name.startswith(".") and name.endswith(".partial"):
        name = name[1 : -len(".partial")]
    name = _anonymous(name)
    place = _anonymous(path.parent.name)
    if place in _PLACES or place in ("D", "sN", "compact-N"):
        return f"{place}/{name}"
    if name in _KNOWN or name in _PLACES:
        return name
    return f"*{path.suffix if name == path.name else Path(name).suffix}"


def _anonymous(name: str) -> str:
    if re.fullmatch(r"[0-9a-f]{16,}", name):
        return "D"
    return re.sub(r"\d+", "N", name) if re.fullmatch(r"(s|compact-|status-.*-)?\d+(\..*)?", name) else name


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was made: its name, and the function that made it."""

    name: str
    caller: str


def caller() -> str:
    """Which function of the package made the step that is being watched, as ``durable.rename``."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        file = Path(frame.f_code.co_filename)
        if file.name not in ("disk.py", "faults.py", "lost_writes.py") and "ooc" in file.parts:
            package = len(file.parts) - 1 - file.parts[::-1].index("ooc")
            module = ".".join(file.with_suffix("").parts[package + 1 :])
            return f"{module}.{frame.f_code.co_qualname}"
    return "?"


class Recorder:
    """Notes every step that changes what is on disk."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if operation in disk.CHANGES:
            with _COUNTING:
                self.steps.append(Step(point(operation, path), caller()))
        return call(*args)


class Kill:
    """Kills the process before its step number ``at``; of a write, half is written before.

    Parameters
    ----------
    at : int
        From 0, among the steps that change what is on disk.
    told : callable
        Is told the step's name and its caller first.
    """

    def __init__(self, at: int, told: Callable[[Step], None] = lambda step: None) -> None:
        self._at, self._told, self._count = at, told, 0

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if operation in disk.CHANGES:
            with _COUNTING:
                count, self._count = self._count, self._count + 1
                if count == self._at:
                    self._told(Step(point(operation, path), caller()))
                    if operation == "write" and len(args) > 1:
                        _half(call, args)
                    os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)


def _half(call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The first half of a write or read of more than one byte."""
    fd, what, *rest = args
    if isinstance(what, int):
        return call(fd, max(what // 2, 1), *rest)
    return call(fd, memoryview(what)[: max(len(what) // 2, 1)], *rest)


class Refuse:
    """Steps fail with an error of the system, or with none left of memory.

    Parameters
    ----------
    error : int or type
        ``errno``, or an exception to raise.
    operations : collection of str
        Which steps are counted.
    at : int
        The first that is refused, from 0.
    times : int, optional
        How many are; by default all that follow.

    Attributes
    ----------
    count : int
        Steps counted so far.
    refused : list of str
        Names of those that were.
    """

    def __init__(
        self,
        error: int | type[BaseException],
        operations: Collection[str],
        at: int = 0,
        times: int | None = None,
    ) -> None:
        self._error, self._operations, self._at, self._times = error, operations, at, times
        self.count = 0
        self.refused: list[str] = []

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if operation in self._operations:
            with _COUNTING:
                count, self.count = self.count, self.count + 1
            if count >= self._at and (self._times is None or count < self._at + self._times):
                self.refused.append(point(operation, path))
                if isinstance(self._error, int):
                    raise OSError(self._error, os.strerror(self._error), str(path))
                raise self._error
        return call(*args)


class Short:
    """Writes and reads do half of what they are asked, as the system may."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if operation in ("write", "read") and len(args) > 1 and isinstance(args[0], int):
            self.count += 1
            return _half(call, args)
        return call(*args)


@contextlib.contextmanager
def injected(watcher: disk.Watcher) -> Iterator[None]:
    """Every step of the block goes by the watcher."""
    before = disk.watch(watcher)
    try:
        yield
    finally:
        disk.watch(before)
