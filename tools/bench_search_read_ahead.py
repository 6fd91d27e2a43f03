"""The read-ahead of the disk under a directory, for the time of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

#: The name of the setting that changes nothing.
AS_IS = "machine"


def queue_of(directory: Path) -> Path | None:
    """The file that holds the read-ahead of a directory's disk in KiB; None where there is no such disk."""
    number = directory.stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        return None
    device = device.resolve()
    for place in (device, device.parent):  # a partition has the queue of its disk
        path = place / "queue" / "read_ahead_kb"
        if path.exists():
            return path
    return None


def current_kb(directory: Path) -> int | None:
    """The read-ahead as it is."""
    path = queue_of(directory)
    return int(path.read_text()) if path is not None else None


@contextlib.contextmanager
def read_ahead(directory: Path, kb: str) -> Iterator[bool]:
    """Set the read-ahead, and set it back afterwards whatever happens.

    Parameters
    ----------
    directory : Path
        On the disk that is meant.
    kb : str
        KiB, or ``"machine"`` for what it is.

    Yields
    ------
    bool
        Whether it is as asked for: not everyone may set it.
    """
    path = queue_of(directory)
    if kb == AS_IS:
        yield True
        return
    if path is None:
        yield False
        return
    before = path.read_text()
    try:
        try:
            path.write_text(kb)
        except OSError:
            yield False
        else:
            yield True
    finally:
        with contextlib.suppress(OSError):
            path.write_text(before)
