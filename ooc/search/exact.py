"""Exact distances between queries and rows, and the best of them.

Two ways lead to the same numbers. Few candidates a query: their rows are gathered and compared one
query at a time. Very many (every row of every list): the store is read front to back and a matrix
product proposes, after which the best are computed the first way. What is returned is always a
distance computed from the difference (l2) or the product (ip, cosine) of the two vectors in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ooc.stores.base import Store, as_float32
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.vectors import normalise

__all__ = ["best", "distances", "exhaustive", "merge_best", "once", "worst"]

#: Gathered rows are compared this many bytes at a time.
_GATHER_BYTES = 16 * 1024 * 1024
#: Rows read at a time where all are compared.
_SWEEP_BYTES = 8 * 1024 * 1024
#: Up to this part of the rows is gathered rather than read past.
_FEW = 0.25
#: A matrix product orders rows by distances with an error: this many more are computed exactly.
_MARGIN = 64


def worst(metric: Metric) -> float:
    """The distance of what is not there."""
    return float("inf") if metric == "l2" else float("-inf")


def distances(xq: FloatArray, ids: IntArray, store: Store, metric: Metric) -> FloatArray:
    """Exact distances of queries ``(nq, d)`` to rows ``ids`` ``(nq, m)``; the worst where an id is -1.

    The rows of all queries are asked of the disk together, in the order of the store, each once.
    ``xq`` is of unit length where the metric is cosine.
    """
    nq, m = ids.shape
    out = np.full((nq, m), worst(metric), np.float32)
    at_once = max(1, _GATHER_BYTES // max(m * (4 * store.d + store.row_bytes), 1))
    for first in range(0, nq, at_once):
        some = ids[first : first + at_once]
        there = some >= 0
        rows, place = np.unique(some[there], return_inverse=True)
        if not len(rows):
            continue
        x = as_float32(store.take(rows))
        if metric == "cosine":
            x, _ = normalise(x)
        queries = np.repeat(np.arange(first, first + len(some)), there.sum(axis=1))
        out[first : first + at_once][there] = _pairs(xq, queries, x, place, metric)
    return out


def _pairs(xq: FloatArray, queries: IntArray, x: FloatArray, rows: IntArray, metric: Metric) -> FloatArray:
    """Distances of pairs ``(queries[i], rows[i])``, a bounded number of them at a time."""
    out = np.empty(len(rows), np.float32)
    step = max(1, _GATHER_BYTES // (4 * x.shape[1]))
    for first in range(0, len(rows), step):
        a, b = xq[queries[first : first + step]], x[rows[first : first + step]]
        if metric == "l2":
            np.subtract(b, a, out=b)
            out[first : first + step] = np.einsum("ij,ij->i", b, b)
        else:
            out[first : first + step] = np.einsum("ij,ij->i", a, b)
    return out


def best(found: FloatArray, ids: IntArray, k: int, metric: Metric) -> tuple[FloatArray, IntArray]:
    """The ``k`` best of each row, ordered by distance and then by id; padded with ids of -1.

    Parameters
    ----------
    found, ids : (nq, m) float32, (nq, m) int64
        Distances and the ids they belong to; entries with id -1 are not there.
    """
    m = found.shape[1]
    key = found if metric == "l2" else -found
    key = np.where(ids >= 0, key, np.inf)
    if m > 4 * k + 64:
        # All that are at least as near as the k-th, so that ties are settled by id below.
        kth = np.partition(key, k - 1, axis=1)[:, k - 1 : k]
        width = int((key <= kth).sum(axis=1).max())
        near = np.argpartition(key, min(width, m) - 1, axis=1)[:, :width]
        key, found = np.take_along_axis(key, near, axis=1), np.take_along_axis(found, near, axis=1)
        ids = np.take_along_axis(ids, near, axis=1)
    order = np.lexsort((ids, key), axis=1)[:, :k]
    top_d, top_i = np.take_along_axis(found, order, axis=1), np.take_along_axis(ids, order, axis=1)
    if top_d.shape[1] < k:
        pad = ((0, 0), (0, k - top_d.shape[1]))
        top_d = np.pad(top_d, pad, constant_values=worst(metric))
        top_i = np.pad(top_i, pad, constant_values=-1)
    top_d[top_i < 0] = worst(metric)
    return np.ascontiguousarray(top_d), np.ascontiguousarray(top_i)


def once(found: FloatArray, ids: IntArray, metric: Metric) -> tuple[FloatArray, IntArray]:
    """The same results with each id once, by its better distance: ids of the others become -1.

    Parameters
    ----------
    found, ids : (nq, m) float32, (nq, m) int64
        As for ``best``.

    Returns
    -------
    found, ids : (nq, m) float32, (nq, m) int64
        Of each query in the order of the ids.
    """
    order = np.lexsort((found if metric == "l2" else -found, ids), axis=1)
    found, ids = np.take_along_axis(found, order, axis=1), np.take_along_axis(ids, order, axis=1)
    again = ids[:, 1:] == ids[:, :-1]
    ids[:, 1:][again] = -1
    return found, ids


def _allowed_rows(store: Store, allowed: IntArray, step: int) -> Iterator[tuple[IntArray, AnyArray]]:
    """Ids and rows of what is allowed, at most ``step`` rows at a time."""
    end = int(allowed[-1]) + 1 if len(allowed) else 0
    if len(allowed) < _FEW * end:
        for first in range(0, len(allowed), step):
            ids = allowed[first : first + step]
            yield ids, store.take(ids)
        return
    for block in store.blocks(step, stop=end):
        first, last = np.searchsorted(allowed, (block.start, block.start + len(block.rows)))
        if first == last:
            continue
        ids = allowed[first:last]
        yield ids, block.rows if len(ids) == len(block.rows) else block.rows[ids - block.start]


def merge_best(
    one: tuple[FloatArray, IntArray], two: tuple[FloatArray, IntArray], k: int, metric: Metric
) -> tuple[FloatArray, IntArray]:
    """The ``k`` best of two results for the same queries."""
    return best(np.concatenate((one[0], two[0]), axis=1), np.concatenate((one[1], two[1]), axis=1), k, metric)


def exhaustive(
    xq: FloatArray, k: int, store: Store, metric: Metric, allowed: IntArray, *, some_bad: bool = False
) -> tuple[FloatArray, IntArray]:
    """The ``k`` nearest of the rows ``allowed`` (ascending ids) by comparing all of them.

    Where they are many the store is read front to back once, in blocks; few rows are gathered. With
    ``some_bad`` rows with NaN or infinity, which no index holds, may be among them and are passed over.
    """
    keep = k + _MARGIN
    result = np.full((len(xq), 0), 0, np.float32), np.full((len(xq), 0), -1, np.int64)
    step = max(1, _SWEEP_BYTES // max(store.row_bytes, 4 * len(xq)))
    for ids, rows in _allowed_rows(store, allowed, step):
        x = as_float32(rows)
        if some_bad:
            finite = np.isfinite(x).all(axis=1)
            x, ids = x[finite], ids[finite]
        if metric == "cosine":
            x, _ = normalise(x)
        scores = xq @ x.T
        if metric == "l2":
            scores = np.einsum("ij,ij->i", x, x) - 2 * scores  # |q|² is the same for all rows
        result = merge_best(result, (scores, np.broadcast_to(ids, scores.shape)), keep, metric)
    ids = result[1]
    return best(distances(xq, ids, store, metric), ids, k, metric)
