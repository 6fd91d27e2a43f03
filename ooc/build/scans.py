"""Which candidates a scan of lists would take to find the true neighbours of witnesses: their ranks by code.

Lists are scanned whole, four times as many each time. The rank of a neighbour is the number of rows in all
lists scanned so far that look nearer by their codes. All distances are taken as they come, and those of the
neighbours are looked up among them: that takes a fraction of keeping the best in order.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ooc.build.sizes import ORDER_BYTES
from ooc.build.workers import Pool, in_order
from ooc.engine import Selector
from ooc.errors import Stopped
from ooc.index.segment import Segments
from ooc.types import FloatArray, IntArray, Metric

__all__ = ["MOST_CANDIDATES", "NOT_FOUND", "Scan", "rank_among", "rank_at", "scan"]

#: How many candidates are thought of at most.
MOST_CANDIDATES = 2048
#: Witnesses whose lists are scanned together, as far as memory allows: bytes for each entry of their lists.
_TILE, _ENTRY_BYTES = 16, 64
#: Numbers of rows that are asked about are marked by their remainders: few others have the same.
_MARKS = 1 << 16
#: What a power loses in rounding.
_ROUNDED = 1e-9

#: The rank of what was not found.
NOT_FOUND = np.iinfo(np.int64).max // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """After a scan of ``nprobe`` lists: the rank of each neighbour by code ``(s, k)``, from 0."""

    nprobe: int
    rank: IntArray


def scan(
    segment: Segments,
    x: FloatArray,
    truth: IntArray,
    last: int,
    metric: Metric,
    pool: Pool,
    *,
    threads: int,
    selector: Selector | None = None,
    stop: threading.Event | None = None,
) -> list[Scan]:
    """Scan 1, 4, 16 .. and ``last`` lists of each witness.

    Parameters
    ----------
    x, truth : (s, d) float32, (s, k) int64
        Witnesses, and the rows that are their neighbours, -1 for none.
    threads : int
        Make it faster and change nothing.
    selector : Selector, optional
        Rows in the lists that count.
    """
    entries = last * max(1, -(-segment.entries // segment.nlist))
    step = max(1, min(_TILE, ORDER_BYTES // (_ENTRY_BYTES * entries)))

    def one(some: slice) -> IntArray:
        Stopped.raise_if(stop)
        return _ranks(segment, x[some], truth[some], last, metric, selector)

    parts = (slice(first, first + step) for first in range(0, len(x), step))
    ranks = np.concatenate(list(in_order(pool, one, parts, threads)), axis=1)
    return [Scan(nprobe=p, rank=rank) for p, rank in zip(_stops(last), ranks, strict=True)]


def _stops(last: int) -> Iterator[int]:
    """1, 4, 16 .. and the last."""
    at = 1
    while at < last:
        yield at
        at *= 4
    yield last


def _ranks(
    segment: Segments,
    x: FloatArray,
    truth: IntArray,
    last: int,
    metric: Metric,
    selector: Selector | None,
) -> IntArray:
    """The ranks ``(stops, s, k)`` of true neighbours by code, after each step of the lists scanned."""
    y = segment.transform(x)
    coarse, lists = segment.coarse(y, last)
    keys: list[list[FloatArray]] = [[] for _ in x]
    ids: list[list[IntArray]] = [[] for _ in x]
    everything, first = np.inf if metric == "l2" else -np.inf, 0
    for end in _stops(last):
        some = np.ascontiguousarray(lists[:, first:end])
        segment.will_need(some)
        near = np.ascontiguousarray(coarse[:, first:end])
        lims, found, rows = segment.range_scan(y, some, near, everything, selector)
        found = found if metric == "l2" else -found
        for i, (begin, stop) in enumerate(itertools.pairwise(lims.tolist())):
            keys[i].append(found[begin:stop])
            ids[i].append(rows[begin:stop])
        first = end
    each = map(partial(rank_among, twice=segment.lists_per_row > 1), keys, ids, truth)
    return np.stack(list(each), axis=1)


def rank_among(keys: list[FloatArray], ids: list[IntArray], truth: IntArray, *, twice: bool) -> IntArray:
    """The place of each row of ``truth`` ``(k,)`` among those of the first step, the first two, and so on.

    Parameters
    ----------
    keys, ids : lists of (m,) float32, (m,) int64
        Of each step the rows that it adds, the nearest with the least key; of rows as near the one with the
        lower number comes first.
    twice : bool
        Whether a row may come twice: it is then where it is nearer.

    Returns
    -------
    rank : (steps, k) int64
        From 0; ``NOT_FOUND`` of rows that have not come, or beyond as many places as candidates may be.
    """
    if twice:
        so_far = (_each_once(keys[:step], ids[:step]) for step in range(1, len(keys) + 1))
        return np.concatenate([rank_among([near], [by], truth, twice=False) for near, by in so_far])
    came = np.full(len(truth), len(keys))
    mine = np.full(len(truth), np.inf, np.float32)
    marks = np.zeros(_MARKS, bool)
    marks[truth % _MARKS] = True
    for step, (near, by) in enumerate(zip(keys, ids, strict=True)):
        at = np.flatnonzero(marks[by % _MARKS])
        here, which = np.nonzero(by[at, None] == truth)
        came[which], mine[which] = step, near[at[here]]
    before = np.empty((len(keys), len(truth)), np.int64)
    for step, (near, by) in enumerate(zip(keys, ids, strict=True)):
        ordered = np.sort(near)
        before[step] = np.searchsorted(ordered, mine)
        same = np.searchsorted(ordered, mine, side="right") - before[step]
        for i in np.flatnonzero((same > (came == step)) & (came < len(keys))).tolist():
            before[step, i] += np.count_nonzero(by[near == mine[i]] < truth[i])
    rank = np.cumsum(before, axis=0)
    there = (np.arange(len(keys))[:, None] >= came) & (rank < MOST_CANDIDATES)
    return np.where(there, rank, NOT_FOUND)


def _each_once(keys: list[FloatArray], ids: list[IntArray]) -> tuple[FloatArray, IntArray]:
    """Keys and numbers of rows, each where it is nearest."""
    near, by = np.concatenate(keys), np.concatenate(ids)
    order = np.argsort(by)
    near, by = near[order], by[order]
    first = np.flatnonzero(np.diff(by, prepend=-1))
    return np.minimum.reduceat(near, first), by[first]


def rank_at(probed: IntArray, within: IntArray, scans: list[Scan]) -> IntArray:
    """The rank by code ``(s, k)`` of each neighbour after ``probed`` lists ``(s,)``, between what scans gave.

    More lists bring more rows that look nearer, in proportion: ranks grow with a power of their number.
    Beyond the last scan they are taken to grow as they did up to it; neighbours that were in no list scanned
    have the ranks of those that were, dealt out at random.
    """
    stops = np.array([scan.nprobe for scan in scans])
    ranks = np.stack([scan.rank for scan in scans])
    at = np.searchsorted(stops, probed)
    queries = np.arange(len(probed))
    upper, lower_ = np.minimum(at, len(scans) - 1), np.maximum(np.minimum(at, len(scans) - 1) - 1, 0)
    high, low = ranks[upper, queries], ranks[lower_, queries]
    wide = np.log(stops[upper] / stops[lower_])
    here = np.clip(probed, stops[0], stops[-1])
    part = np.where(wide > 0, np.log(here / stops[lower_]) / np.where(wide > 0, wide, 1), 1)[:, None]
    both = (low < NOT_FOUND) & (high < NOT_FOUND)
    between = (np.where(both, low, 0) + 1.0) ** (1 - part) * (np.where(both, high, 0) + 1.0) ** part - 1
    rank = np.where(both, np.ceil(between - _ROUNDED), high).astype(np.int64)
    beyond = at == len(scans)
    if beyond.any():
        rank[beyond] = _beyond(probed, within, scans)[beyond]
    return rank


def _beyond(probed: IntArray, within: IntArray, scans: list[Scan]) -> IntArray:
    high = scans[-1]
    seen = within <= high.nprobe
    growth = 0.0
    if len(scans) > 1:
        low = scans[-2]
        both = (low.rank < NOT_FOUND) & (high.rank < NOT_FOUND)
        if both.any():
            ratios = np.log((high.rank[both] + 1) / (low.rank[both] + 1))
            growth = float(ratios.mean()) / float(np.log(high.nprobe / low.nprobe))
    times = np.maximum(probed / high.nprobe, 1)[:, None] ** growth
    rank = np.where(high.rank < NOT_FOUND, np.ceil((high.rank + 1) * times) - 1, NOT_FOUND).astype(np.int64)
    if seen.any() and not seen.all():
        known = np.sort(rank[seen])
        unseen = np.flatnonzero(~seen.reshape(-1))
        spread = ((np.arange(len(unseen)) + 0.5) / len(unseen) * len(known)).astype(np.int64)
        rank.reshape(-1)[unseen] = known[np.random.default_rng(0).permutation(spread)]
    return rank
