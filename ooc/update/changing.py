"""One process at a time changes an index, and begins with clearing up after one that was killed.

A change makes what has the next number: a segment, and files beside the record of the generation. So what
a killed one left is what has a higher number than all generations that were published. Those that were are
never touched, whichever of them is live.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ooc.build.begun import Begun, forget, left_over
from ooc.durable import read_json, remove_file, remove_files, remove_tree, rename
from ooc.index.layout import Layout, SegmentLayout
from ooc.index.lock import publisher
from ooc.update.publish import Finished, Live, live, next_number

__all__ = ["changing", "clear"]


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
        yield replace(before, finished=clear(layout))


def clear(layout: Layout) -> Finished | None:
    """Remove what a killed change left; the change that was published and not forgotten, if any.

    The caller holds the lock, and some generation is live. What a change goes on with when it is run again
    stays: shards, and a segment that had its place already goes back to them.
    """
    unpublished = layout.unpublished()
    if unpublished is not None:
        remove_file(layout.generation(unpublished))  # the record first: now it is not there
    following = next_number(layout)
    there, finished = left_over(layout), None
    if there is not None and there.after is not None:
        finished = _finished(layout, there.plan.digest, range(there.after + 1, following))
        if finished is not None:
            forget(layout)
            there = None
    for path in sorted(layout.builds.glob("*")):
        if there is None or path != there.build.root:
            remove_tree(path)
    if there is None:
        remove_tree(layout.builds)
    for path in sorted(layout.retraining.glob("*")):
        if path.name != str(layout.live()):  # of rows that are no longer those of the index
            remove_tree(path)
    for path in _from(layout.segments, following):
        _take_back(path, there)
        remove_tree(path)
    records = layout.generation(0).parent
    remove_files([*_from(records, following), *records.glob(".*.partial"), *layout.root.glob(".*.partial")])
    remove_file(layout.publishing)
    return finished


def _finished(layout: Layout, digest: str, numbers: range) -> Finished | None:
    """What was published of a change with such a plan, if it was, by one of these numbers."""
    for number in numbers:
        record = _record(layout.segment(f"s{number}"))
        # A compaction names the plan of the first segment, and its rows begin at 0.
        if record.get("plan") == digest and record.get("first_row", 0) > 0:
            return Finished(plan=digest, number=number)
    return None


def _take_back(path: Path, there: Begun | None) -> None:
    """Move a segment that was put in its place and not published back to where its change goes on."""
    if there is None or there.build.segment.root.exists():
        return
    if _record(SegmentLayout(path)).get("plan") == there.plan.digest:
        rename(path, there.build.segment.root)


def _record(segment: SegmentLayout) -> dict[str, Any]:
    return read_json(segment.record, what="the segment's record") if segment.record.exists() else {}


def _from(directory: Path, number: int) -> list[Path]:
    """What has this number or a higher one, of generations or segments."""
    numbered = ((path, re.match(r"s?(\d+)[a-z]*(\.|$)", path.name)) for path in sorted(directory.glob("*")))
    return [path for path, match in numbered if match is not None and int(match[1]) >= number]
