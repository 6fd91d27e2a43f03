"""Which candidates a scan of lists would take to find the true neighbours of witnesses: their ranks by code.

Lists are scanned whole, four times as many each time, and of a few witnesses on to the farthest that matter.
The rank of a neighbour is the number of rows in all lists scanned so far that look nearer by their codes. All
distances are taken as they come, and those of the neighbours are looked up among them: that takes a fraction
of keeping the best in order.
"""

from __future__ import annotations

import itertools
import threading
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ooc.build.sizes import ORDER_BYTES
from ooc.build.witness import Group
from ooc.build.workers import Pool, in_order
from ooc.engine import Selector
from ooc.errors import Stopped
from ooc.index.segment import Segments
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.vectors import evenly

__all__ = ["MOST_CANDIDATES", "Ranks", "rank_among", "scan"]

#: How many candidates are thought of at most.
MOST_CANDIDATES = 2048
#: Witnesses whose lists are scanned together, as far as memory allows: bytes for each entry of their lists.
_TILE, _ENTRY_BYTES = 16, 64
#: Numbers of rows that are asked about are marked by their last bits: few others have the same.
_MARKS = 1 << 16
#: Multiples of it lie evenly between 0 and 1, without order.
_GOLDEN = 0.6180339887498949
#: Of each group so many witnesses are scanned on where that is more than twice as far: how ranks grow there.
_FEW = 12
#: Of so many others, as far, one lends its rank to a neighbour in a list that was not scanned.
_OTHERS = 16


def scan(
    segment: Segments,
    group: Group,
    which: IntArray,
    x: FloatArray,
    truth: IntArray,
    within: IntArray,
    last: int,
    farthest: int,
    metric: Metric,
    pool: Pool,
    *,
    threads: int,
    selector: Selector | None = None,
    stop: threading.Event | None = None,
) -> Ranks:
    """Scan 1, 4, 16 .. and ``last`` lists of each witness of a group, and ``farthest`` of a few.

    Parameters
    ----------
    group : Group
        Of which rows their neighbours are known.
    which, x, truth : (s,) int64, (s, d) float32, (s, k) int64
        Numbers of witnesses, themselves, and the rows that are their neighbours, -1 for none.
    within : (s, k) int64
        How many lists must be probed to meet each.
    threads : int
        Make it faster and change nothing.
    selector : Selector, optional
        Rows in the lists that count.
    """
    stops = _stops(1, last)
    few = evenly(len(x), _FEW)
    more = _stops(last, farthest)[1:] if farthest > 2 * last else []

    def scanned(some: IntArray, stops: list[int]) -> AnyArray:
        """The ranks ``(stops, m, k)`` of neighbours of some."""
        entries = stops[-1] * max(1, -(-segment.entries // segment.nlist))
        step = max(1, min(_TILE, ORDER_BYTES // (_ENTRY_BYTES * entries)))

        def one(these: IntArray) -> AnyArray:
            Stopped.raise_if(stop)
            rest = which[these] % group.every
            return _ranks(segment, group.every, rest, x[these], truth[these], stops, metric, selector)

        parts = (some[first : first + step] for first in range(0, len(some), step))
        return np.concatenate(list(in_order(pool, one, parts, threads)), axis=1)

    rank = np.full((len(stops) + len(more), *truth.shape), np.nan)
    rank[: len(stops)] = scanned(np.arange(len(x)), stops)
    if more:
        rank[len(stops) :, few] = scanned(few, [last, *more])[1:]
    if group.every > 1:
        # Of every fourth row the 24th is in the mean as far as the hundredth of all. Places are whole
        # numbers: a fraction, another for each, keeps the candidates that find them from being.
        fraction = (np.arange(truth.size) * _GOLDEN).reshape(truth.shape) % 1 - 0.5
        rank = np.maximum(rank + fraction, 0) * (group.k / group.depth)
    return Ranks(np.array(stops + more), rank, within, segment.nlist)


def _stops(first: int, last: int) -> list[int]:
    """``first``, 4 and 16 times as many .. and ``last``: more than twice as many as the one before."""
    stops, at = [], first
    while 2 * at < last or at == first < last:
        stops.append(at)
        at *= 4
    return [*stops, last]


def _ranks(
    segment: Segments,
    every: int,
    rest: IntArray,
    x: FloatArray,
    truth: IntArray,
    stops: list[int],
    metric: Metric,
    selector: Selector | None,
) -> AnyArray:
    """The ranks ``(stops, s, k)`` of true neighbours by code, after so many lists scanned.

    Those among the rows whose numbers leave ``rest`` ``(s,)`` of ``every``.
    """
    y = segment.transform(x)
    coarse, lists = segment.coarse(y, stops[-1])
    keys: list[list[FloatArray]] = [[] for _ in x]
    ids: list[list[IntArray]] = [[] for _ in x]
    everything, first = np.inf if metric == "l2" else -np.inf, 0
    for end in stops:
        some = np.ascontiguousarray(lists[:, first:end])
        segment.will_need(some)
        near = np.ascontiguousarray(coarse[:, first:end])
        lims, found, rows = segment.range_scan(y, some, near, everything, selector)
        found = found if metric == "l2" else -found
        for i, (begin, stop) in enumerate(itertools.pairwise(lims.tolist())):
            near_keys, near_ids = found[begin:stop], rows[begin:stop]
            if every > 1:
                counted = near_ids % every == rest[i]
                near_keys, near_ids = near_keys[counted], near_ids[counted]
            keys[i].append(near_keys)
            ids[i].append(near_ids)
        first = end
    each = map(partial(rank_among, twice=segment.lists_per_row > 1), keys, ids, truth)
    return np.stack(list(each), axis=1)


def rank_among(keys: list[FloatArray], ids: list[IntArray], truth: IntArray, *, twice: bool) -> AnyArray:
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
    rank : (steps, k) float
        From 0; infinity of rows that have not come, or beyond as many places as candidates may be.
    """
    if twice:
        so_far = (_each_once(keys[:step], ids[:step]) for step in range(1, len(keys) + 1))
        return np.concatenate([rank_among([near], [by], truth, twice=False) for near, by in so_far])
    came = np.full(len(truth), len(keys))
    mine = np.full(len(truth), np.inf, np.float32)
    marks = np.zeros(_MARKS, bool)
    marks[truth & (_MARKS - 1)] = True
    for step, (near, by) in enumerate(zip(keys, ids, strict=True)):
        at = np.flatnonzero(marks[by & (_MARKS - 1)])
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
    return np.where(there, rank, np.inf)


def _each_once(keys: list[FloatArray], ids: list[IntArray]) -> tuple[FloatArray, IntArray]:
    """Keys and numbers of rows, each where it is nearest."""
    near, by = np.concatenate(keys), np.concatenate(ids)
    order = np.argsort(by)
    near, by = near[order], by[order]
    first = np.flatnonzero(np.diff(by, prepend=-1))
    return np.minimum.reduceat(near, first), by[first]


class Ranks:
    """Ranks of the neighbours of witnesses by code, after any number of lists.

    More lists bring more rows that look nearer, in proportion: ranks grow with a power of their number
    between what was scanned, and beyond with one that falls. Of witnesses that were not scanned as far as
    others they grow as theirs. Neighbours whose lists were not scanned have the ranks of others that are
    nearly as far.

    Parameters
    ----------
    stops : (t,) int64
        After so many lists ranks are known.
    rank : (t, s, k) float
        From 0; infinity where it is beyond all candidates, or the neighbour has not come; NaN where that is
        not known.
    within : (s, k) int64
        How many lists must be probed to meet each.
    nlist : int
        How many there are.
    """

    def __init__(self, stops: IntArray, rank: AnyArray, within: IntArray, nlist: int) -> None:
        came = np.searchsorted(stops, within)
        logs, wide = np.log(rank + 1), np.diff(np.log(stops))
        seen = came < len(stops) - np.isnan(rank).sum(axis=0)
        growth = [0.0]
        for t in range(1, len(stops)):
            both = (came < t) & np.isfinite(logs[t]) & np.isfinite(logs[t - 1])
            grown = logs[t][both] - logs[t - 1][both]
            growth.append(float(grown.mean() / wide[t - 1]) if len(grown) else growth[-1])
            if (unknown := np.isnan(logs[t])).any():
                known = (came < t) & ~unknown & np.isfinite(logs[t - 1])
                logs[t][unknown] = _grown(logs[t - 1][known], logs[t][known], logs[t - 1][unknown])
            # At the stop before the one at which it came: as if its list had been there.
            new = came == t
            logs[t - 1][new] = np.maximum(logs[t][new] - growth[t] * wide[t - 1], 0)
        ends = stops.tolist()
        while ends[-1] < nlist:
            ends.append(min(4 * ends[-1], nlist))
            # Lists that are farther hold ever less that looks near: four times as far, half or less as much.
            slower = np.sqrt(np.sqrt(ends[-3] / ends[-1])) if len(ends) > 2 else 1.0
            growth.append(growth[-1] * float(slower))
            logs = np.concatenate((logs, logs[-1:] + growth[-1] * np.log(ends[-1] / ends[-2])))
        self._stops = np.array(ends)
        lenders = _lenders(came.reshape(-1), seen.reshape(-1))
        self._logs = logs.reshape(len(ends), -1)[:, lenders].reshape(logs.shape)

    def at(self, probed: IntArray) -> AnyArray:
        """The ranks ``(s, k)`` float after ``probed`` lists ``(s,)``, of neighbours that are in these."""
        upper = np.minimum(np.searchsorted(self._stops, probed), len(self._stops) - 1)
        lower = np.maximum(upper - 1, 0)
        queries = np.arange(len(probed))
        high, low = self._logs[upper, queries], self._logs[lower, queries]
        wide = np.log(self._stops[upper] / self._stops[lower])
        part = np.where(upper > lower, np.log(probed / self._stops[lower]) / np.where(wide > 0, wide, 1), 1)
        known = np.isfinite(high) & np.isfinite(low)
        low, high, part = np.where(known, low, 0), np.where(known, high, 0), part[:, None]
        return np.where(known, np.rint(np.exp(low * (1 - part) + high * part) - 1), np.inf)


def _grown(before: AnyArray, after: AnyArray, ranks: AnyArray) -> AnyArray:
    """What becomes of some ranks ``(m,)``, where of others it is known ``(o,)``; all are logarithms.

    Each grows as one of the others that was about as large, not as the mean of them: the more they differ,
    the more are beyond a number of candidates.
    """
    if not len(before):
        return ranks
    order = np.argsort(before, kind="stable")
    place = np.searchsorted(before[order], ranks)
    place += np.floor((np.arange(len(ranks)) * _GOLDEN % 1 - 0.5) * _OTHERS).astype(np.int64)
    lender = order[np.clip(place, 0, len(order) - 1)]
    grown: AnyArray = ranks + after[lender] - before[lender]
    return grown


def _lenders(came: IntArray, seen: NDArray[np.bool_]) -> IntArray:
    """From which neighbour each has its rank: itself, or one whose list was scanned and is about as far.

    ``came`` says at which stop its list is, and ``seen`` whether it was scanned.
    """
    lender = np.arange(len(came))
    for stop in np.unique(came[~seen]).tolist():
        unseen, others = np.flatnonzero(~seen & (came == stop)), np.empty(0, np.int64)
        for first in range(stop, -1, -1):
            others = np.flatnonzero(seen & (came >= first) & (came <= stop))
            if len(others) >= _OTHERS:
                break
        if len(others):
            spread = np.arange(len(unseen)) * len(others) // len(unseen)
            lender[unseen] = others[np.random.default_rng(0).permutation(spread)]
    return lender
