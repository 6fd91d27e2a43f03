"""The calls by which files change and are read, each a step that a test can see, refuse or end a process at.

``durable`` and the writers of stores make every change through here. In normal use a step is the call
itself: one global is looked at, which is None. ``ooc.testing.faults`` puts a watcher there, which is told
of each step by its operation and its file and makes the call in its stead.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

__all__ = [
    "CHANGES",
    "Watcher",
    "allocate",
    "make_directory",
    "open_file",
    "read_at",
    "read_bytes",
    "remove",
    "remove_directory",
    "rename",
    "step",
    "sync",
    "sync_directory",
    "truncate",
    "watch",
    "write",
]

T = TypeVar("T")

#: The operations that change what is on disk, or make it durable; ``open`` and ``read`` do not.
CHANGES = frozenset(
    {
        "create",
        "allocate",
        "truncate",
        "write",
        "sync",
        "rename",
        "remove",
        "make-directory",
        "remove-directory",
        "sync-directory",
    }
)


class Watcher(Protocol):
    """Stands in for the calls of all steps."""

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Make the call, or not; what it returns is what the step returns."""


_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> Watcher | None:
    """Put a watcher in place of all steps, or none; the one before."""
    global _watcher
    before, _watcher = _watcher, watcher
    return before


def step(operation: str, path: Path, call: Callable[..., T], *args: Any) -> T:
    """One step: ``call(*args)``, which does ``operation`` to ``path``."""
    if _watcher is None:
        return call(*args)
    result: T = _watcher(operation, path, call, args)
    return result


def open_file(path: Path, flags: int) -> int:
    """A descriptor of a file, which children do not inherit."""
    operation = "create" if flags & os.O_CREAT else "open"
    return step(operation, path, os.open, path, flags | getattr(os, "O_CLOEXEC", 0), 0o644)


def allocate(fd: int, path: Path, size: int) -> None:
    """Give a file at least a size and, where the file system can, the space for it."""
    if hasattr(os, "posix_fallocate"):
        try:
            step("allocate", path, os.posix_fallocate, fd, 0, size)
        except OSError as error:
            # A file system that cannot preallocate: the space is then taken as it is written.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    if os.fstat(fd).st_size < size:
        truncate(fd, path, size)


def truncate(fd: int, path: Path, size: int) -> None:
    """Give a file its size."""
    step("truncate", path, os.ftruncate, fd, size)


def write(fd: int, path: Path, data: memoryview, at: int | None = None) -> None:
    """Write all of ``data``: where the file is, or from byte ``at`` on."""
    while len(data):
        if at is None:
            wrote = step("write", path, os.write, fd, data)
        else:
            wrote = step("write", path, os.pwrite, fd, data, at)
            at += wrote
        data = data[wrote:]


def sync(fd: int, path: Path, *, data_only: bool = False) -> None:
    """Wait until the disk has what was written."""
    step("sync", path, getattr(os, "fdatasync", os.fsync) if data_only else os.fsync, fd)


def rename(source: Path, target: Path) -> None:
    """Give a file or a directory another name, in place of what has it."""
    step("rename", target, os.replace, source, target)


def remove(path: Path) -> None:
    """Remove the name of a file."""
    step("remove", path, os.unlink, path)


def make_directory(path: Path) -> None:
    """Make a directory; one that is there is fine."""
    step("make-directory", path, lambda: path.mkdir(exist_ok=True))


def remove_directory(path: Path) -> None:
    """Remove an empty directory."""
    step("remove-directory", path, os.rmdir, path)


def sync_directory(path: Path) -> None:
    """Wait until the disk has the names in a directory. A platform that cannot is left as it is."""
    try:
        fd = open_file(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no directories; and where one may not look, one may not sync
        return
    try:
        step("sync-directory", path, os.fsync, fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES):
            raise
    finally:
        os.close(fd)


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """All of a file; where it is longer, ``most`` bytes and one more.

    Raises
    ------
    OSError
        It is no file, among others: a pipe or a device has no end.
    """
    return step("read", path, _read, path, most)


def _read(path: Path, most: int | None) -> bytes:
    with open(path, "rb", opener=_regular) as file:
        return file.read() if most is None else file.read(most + 1)


def _regular(path: str, flags: int) -> int:
    # Who opens a pipe waits for its other end.
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no file", path)
    return fd


def read_at(fd: int, path: Path, size: int, at: int) -> bytes:
    """``size`` bytes from byte ``at`` on; fewer only where the file ends."""
    parts = []
    while size > 0:
        part = step("read", path, os.pread, fd, size, at)
        if not part:
            break
        parts.append(part)
        at, size = at + len(part), size - len(part)
    return b"".join(parts)
