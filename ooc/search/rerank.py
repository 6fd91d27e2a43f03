"""Re-ranking: exact distances between queries and the rows that the codes proposed.

Rows of all queries are gone through once, in the order in which they lie, a wave at a time: the next
wave is asked of the disk before this one is compared, so the disk has many reads to do at any moment
and memory holds two waves. Where the rows lie as float32 in mapped files they are compared in their
place; otherwise a wave is gathered first. A distance is always computed from the difference (l2) or the
product (ip, cosine) of the two vectors in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ooc.engine import pairs
from ooc.search.best import worst
from ooc.search.budget import Budget
from ooc.search.trace import NOTHING, Trace
from ooc.stores.base import Store, as_float32
from ooc.types import FloatArray, IntArray, Metric
from ooc.vectors import LEAST_SQUARE, MOST_SQUARE, normalise

__all__ = ["distances", "vectors"]

#: Rows of a wave that was not asked for: what is lost where it is not in memory after all.
_UNASKED = 512


def distances(
    xq: FloatArray,
    ids: IntArray,
    store: Store,
    metric: Metric,
    *,
    budget: Budget | None = None,
    ahead: Callable[[], bool] = lambda: True,
    trace: Trace = NOTHING,
) -> FloatArray:
    """Exact distances of queries ``(nq, d)`` to rows ``ids`` ``(nq, m)``; the worst where an id is -1.

    Parameters
    ----------
    xq : (nq, d) float32
        C-contiguous; of unit length where the metric is cosine.
    ids : (nq, m) int64
        Row numbers in any order; -1 for none.
    store : Store
        The rows.
    budget : Budget, optional
        How many rows are brought in together.
    ahead : callable
        Says before each wave whether its rows are to be asked of the disk ahead.
    trace : Trace
        Is told rows, bytes and reads; may end the search.
    """
    budget = budget or Budget.of(None)
    asks = ahead()
    if len(ids) == 1 and ids.shape[1] <= _UNASKED and not asks:
        at_once = _where_they_lie(xq, ids, store, metric, trace)
        if at_once is not None:
            return at_once
    out = np.full(ids.shape, worst(metric), np.float32)
    flat = ids.reshape(-1)
    place = np.argsort(flat)
    place = place[np.searchsorted(flat, 0, sorter=place) :]  # those of -1 come first
    if not len(place):
        return out
    row, query = flat[place], place // ids.shape[1]
    new = np.empty(len(row), bool)
    new[0] = True
    np.not_equal(row[1:], row[:-1], out=new[1:])
    begins = np.flatnonzero(new)  # of the pairs of each row, the first
    unique, ends = row[begins], np.append(begins[1:], len(row))
    most = max(1, budget.wave_bytes // (4 * store.d))
    drops = budget.keep_bytes is not None and len(unique) * store.row_bytes > budget.keep_bytes
    trace.add(rows=len(unique), row_bytes=len(unique) * store.row_bytes)
    first = asked = 0  # rows that were compared, and that were asked for
    while first < len(unique):
        if trace is not NOTHING:
            trace.pause()
        # The next wave is on its way while this one is compared.
        if asks and asked < len(unique):
            soon = unique[max(asked, first) : first + 2 * most]
            trace.add(row_reads=store.will_take(soon))
            asked = max(asked, first) + len(soon)
        advised = asked > first
        rows = unique[first : first + (most if advised else min(most, _UNASKED))]
        some = slice(int(begins[first]), int(ends[first + len(rows) - 1]))
        in_place = store.in_place(rows)
        if in_place is not None:
            y, each = in_place
        else:
            y = as_float32(store.gather(rows))
            each = np.arange(len(rows))
        # Of one query every row is another one.
        iy = each if len(rows) == some.stop - some.start else each[np.cumsum(new[some]) - 1]
        found = pairs(xq, query[some], y, iy, metric)
        if metric == "cosine":
            squares = pairs(y, each, y, each, metric)
            if squares.min() < LEAST_SQUARE or not squares.max() < MOST_SQUARE:
                y, _ = normalise(y[each])
                found = pairs(xq, query[some], y, np.cumsum(new[some]) - 1, metric)
            else:
                times = ends[first : first + len(rows)] - begins[first : first + len(rows)]
                found /= np.repeat(np.sqrt(squares), times)
        out.reshape(-1)[place[some]] = found
        if drops:
            store.forget(int(rows[0]), int(rows[-1]) + 1)
        first += len(rows)
        asks = first < len(unique) and ahead()
    return out


def _where_they_lie(
    xq: FloatArray, ids: IntArray, store: Store, metric: Metric, trace: Trace
) -> FloatArray | None:
    """As ``distances``, of one query and few rows that are in memory; None where they have to be gathered."""
    there = ids >= 0
    rows = ids[there]
    lie = store.in_place(rows) if len(rows) else None
    if lie is None:
        return None
    y, places = lie
    found = pairs(xq, np.zeros(len(rows), np.int64), y, places, metric)
    if metric == "cosine":
        squares = pairs(y, places, y, places, metric)
        if squares.min() < LEAST_SQUARE or not squares.max() < MOST_SQUARE:
            return None
        found /= np.sqrt(squares)
    trace.add(rows=len(rows), row_bytes=len(rows) * store.row_bytes)
    if len(rows) == ids.shape[1]:
        return found[None]
    out = np.full(ids.shape, worst(metric), np.float32)
    out[there] = found
    return out


def vectors(ids: IntArray, store: Store, *, budget: Budget) -> FloatArray:
    """The rows ``ids`` ``(nq, k)`` as ``(nq, k, d)`` float32; NaN where an id is -1."""
    out = np.full((*ids.shape, store.d), np.nan, np.float32)
    flat = ids.reshape(-1)
    place = np.argsort(flat)
    place = place[np.searchsorted(flat, 0, sorter=place) :]
    step = max(1, budget.wave_bytes // (4 * store.d))
    for first in range(0, len(place), step):
        some = place[first : first + step]
        out.reshape(-1, store.d)[some] = as_float32(store.take(flat[some]))
    return out
