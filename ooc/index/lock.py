"""Who may write what: one process publishes, and each shard is one process's at a time.

The locks are the kernel's (``flock``), so they go with the process that holds them, however that
ends; what the files say is only for the messages to others. Several hosts that share a directory
exclude each other where its file system carries ``flock`` between them, as NFS does since Linux 2.6.12
and most cluster file systems do when they are mounted so.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ooc import disk
from ooc.durable import translated
from ooc.errors import ConflictError, IndexDirError, ResourceError

__all__ = ["Hold", "holder", "is_held", "lease", "publisher"]


@contextlib.contextmanager
def publisher(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    Raises
    ------
    ConflictError
        When another process holds it: names the host, the process and since when.
    """
    with lease(path) as ours:
        if not ours:
            raise ConflictError(
                f"{path.parent} is being written by {holder(path)}",
                kind="locked",
                hint="Wait until it ends (`ooc status` shows how far it is), or stop it and run this again.",
            )
        yield


@contextlib.contextmanager
def lease(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to hold the lock file ``path`` while the block runs; whether it is held.

    Parameters
    ----------
    path : Path
        Made where it is missing, and left there.
    wait : bool
        Wait until whoever holds it lets go.
    """
    with translated(path, "locking"):
        fd = disk.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _taken(fd, path, wait=wait):
            yield False
            return
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        # Only for messages to others: a full disk does not keep anybody from the lock.
        with contextlib.suppress(OSError):
            disk.truncate(fd, path, 0)
            disk.write(fd, path, memoryview(json.dumps(record).encode()), 0)
        yield True
    finally:
        os.close(fd)


def _taken(fd: int, path: Path, *, wait: bool) -> bool:
    import fcntl

    with translated(path, "locking"):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def holder(path: Path) -> str:
    """Who holds the lock file ``path``, or did last, in words."""
    try:
        record = json.loads(path.read_bytes())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["since"]))
        return f"process {record['pid']} on {record['host']} since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


class Hold:
    """A file that is being read by this process, so that ``ooc gc`` leaves what it names alone.

    A shared lock, of which a directory that may only be read knows too. It goes with the process and with
    those that it forked.

    Raises
    ------
    IndexDirError
        The file is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise IndexDirError(f"{path} is missing", kind="index-missing") from None
        except OSError as error:
            ResourceError.raise_if_lacking(error, f"opening {path}")
            raise IndexDirError(
                f"{path} cannot be read: {error.strerror}", kind="index-unreadable"
            ) from error
        with contextlib.suppress(ImportError, OSError):  # a file system without locks
            import fcntl

            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def close(self) -> None:
        """Let go of it; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


def is_held(path: Path) -> bool:
    """Whether another process, or this one, holds a file by ``Hold``."""
    import fcntl

    with translated(path, "locking"):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
