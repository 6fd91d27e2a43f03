"""What runs in the children of the fork server: an operation with a fault, and what is seen after."""

from __future__ import annotations

import contextlib
import functools
import gc
import resource
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ooc
from ooc import events
from ooc.errors import OocError
from ooc.testing.faults import Kill, Recorder, Short, Step, injected
from ooc.testing.lost_writes import VARIANTS, Disk, Image, Variant
from tests.faults.operations import known


def prepare(name: str, place: Path) -> None:
    """Make what the operation begins with, in ``place``."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    known(name).before(place)


def record(name: str, place: Path) -> tuple[list[Step], dict[str, str]]:
    """Run the operation; its steps, and what it leaves."""
    recorder = Recorder()
    with injected(recorder):
        known(name).run(place, events.ignore)
    known(name).look(place, done=True)
    return recorder.steps, known(name).files(place)


def killed(name: str, place: Path, at: int, tell: Callable[[Any], None]) -> None:
    """Run the operation until step ``at``, where it is killed; tells the step, and rows filled before."""

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.stage == "fill":
            tell(("filled", event.done))

    with injected(Kill(at, lambda step: tell(("step", step)))):
        known(name).run(place, observe)


def recovered(name: str, place: Path, again: bool) -> tuple[int | None, dict[str, str]]:
    """Look at what was published, run the operation again; rows it found filled, and what it leaves.

    Not ``again`` where it had come to its end: what it leaves then goes with the next change.
    """
    operation = known(name)
    operation.look(place, done=False)
    found: list[int] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.StageStarted) and event.stage == "fill":
            found.append(event.done)

    if again:
        operation.run(place, observe)
    else:
        ooc.delete(place / "i.ooc", np.empty(0, np.int64))
    # What it answers now need not be seen, where its files are those of a run that nothing happened to.
    return (found[0] if found else None), operation.files(place)


def looked(name: str, place: Path) -> None:
    """Look at what the operation left when it had come to its end."""
    known(name).look(place, done=True)


def crashed(name: str, place: Path, every: int, seed: int) -> list[tuple[Image, int]]:
    """Run the operation on a disk that may lose power; what crashes leave, and rows filled before each.

    Equal images come once. Of what is there by chance there is an image at each ``every``-th step.
    """
    images: list[tuple[Image, int]] = []
    seen: set[str] = set()
    filled = [0]

    def take(at: int, make: Callable[[Variant], Image]) -> None:
        for variant in VARIANTS:
            if variant == "some" and at % every:
                continue
            image = make(variant)
            if image.digest not in seen:
                seen.add(image.digest)
                images.append((image, filled[0]))

    def observe(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.stage == "fill":
            filled[0] = event.done

    disk = Disk(place, take, seed)
    with injected(disk):
        known(name).run(place, observe)
    disk.finish()
    return images


def refused(name: str, place: Path, watcher: Any) -> tuple[int, list[str], OocError | None, list[str]]:
    """Run the operation while steps are refused; how many were counted, which refused, its error, open files.

    What is not an error of ours is raised.
    """
    before = _open_files()
    error = None
    with injected(watcher):
        try:
            known(name).run(place, events.ignore)
        except OocError as caught:
            error = caught
    if error is not None:
        error.with_traceback(None)
        error.__cause__ = error.__context__ = None
    gc.collect()
    return watcher.count, watcher.refused, error, sorted(_open_files() - before)


def _open_files() -> set[str]:
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{fd.name} {fd.readlink()}")
    kept = ("/proc/", "anon_inode", "pipe:", "socket:")  # once in a process, by the system or a library
    return {one for one in found if not any(kind in one for kind in kept)}


def few_files(name: str, place: Path, more: int) -> OocError | None:
    """Run the operation where no more than so many files can be opened besides those that are."""
    open_now = max(int(fd.name) for fd in Path("/proc/self/fd").iterdir())
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 1 + more, hard))
    try:
        known(name).run(place, events.ignore)
    except OocError as error:
        error.with_traceback(None)
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return None


class NoMemory:
    """The ``at``-th large array that is asked for is refused."""

    def __init__(self, at: int, least_bytes: int = 4096) -> None:
        self._at, self._least, self.count = at, least_bytes, 0
        self.refused: list[str] = []
        self._lock = threading.Lock()
        self._calls = {name: getattr(np, name) for name in ("empty", "zeros", "full", "concatenate", "stack")}

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        return call(*args)

    def __enter__(self) -> NoMemory:
        for name, call in self._calls.items():
            setattr(np, name, functools.wraps(call)(functools.partial(self._asked, name, call)))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self._calls.items():
            setattr(np, name, call)

    def _asked(self, name: str, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        made = call(*args, **more)
        if made.nbytes >= self._least and _ours(sys._getframe(1)):
            with self._lock:
                count, self.count = self.count, self.count + 1
            if count == self._at:
                self.refused.append(name)
                raise MemoryError(f"Unable to allocate {made.nbytes} bytes")
        return made


def _ours(frame: Any) -> bool:
    return "/ooc/" in frame.f_code.co_filename


def without_memory(name: str, place: Path, at: int) -> tuple[int, list[str], OocError | None, list[str]]:
    """As ``refused``: one large array is."""
    with NoMemory(at) as watcher:
        return refused(name, place, watcher)


def shortened(name: str, place: Path) -> int:
    """Run the operation with reads and writes that do half; how many did."""
    short = Short()
    with injected(short):
        known(name).run(place, events.ignore)
    return short.count


def little_memory(name: str, place: Path, more_bytes: int) -> OocError | None:
    """Run the operation where the process may have so much more memory, mapped or its own, than it has."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, hard))
    try:
        known(name).run(place, events.ignore)
    except OocError as error:
        error.with_traceback(None)
        error.__cause__ = error.__context__ = None
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return None
