"""One publisher at a time.

The lock is the kernel's (``flock``), so it goes with the process that holds it, however that ends;
what the file says is only for the message to the second one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ooc.durable import translated
from ooc.errors import ConflictError

__all__ = ["publisher"]


@contextlib.contextmanager
def publisher(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    Raises
    ------
    ConflictError
        When another process holds it: names the host, the process and since when.
    """
    import fcntl

    with translated(path, "locking"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"{path.parent} is being written by {_holder(fd)}",
                kind="locked",
                hint="Wait until it ends (`ooc status` shows how far it is), or stop it and run this again.",
            ) from None
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(record).encode(), 0)
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    try:
        record = json.loads(os.pread(fd, 1000, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["since"]))
        return f"process {record['pid']} on {record['host']} since {since}"
    except (ValueError, KeyError, TypeError):
        return "another process"
