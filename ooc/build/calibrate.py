"""Calibration: what recall each setting of a search has, measured on the merged lists.

A neighbour of a query is found where its list is among those probed, and its code among the candidates.
The first is known of every witness, without a search, from the order of the lists alone. The second
needs scans of the lists of some witnesses (``ooc.build.scans``). Both together give recall at every
(nprobe, candidates) of a fine grid (``ooc.build.recall``). Nothing depends on time, so the same rows, plan
and seed give the same table.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ooc.build.order import choose_order, sketch_lists
from ooc.build.recall import Recalls, Scanned, grid, recalls
from ooc.build.scans import scan
from ooc.build.searched import Searched
from ooc.build.sizes import ORDER_BYTES
from ooc.build.times import times
from ooc.build.witness import Nearest, Witnesses
from ooc.build.workers import Pool, in_order, workers
from ooc.errors import Stopped
from ooc.events import Observer, Stage, ignore, stage
from ooc.index.dead import Dead
from ooc.index.layout import SegmentLayout
from ooc.index.segment import Segments
from ooc.search.kind import FAR, nearness
from ooc.search.promise import PAGE_BYTES
from ooc.stores import Store
from ooc.types import AnyArray, FloatArray, IntArray
from ooc.vectors import evenly, places

__all__ = ["Calibrated", "calibrate"]

#: How many entries of lists are scanned of each group of them, for each row of the index and at least: those
#: of the few that tell of a hundred neighbours, which lie farther, reach farther.
_ENTRIES_A_ROW, _ENTRIES_LEAST = 2, 1 << 18
#: The few of each group that are scanned on are so many times as far, at most.
_FARTHER = 8
#: Witnesses that a thread looks at together.
_TILE = 64
#: Lists are scanned until they hold this share of all neighbours.
_ENOUGH = 0.99
#: A query looks into so many times as many lists as the mean does, at most.
_MOST_TIMES = 1.5
#: What is kept of the settings: each that recalls more than all cheaper ones, by at least this.
_GAIN = 5e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What was measured, as JSON-ready records.

    Attributes
    ----------
    order : dict
        ``handicap``: the strength of it. ``sketch``: whether there is one.
    calibration : dict
        ``by``: what was asked, ``"rows"`` or ``"queries"``. ``queries`` and ``scanned``: how many witnesses.
        ``far``: how near to a centroid one in twenty was not.
        ``settings``: by k (text), lines of ``nprobe`` at most, ``candidates``, ``recall``, its lower bound,
        bytes of lists and rows that a query reads, and how far lists may be; those that recall more than all
        cheaper ones, from the cheapest on. Empty where there are no witnesses.
    times : list of dict
        What a query took at some settings, see ``ooc.build.times``: unlike the others, never the same again.
    """

    order: dict[str, Any]
    calibration: dict[str, Any]
    times: list[dict[str, Any]]


def calibrate(
    plan: Searched,
    layouts: Sequence[SegmentLayout],
    spread: FloatArray,
    sketch: Path,
    witnesses: Witnesses,
    nearest: Nearest,
    *,
    rows: Store | None = None,
    dead: Dead | None = None,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> Calibrated:
    """Choose the order of the lists and measure recall over a grid of settings.

    Parameters
    ----------
    plan : Searched
        Metric, and how long a row is that a search reads: a plan, or what is known of an index.
    layouts : sequence of SegmentLayout
        The merged lists, of one segment or several.
    spread : (nlist,) float32
        How far the rows of each list spread.
    sketch : Path
        Where the sketch of the centroids is to be written, if there is to be one.
    witnesses, nearest : Witnesses, Nearest
        Queries and their true neighbours.
    rows : Store, optional
        Where a search takes exact distances from; without it no times are measured.
    dead : Dead, optional
        Rows in the lists that do not count.
    observer : callable
        Is told events; queries are counted.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.
    """
    queries = len(witnesses.x)
    with (
        stage(observer, "calibrate", queries, unit="queries") as at,
        contextlib.ExitStack() as opened,
        workers(plan.threads) as pool,  # ends before what it reads is closed
    ):
        segment = opened.enter_context(contextlib.closing(Segments(layouts, plan.lists_per_row)))
        order = choose_order(segment, plan, spread, witnesses.x, nearest, pool, stop)
        # By one thread, while the others go on: only scans ask it for lists.
        sketching = pool.submit(sketch_lists, segment, plan, order, sketch)
        if not queries:
            return Calibrated(order=sketching.result().record, calibration={}, times=[])
        ordered = opened.enter_context(contextlib.closing(Segments(layouts, plan.lists_per_row, order)))
        steps = _steps(ordered, witnesses.x)
        within, counts, near, list_bytes = _within(ordered, plan, witnesses.x, nearest, steps, pool, at, stop)
        order = sketching.result()
        segment = opened.enter_context(contextlib.closing(Segments(layouts, plan.lists_per_row, order)))
        groups = _groups(segment, plan, witnesses, nearest, within, pool, dead, stop)
        row_bytes = plan.row_bytes + PAGE_BYTES - 1
        settings = {
            str(measured.k): _frontier(steps, measured, list_bytes, row_bytes)
            for measured in recalls(counts, within, groups, nearest, plan.n, pool, threads=plan.threads)
        }
        scanned = sum(len(group.some) for group in groups)
        calibration = {
            "by": witnesses.by,
            "queries": witnesses.count,
            "scanned": scanned,
            "far": round(float(np.quantile(near, FAR)), 6),
            "settings": settings,
        }
        measured = times(segment, rows, plan, calibration, witnesses.x, dead, stop)
        at.figures.update(queries=queries, scanned=scanned, handicap=order.record["handicap"])
    return Calibrated(order=order.record, calibration=calibration, times=measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """How many lists are probed at each step ``(p,)``: at most so many, and those within reach."""

    nprobe: IntArray
    reach: AnyArray

    def of(self, reaches: FloatArray) -> IntArray:
        """How many lists ``(q, p)`` that is for queries, of whose lists ``(q, nlist)`` it is known."""
        within = [np.searchsorted(line, self.reach.astype(np.float32), side="right") for line in reaches]
        return np.clip(np.array(within), 1, self.nprobe)


def _steps(segment: Segments, x: FloatArray) -> _Steps:
    """Steps at which as many lists are probed as a grid has, at the mean or nearly so; at the last, all."""
    lists = grid(segment.nlist)
    some = x[evenly(len(x), _TILE)]
    step = max(1, min(_TILE, ORDER_BYTES // (24 * segment.nlist)))
    sums = np.zeros(len(lists))
    for part in _slices(len(some), step):
        sums += _ordered(segment, segment.transform(some[part]))[2][:, lists - 1].sum(
            axis=0, dtype=np.float64
        )
    reach = np.array([float(f"{value:.6g}") for value in sums / len(some)])
    reach[-1] = np.inf
    most = np.minimum(np.ceil(_MOST_TIMES * lists).astype(np.int64), segment.nlist)
    return _Steps(nprobe=most, reach=np.maximum.accumulate(reach))


def _ordered(segment: Segments, y: FloatArray) -> tuple[IntArray, FloatArray, FloatArray]:
    """All lists of transformed queries in their order, how far the first is, and the reach each takes."""
    order, found = segment.order(y)
    return order, found[:, 0], segment.reaches(y, found, order)


def _within(
    segment: Segments,
    plan: Searched,
    x: FloatArray,
    nearest: Nearest,
    steps: _Steps,
    pool: Pool,
    at: Stage,
    stop: threading.Event | None,
) -> tuple[IntArray, IntArray, AnyArray, AnyArray]:
    """Of each neighbour the lists that must be probed to meet it ``(q, k)``.

    And how many lists of each witness are probed at each step ``(q, p)``, how near it is to a centroid
    ``(q,)``, and mean bytes of these lists ``(p,)``.
    """
    step = max(1, min(_TILE, ORDER_BYTES // (24 * segment.nlist)))

    def one(some: slice) -> tuple[slice, IntArray, IntArray, AnyArray, AnyArray]:
        y = segment.transform(x[some])
        order, found, reaches = _ordered(segment, y)
        close = nearness(found, y, plan.metric)
        probed = steps.of(reaches)
        queries = np.arange(len(order))[:, None, None]
        met = places(order)[queries, nearest.lists[some]].min(axis=2) + 1
        read = np.cumsum(segment.list_bytes(order), axis=1)
        return some, met, probed, close, np.take_along_axis(read, probed - 1, axis=1).sum(axis=0)

    within = np.empty(nearest.rows.shape, np.int64)
    counts = np.empty((len(x), len(steps.nprobe)), np.int64)
    near, sums = np.empty(len(x)), np.zeros(len(steps.nprobe))
    for some, met, probed, close, list_bytes in in_order(pool, one, _slices(len(x), step), plan.threads):
        Stopped.raise_if(stop)
        within[some], counts[some], near[some] = met, probed, close
        sums += list_bytes
        at.tell(some.stop)
    within[nearest.rows < 0] = segment.nlist + 1
    return within, counts, near, sums / len(x)


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _groups(
    segment: Segments,
    plan: Searched,
    witnesses: Witnesses,
    nearest: Nearest,
    within: IntArray,
    pool: Pool,
    dead: Dead | None,
    stop: threading.Event | None,
) -> list[Scanned]:
    """The groups of the witnesses, of which some are scanned."""
    groups = []
    for group, members in witnesses.groups:
        count = members.stop - members.start
        if not count:
            continue
        which = members.start + evenly(count, group.scanned)
        there = within[members][nearest.rows[members] >= 0]
        ranks = scan(
            segment,
            group,
            which,
            witnesses.x[which],
            nearest.rows[which],
            within[which],
            *_last(segment, there, plan.n, len(which)),
            plan.metric,
            pool,
            threads=plan.threads,
            selector=None if dead is None else dead.selector,
            stop=stop,
        )
        groups.append(Scanned(group=group, all=members, some=which, ranks=ranks))
    return groups


def _last(segment: Segments, there: IntArray, n: int, scanned: int) -> tuple[int, int]:
    """How many lists of each witness are scanned, and of a few; ``there`` ``(m,)``: places of neighbours'."""
    mean = max(1, segment.entries / segment.nlist)
    allowed = int(max(_ENTRIES_A_ROW * n, _ENTRIES_LEAST) / (mean * scanned))
    enough = min(int(np.quantile(there, _ENOUGH)) if len(there) else 1, segment.nlist)
    return max(1, min(enough, allowed)), max(1, min(enough, _FARTHER * allowed))


def _frontier(
    steps: _Steps, measured: Recalls, list_bytes: AnyArray, row_bytes: int
) -> list[list[float | None]]:
    """The settings that recall more than all that read fewer bytes, from the cheapest on."""
    lists = np.repeat(list_bytes, len(measured.candidates))
    rows = np.tile(measured.candidates * row_bytes, len(steps.nprobe))
    step = np.repeat(np.arange(len(steps.nprobe)), len(measured.candidates))
    asked = np.tile(measured.candidates, len(steps.nprobe))
    recall, low = measured.recall.reshape(-1), measured.low.reshape(-1)
    kept: list[list[float | None]] = []
    most = 0.0
    for i in np.argsort(lists + rows, kind="stable").tolist():
        if low[i] >= most + _GAIN:
            most = float(low[i])
            kept.append(
                [
                    int(steps.nprobe[step[i]]),
                    int(asked[i]),
                    round(float(recall[i]), 5),
                    round(most, 5),
                    round(float(lists[i])),
                    int(rows[i]),
                    float(steps.reach[step[i]]) if np.isfinite(steps.reach[step[i]]) else None,
                ]
            )
    return kept
