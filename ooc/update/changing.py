"""One process at a time changes an index, and begins with clearing up after one that was killed.

What a killed change left is told from what was published by its number: no generation beyond the newest
that was ever the live one counts, nor does a segment of that number.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ooc.build.begun import Begun, begun, forget
from ooc.durable import read_json, remove_files, remove_tree, rename
from ooc.errors import ResourceError
from ooc.index.layout import Layout, SegmentLayout
from ooc.index.lock import publisher
from ooc.update.publish import Finished, Live, live, next_number

__all__ = ["changing"]


@contextlib.contextmanager
def changing(layout: Layout) -> Iterator[Live]:
    """The live generation, while no other process may change the index.

    Raises
    ------
    IndexDirError
        There is no index, it was not finished, or it is damaged.
    ConflictError
        Another process changes it.
    """
    layout.read_header()
    with publisher(layout.lock):
        before = live(layout)
        yield replace(before, finished=_clear(layout))


def _clear(layout: Layout) -> Finished | None:
    """Remove what belongs to no generation; the change that was published and not forgotten, if any."""
    following = next_number(layout)
    there, finished = _unfinished(layout), None
    if there is not None:
        finished = _finished(layout, there, following)
        if finished is not None or there.after is None:  # or it is of the build that made the index
            forget(layout)
            there = None
    for path in layout.builds.glob("*"):
        if there is None or path != there.build.root:
            remove_tree(path)
    if there is None:
        remove_tree(layout.builds)
    for path in _from(layout.segments, following):
        _take_back(path, there)
        remove_tree(path)
    records = layout.generation(0).parent
    remove_files([*_from(records, following), *records.glob(".*.partial"), *layout.root.glob(".*.partial")])
    return finished


def _unfinished(layout: Layout) -> Begun | None:
    try:
        return begun(layout)
    except ResourceError:  # the build that made the index was clearing up, and its scratch went first
        forget(layout)
        return None


def _finished(layout: Layout, there: Begun, following: int) -> Finished | None:
    """What was published of a change that began after generation ``there.after``."""
    if there.after is None:
        return None
    for number in range(there.after + 1, following):
        if _plan_of(layout.segment(f"s{number}")) == there.plan.digest:
            return Finished(plan=there.plan.digest, number=number)
    return None


def _take_back(path: Path, there: Begun | None) -> None:
    """Move a segment that was put in its place and not published back to where its change goes on."""
    if there is None or there.build.segment.root.exists():
        return
    if _plan_of(SegmentLayout(path)) == there.plan.digest:
        rename(path, there.build.segment.root)


def _plan_of(segment: SegmentLayout) -> str | None:
    if not segment.record.exists():
        return None
    return read_json(segment.record, what="the segment's record").get("plan")


def _from(directory: Path, number: int) -> list[Path]:
    """What has this number or a higher one, of generations or segments."""
    numbered = ((path, re.match(r"s?(\d+)(\.|$)", path.name)) for path in sorted(directory.glob("*")))
    return [path for path, match in numbered if match is not None and int(match[1]) >= number]
