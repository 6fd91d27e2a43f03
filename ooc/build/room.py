"""Room on disk: what a build takes, what is there already, and which disk it lies on."""

from __future__ import annotations

from pathlib import Path

from ooc.build.begun import begun
from ooc.build.plan import Plan, check_disk
from ooc.index.layout import Layout
from ooc.types import PathOrStr

__all__ = ["bytes_below", "check_room"]


def bytes_below(path: Path) -> int:
    """Bytes of all files below a directory; 0 where there is none."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.exists() else 0


def check_room(layout: Layout, plan: Plan, scratch: PathOrStr | None) -> None:
    """See that each disk has room for what goes there and is not there yet."""
    there = begun(layout) if layout.is_index() else None
    build = layout.build(plan.digest) if there is None else there.build
    place = build.scratch or (None if scratch is None else Path(scratch).expanduser().absolute())
    needed = {layout.root: plan.peak_disk_bytes - bytes_below(build.root)}
    if place is not None:
        beside = plan.scratch_bytes - (bytes_below(build.scratch) if build.scratch else 0)
        needed[layout.root] -= plan.scratch_bytes
        if _disk(place) == _disk(layout.root):
            needed[layout.root] += beside
        else:
            needed[place] = beside
    for path, size in needed.items():
        check_disk(path, needed=size)


def _disk(path: Path) -> int:
    """The number of the disk that a path is on, or will be."""
    return next(p for p in (path, *path.parents) if p.exists()).stat().st_dev
