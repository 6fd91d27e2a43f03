"""Measuring the recall of a published index anew, and publishing it as another generation.

The segments stay as they are. What changes is in which order lists are looked into, and which settings keep
which recall. A reader that has the index open goes on with the generation that it opened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ooc import events
from ooc.build.calibrate import Calibrated, calibrate
from ooc.build.factory import parse_factory
from ooc.build.given import read_queries
from ooc.build.plan import available_threads
from ooc.build.rows import prepare
from ooc.build.sample import bad_rows_error
from ooc.build.sizes import BLOCK_ROWS, Sizes, most_witnesses
from ooc.build.train import published_template
from ooc.build.witness import Looked, Neighbours, Witnesses
from ooc.build.workers import in_order, workers
from ooc.errors import ConflictError, DataError, PlanError, Stopped
from ooc.evaluation.rows import indexed_rows
from ooc.events import Observer
from ooc.index.drift import calibrated
from ooc.index.generation import MOST_ROWS
from ooc.index.layout import Layout, SegmentLayout
from ooc.index.order import read_spread
from ooc.index.segment import Segments, read_record
from ooc.search.searcher import Index, open_index
from ooc.search.sweep import Sweep
from ooc.stores import Store, open_store
from ooc.stores.base import Block
from ooc.types import IntArray, Metric, OnBad, StoreLike
from ooc.units import MIB, format_bytes
from ooc.update.changing import changing
from ooc.update.publish import Live, Next

__all__ = ["update"]

#: Shares of the time.
_SHARES = {"exact": 0.8, "calibrate": 0.2}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Searched:
    """See ``ooc.build.searched``."""

    n: int
    metric: Metric
    lists_per_row: int
    row_bytes: int
    threads: int


def update(
    index: Index,
    queries: StoreLike | None,
    *,
    count: int | None,
    seed: int,
    memory_bytes: int,
    threads: int | None,
    observer: Observer = events.ignore,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Measure anew and publish; see ``ooc.evaluate``."""
    layout, began = Layout.of(index.info()["path"]), time.monotonic()
    with changing(layout) as before:
        if before.generation.number != index.generation:
            raise ConflictError(
                f"{layout.root} is at generation {before.generation.number}, and {index.generation} is open",
                kind="index-changed",
                hint="Open it again.",
            )
        if not before.generation.rows:
            raise DataError(
                f"{layout.root} has no live rows to measure by", kind="no-rows", hint="Append some first."
            )
        rows, _ = indexed_rows(index)
        searched = _Searched(
            n=before.generation.row_end,
            metric=index.metric,
            lists_per_row=index.lists_per_row,
            row_bytes=_row_bytes(before, index),
            threads=threads or available_threads(),
        )
        most = count or most_witnesses(searched.n)
        most = most if queries is not None else min(most, before.generation.rows)
        _check_memory(rows, before, searched, most, memory_bytes)
        made = Next(before)
        settings = {
            "index": str(layout.root),
            "generation": made.number,
            "metric": index.metric,
            "rows": index.n,
        }
        observer(
            events.Started(operation="eval", stages=_SHARES, memory_bytes=memory_bytes, settings=settings)
        )
        witnesses, told = _witnesses(rows, queries, searched, before, most, seed)
        near = _neighbours(before, rows, searched, witnesses, observer=observer, stop=stop)
        places = [layout.segment(entry.name) for entry in before.generation.segments]
        with closing(Segments(places, searched.lists_per_row)) as segments:
            nearest = near.nearest(segments.lists_of)
        measured = calibrate(
            searched,
            places,
            read_spread(before.layout),
            layout.sketch(made.number),
            witnesses,
            nearest,
            rows=index.rows(),
            dead=before.dead if before.generation.unfinished_deletions else None,
            observer=observer,
            stop=stop,
        )
        _publish(made, places, before.generation.rows, measured, told, time.monotonic() - began)
    with open_index(layout.root) as renewed:
        info = renewed.info()
    seconds = time.monotonic() - began
    observer(events.Finished(operation="eval", seconds=seconds, figures=settings))
    return {
        **settings,
        "queries": told,
        "recall": info["recall"],
        "defaults": info["defaults"],
        "seconds": round(seconds, 3),
    }


def _row_bytes(before: Live, index: Index) -> int:
    """Bytes of a row where a search reads it, in the mean: of the index's own ones as they lie on disk."""
    generation, total = before.generation, 0
    for part in generation.parts:
        each = index.rows().row_bytes
        if part.own is not None:
            record = read_record(before.layout.segment(part.own))
            each = record["bytes"]["vectors.npy"] // part.rows  # less than its header more
        total += part.rows * each
    return total // generation.row_end


def _check_memory(rows: Store, before: Live, searched: _Searched, count: int, memory_bytes: int) -> None:
    """As filling and calibrating take it, without a shard."""
    code = before.generation.factory
    sizes = Sizes(
        store=rows,
        n=searched.n,
        # Nothing is trained: however few rows are left, they are enough.
        factory=parse_factory(code, n=MOST_ROWS, d=rows.d, metric=searched.metric),
        threads=searched.threads,
        spill=searched.lists_per_row > 1,
        trained=True,
    )
    more = max(0, count - sizes.witnesses) * (12 * rows.d + Sweep.query_bytes(rows.d, 25))
    stages = sizes.memory(BLOCK_ROWS, 0)
    needed = max(stages["fill"], stages["calibrate"]) + more
    if needed > memory_bytes:
        raise PlanError(
            f"measuring recall does not fit in {format_bytes(memory_bytes)}",
            kind="memory-too-small",
            hint=f"Give it at least {-(-needed // MIB)}MiB.",
        )


def _on_bad(before: Live) -> OnBad:
    return "skip" if before.generation.record["skipped_rows"] else "stop"


def _witnesses(
    rows: Store, queries: StoreLike | None, searched: _Searched, before: Live, most: int, seed: int
) -> tuple[Witnesses, dict[str, Any]]:
    """What is asked, and what to tell of it."""
    metric = searched.metric
    if queries is None:
        drawn = Witnesses.draw(
            rows,
            n=searched.n,
            count=most,
            metric=metric,
            seed=seed,
            on_bad=_on_bad(before),
            dead=before.dead,
        )
        if not len(drawn.own):
            raise DataError("no row that was drawn can be a query: they hold NaN, or zeros", kind="bad-rows")
        return drawn, {"count": len(drawn.own), "drawn": True, "seed": seed, "store": rows.uri[:4000]}
    with ExitStack() as opened:
        asked = queries if isinstance(queries, Store) else opened.enter_context(open_store(queries))
        x = read_queries(asked, d=rows.d, metric=metric, count=most)
        told = {"count": len(x), "drawn": False, "seed": None, "store": asked.uri[:4000]}
        return Witnesses.of(x, seed, most), told


def _neighbours(
    before: Live,
    rows: Store,
    searched: _Searched,
    witnesses: Witnesses,
    *,
    observer: Observer,
    stop: threading.Event | None,
) -> Neighbours:
    """The true neighbours among live rows, found in one pass over all."""
    # Looked at first, as while filling.
    basis = published_template(before.layout, searched.metric).basis
    near, on_bad = Neighbours(witnesses, searched.metric, [], basis), _on_bad(before)

    def look(block: Block) -> tuple[int, IntArray, Looked]:
        prepared = prepare(block.rows, searched.metric)
        bad = prepared.bad + block.start
        dead = before.dead.contains(np.arange(block.start, block.start + len(block.rows)))
        if dead.any():
            prepared = replace(prepared, bad=np.union1d(prepared.bad, np.flatnonzero(dead)))
        low = None if basis is None else prepared.x @ basis
        return len(block.rows), bad, near.look(block.start, prepared, low)

    with (
        workers(searched.threads) as pool,
        events.stage(observer, "exact", searched.n, row_bytes=rows.row_bytes) as at,
    ):
        done = 0
        for number, bad, found in in_order(pool, look, _blocks(rows, searched), searched.threads):
            Stopped.raise_if(stop)
            if len(bad) and on_bad == "stop":
                raise bad_rows_error(rows, int(bad[0]), len(bad))
            near.take(found)
            done += number
            at.tell(done)
        at.figures["queries"] = witnesses.count
    return near


def _blocks(rows: Store, searched: _Searched) -> Iterator[Block]:
    """The rows in the blocks in which they were filled."""
    # A mapped store lets go of what lies a block behind: a block is of as many as are under way.
    step = BLOCK_ROWS * (2 * searched.threads + 1 if rows.mapped else 1)
    for block in rows.blocks(step, stop=searched.n):
        for i in range(0, len(block.rows), BLOCK_ROWS):
            yield Block(start=block.start + i, rows=block.rows[i : i + BLOCK_ROWS])


def _publish(
    made: Next,
    places: list[SegmentLayout],
    live: int,
    measured: Calibrated,
    queries: dict[str, Any],
    seconds: float,
) -> None:
    """The next generation: the same segments, the order and the table that were measured."""
    records = [read_record(place) for place in places]
    order = dict(measured.order)
    if order["sketch"]:
        order["sketch_of"] = made.number
    made.set(
        order=order,
        calibration=measured.calibration,
        calibrated=calibrated(made.number, [entry.name for entry in made.segments], records, live),
    )
    report = {"operation": "eval", "finished": time.time(), "seconds": round(seconds, 3)}
    made.publish({**report, "queries": queries, "times": measured.times})
