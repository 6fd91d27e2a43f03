"""Training anew: all live rows under a template that fits them, while readers go on with the one before.

A build of the live rows goes its usual way in a directory of its own within the index: it samples, trains,
fills, measures recall, and goes on where it ended when it is interrupted. Its lists then become a segment of
the index, with the numbers that the rows have there, and its template that of the next generation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ooc.build.merge import write_record
from ooc.build.pipeline import build
from ooc.build.plan import Options
from ooc.build.publish import FIRST_GENERATION, FIRST_SEGMENT
from ooc.build.reuse import copy_files
from ooc.build.sizes import COPY_BYTES
from ooc.durable import DurableFile, make_directory, npy_head, read_json, remove_tree, write_bytes
from ooc.engine import Codec
from ooc.errors import DataError, Stopped
from ooc.events import Observer
from ooc.index.dead import Dead
from ooc.index.drift import calibrated
from ooc.index.generation import OWN_TEMPLATE, Entry
from ooc.index.layout import Layout, SegmentLayout
from ooc.index.lists import ID_BYTES, interleave
from ooc.index.live_lists import LiveLists
from ooc.index.segment import Segments
from ooc.search.source import Source
from ooc.stores import Store
from ooc.stores.picked import PickedStore, RangeStore
from ooc.types import IntArray, StoreLike
from ooc.update.publish import Live, Next

__all__ = ["retrain"]

#: Rows that are looked at together for those that live.
_WINDOW = 1 << 20


def retrain(
    before: Live,
    *,
    memory: int | str,
    threads: int | None,
    store: StoreLike | Mapping[str, StoreLike] | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Build the live rows under a new template and publish them; the record of the generation.

    The caller holds the lock of the publisher. ``store`` says where stores are that were moved, as for
    ``ooc.search.source.Source``. Interrupted, the same call goes on where it ended, unless the
    index was changed meanwhile.

    Raises
    ------
    StoreError, ConflictError
        A store is gone, or holds other rows: all rows are read.
    ArgumentError
        ``store`` names one that was not indexed.
    DataError
        No row is live.
    """
    layout, generation, began = before.layout, before.generation, time.monotonic()
    if not generation.rows:
        raise DataError(
            f"{layout.root} has no live rows to train with", kind="no-rows", hint="Append some first."
        )
    place = layout.retraining / str(generation.number)
    make_directory(place)
    inner = Layout(place / "index")
    numbers = _live_rows(before, place / "rows.npy") if before.dead.count else None
    with contextlib.closing(Source(layout, generation, before.header.d, store)) as source:
        options = Options(
            memory=memory,
            threads=threads,
            metric=before.header.metric,
            copy_vectors="never",  # they are where they are
            spill="on" if before.header.lists_per_row > 1 else "off",
            on_bad="skip",  # what was left out before
        )
        build(
            _of(source.rows(), generation.row_end, numbers), inner.root, options, observer=observer, stop=stop
        )
    record = _publish(before, inner, numbers, SegmentLayout(place / "segment"), began, stop)
    remove_tree(layout.retraining)
    return record


def _of(rows: Store, end: int, numbers: IntArray | None) -> Store:
    """The live ones of the rows."""
    return RangeStore(rows, 0, end) if numbers is None else PickedStore(rows, numbers)


def _live_rows(before: Live, path: Path) -> IntArray:
    """The numbers of the rows that are not dead ``(m,)``, ascending, mapped: they may be many."""
    dead: Dead = before.dead
    end = before.generation.row_end
    with DurableFile(path) as file:
        file.write(npy_head((end - dead.count,), np.dtype(np.int64)))
        for first in range(0, end, _WINDOW):
            rows = np.arange(first, min(first + _WINDOW, end))
            file.write(rows[~dead.contains(rows)])
    numbers: IntArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return numbers


def _publish(
    before: Live,
    inner: Layout,
    numbers: IntArray | None,
    place: SegmentLayout,
    began: float,
    stop: threading.Event | None,
) -> dict[str, Any]:
    """Make what was built in ``inner`` the next generation; its record."""
    layout, made = before.layout, Next(before)
    built = read_json(inner.generation(FIRST_GENERATION), what="the generation that was built")
    times = read_json(inner.report(FIRST_GENERATION), what="its report").get("times", [])
    remove_tree(place.root)
    make_directory(place.root)
    rows = _renumber(inner, before.header.lists_per_row, numbers, place, stop)
    target = dataclasses.replace(layout, template_name=f"template{made.number}")
    copy_files(inner, target)
    order = dict(built["order"])
    if order["sketch"]:
        make_directory(layout.sketch(made.number).parent)
        write_bytes(layout.sketch(made.number), inner.sketch(FIRST_GENERATION).read_bytes())
        order["sketch_of"] = made.number
    written = read_json(place.record, what="the segment's record")
    made.segments = []
    end = before.generation.row_end
    made.add_segment(place, Entry(name=made.segment_name, rows=rows, first_row=0, stop_row=end))
    made.set(
        features=[OWN_TEMPLATE],
        template=target.template_name,
        factory=built["plan"]["factory"],
        order=order,
        calibration=built["calibration"],
        calibrated=calibrated(made.number, [made.segment_name], [written]),
    )
    report = {"operation": "retrain", "finished": time.time(), "seconds": time.monotonic() - began}
    return made.publish({**report, "times": times})


def _renumber(
    inner: Layout,
    lists_per_row: int,
    numbers: IntArray | None,
    place: SegmentLayout,
    stop: threading.Event | None,
) -> int:
    """Copy the lists of ``inner`` with the numbers that its rows have here; how many rows there are."""
    of, codec = inner.segment(FIRST_SEGMENT), Codec.load(inner.template_file)
    record = read_json(of.record, what="the segment's record")
    with contextlib.closing(Segments([of], lists_per_row)) as segments:
        sizes = segments.sizes
    size = codec.code_size
    with (
        contextlib.closing(LiveLists([of], [sizes], size, None)) as lists,
        DurableFile(place.lists, size=int(sizes.sum()) * (size + ID_BYTES)) as file,
    ):
        for some in lists.groups(COPY_BYTES):
            Stopped.raise_if(stop)
            rows = some.rows if numbers is None else numbers[some.rows]
            file.write(interleave(some.codes, rows, some.sizes))
        checksums = {place.lists.name: file.checksums()}
    checksums[place.header.name] = codec.save_header(place.header, sizes)
    said = {key: record[key] for key in ("plan", "rows", "entries", "assignment_error") if key in record}
    write_record(place, checksums, **said)
    return int(record["rows"])
