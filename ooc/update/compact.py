"""Compacting: all segments become one, and what is dead goes.

A streaming copy of lists, in the order of the files, that reads no store; and of the rows that the index
keeps itself, where many of them are dead (``ooc.update.shed``). Readers go on with the generation that they
hold.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ooc.build.merge import write_record
from ooc.build.sizes import COPY_BYTES
from ooc.build.status import STATUS_NAME, StatusWriter
from ooc.durable import DurableFile, make_directory, remove_tree
from ooc.engine import Codec
from ooc.errors import ArgumentError, ResourceError, Stopped
from ooc.events import Finished, Note, Observer, Stage, Started, broadcast, ignore, stage
from ooc.index.drift import stale
from ooc.index.generation import Entry
from ooc.index.layout import Layout, SegmentLayout
from ooc.index.lists import ID_BYTES, evenness, interleave
from ooc.index.live_lists import LiveLists
from ooc.index.segment import Segments, read_record
from ooc.types import PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY
from ooc.update.changing import changing
from ooc.update.publish import Live, Next
from ooc.update.retrain import retrain as retrained
from ooc.update.shed import Renumbered, Shed, parts_left, shed_bytes, shedding

__all__ = ["MOST_DEAD", "MOST_SEGMENTS", "compact"]

#: With ``auto``: more segments than this, or a larger share of dead rows in the lists, are compacted.
MOST_SEGMENTS, MOST_DEAD = 8, 0.2


@ResourceError.if_refused("compacting")
def compact(
    index: PathOrStr,
    *,
    auto: bool = False,
    retrain: bool = False,
    store: StoreLike | Mapping[str, StoreLike] | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Merge all segments into one without the dead rows; see ``ooc.compact``."""
    layout, tell = Layout.of(index), observer or ignore
    if store is not None and not retrain:
        raise ArgumentError(
            "no store is read where lists are merged as they are",
            kind="store",
            hint="Say where stores are with retrain=True, `ooc compact --retrain`.",
        )
    with changing(layout) as before:
        generation = before.generation
        if retrain and (not auto or _outgrown(before)):
            began = time.monotonic()
            record = retrained(
                before, memory=memory, threads=threads, store=store, observer=observer, stop=stop
            )
            return _figures(before, record, seconds=time.monotonic() - began, trained=True)
        sheds = shedding(before)
        if not _due(before, sheds, auto=auto):
            message = "there is nothing to compact" + (" yet" if auto else "")
            tell(Note(message=message, kind="nothing-to-compact"))
            return _figures(before, generation.record, seconds=0.0)
        began = time.monotonic()
        made = Next(before)
        place = SegmentLayout(layout.builds / f"compact-{made.number}")
        remove_tree(place.root)
        make_directory(place.root)
        status = layout.builds / "compacting" / STATUS_NAME  # not in the segment, which is moved
        make_directory(status.parent)
        tell = broadcast([observer, StatusWriter(status)])
        try:
            tell(Started(operation="compact", stages={"merge": 0.9, "publish": 0.1}))
            total = _bytes(before) + shed_bytes(before, sheds)
            with stage(tell, "merge", total, unit="bytes") as at:
                rows = _merge(before, made, sheds, place, at, stop)
            with stage(tell, "publish", 1) as at:
                made.segments = []
                end = made.row_end
                made.add_segment(place, Entry(name=made.segment_name, rows=rows, first_row=0, stop_row=end))
                record = made.publish({"operation": "compact", "seconds": time.monotonic() - began})
                at.tell(1)
        except BaseException:
            remove_tree(place.root)
            raise
        finally:
            remove_tree(status.parent)
        if not any(layout.builds.iterdir()):
            remove_tree(layout.builds)
        seconds = time.monotonic() - began
        figures = _figures(before, record, seconds=seconds)
        tell(Finished(operation="compact", seconds=seconds, figures=figures))
        return figures


def _due(before: Live, sheds: list[Shed], *, auto: bool) -> bool:
    """Whether there is something to compact; with ``auto``, whether it is worth it."""
    segments = before.generation.segments
    dead, rows = sum(one.dead for one in segments), sum(one.rows for one in segments)
    if auto:
        # Of a few rows that come and go often more than a fifth is dead.
        kept = sum(one.part.rows - one.left for one in sheds)
        many = len(segments) > MOST_SEGMENTS or kept > MOST_DEAD * before.generation.row_end
        return many or dead > MOST_DEAD * rows
    return len(segments) > 1 or dead > 0 or bool(sheds)


def _outgrown(before: Live) -> bool:
    """Whether rows came that the template does not fit, or so many that recall is no longer known."""
    places = [before.layout.segment(one.name) for one in before.generation.segments]
    records = [read_record(place) for place in places]
    return stale(before.generation.record, records) is not None


def _bytes(before: Live) -> int:
    return sum(
        before.layout.segment(one.name).lists.stat().st_size for one in before.generation.segments if one.rows
    )


def _merge(
    before: Live,
    made: Next,
    sheds: list[Shed],
    place: SegmentLayout,
    at: Stage,
    stop: threading.Event | None,
) -> int:
    """Write the lists of all segments as one segment; how many rows it has."""
    done = 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        at.tell(done)

    if not sheds:
        return _merge_lists(before, place, None, at, told, stop)
    numbers = Renumbered(before, sheds)
    try:
        parts, gone = parts_left(before, sheds, numbers, made.segment_name, told, stop)
        rows = _merge_lists(before, place, numbers, at, told, stop)
    except BaseException:
        for path in before.layout.segments.glob(f"{made.segment_name}[a-z]*"):
            remove_tree(path)
        raise
    made.renumber(parts, numbers.dead(before.dead), gone)
    return rows


def _merge_lists(
    before: Live,
    place: SegmentLayout,
    numbers: Renumbered | None,
    at: Stage,
    told: Callable[[int], None],
    stop: threading.Event | None,
) -> int:
    """Write the lists, with other numbers of rows where these are given; how many rows are in them."""
    layout, lists_per_row = before.layout, before.header.lists_per_row
    layouts = [layout.segment(one.name) for one in before.generation.segments]
    dead = before.dead if before.generation.unfinished_deletions or numbers is not None else None
    codec = Codec.load(before.layout.template_file)
    with contextlib.closing(Segments(layouts, lists_per_row)) as segments:
        in_file, records = segments.in_segments, [one.record for one in segments.each]
        first = records[0]
    size = codec.code_size
    gone = 0 if dead is None else sum(one.dead for one in before.generation.segments) * lists_per_row
    left_bytes = (int(np.sum(in_file)) - gone) * (size + ID_BYTES)
    left = np.zeros(codec.nlist, np.int64)
    with (
        contextlib.closing(LiveLists(layouts, in_file, size, dead)) as lists,
        DurableFile(place.lists, size=left_bytes) as file,
    ):
        for some in lists.groups(COPY_BYTES):
            Stopped.raise_if(stop)
            left[some.first : some.last] = some.sizes
            numbered = some.rows if numbers is None else numbers.new(some.rows)
            file.write(interleave(some.codes, numbered, some.sizes))
            told(len(numbered) * (size + ID_BYTES))
        checksums = {place.lists.name: file.checksums()}
    checksums[place.header.name] = codec.save_header(place.header, left)
    entries = int(left.sum())
    rows = entries // lists_per_row
    said = {name: first[name] for name in ("plan", "copy_error") if name in first} | _error(records)
    write_record(place, checksums, rows=rows, entries=entries, **said)
    at.figures.update(bytes=entries * (size + ID_BYTES), **evenness(left))
    return rows


def _error(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How far rows are from their centroids, of all segments: the dead count, too."""
    known = [one for one in records if "assignment_error" in one]
    rows = sum(one["rows"] for one in known)
    total = sum(one["rows"] * one["assignment_error"] for one in known)
    return {"assignment_error": total / rows} if rows else {}


def _figures(before: Live, record: Any, *, seconds: float, trained: bool = False) -> dict[str, Any]:
    segments = before.generation.segments
    return {
        "index": str(before.layout.root),
        "generation": record["generation"],
        "compacted": len(segments) if record["generation"] != before.generation.number else 0,
        "trained": trained,
        "dropped": sum(one.dead for one in segments),
        "rows": before.generation.rows,
        "seconds": seconds,
    }
