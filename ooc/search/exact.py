"""The nearest of many rows by comparing all of them.

The store is read front to back and a matrix product proposes, after which the best are compared one by
one (``ooc.search.rerank``): what is returned is never a distance out of the product of two large matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ooc.search.best import best, merge_best
from ooc.search.rerank import distances
from ooc.search.trace import NOTHING, Trace
from ooc.stores.base import Store, as_float32
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.vectors import normalise

__all__ = ["exhaustive"]

#: Rows read at a time where all are compared.
_SWEEP_BYTES = 8 * 1024 * 1024
#: Up to this part of the rows is gathered rather than read past.
_FEW = 0.25
#: A matrix product orders rows by distances with an error: this many more are computed exactly.
_MARGIN = 64


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


def exhaustive(
    xq: FloatArray,
    k: int,
    store: Store,
    metric: Metric,
    allowed: IntArray,
    ids_of: Callable[[IntArray], IntArray] = lambda rows: rows,
    *,
    some_bad: bool = False,
    trace: Trace = NOTHING,
) -> tuple[FloatArray, IntArray]:
    """The ``k`` nearest of the rows ``allowed`` (ascending) by comparing all of them: distances and ids.

    Where they are many the store is read front to back once, in blocks; few rows are gathered. With
    ``some_bad`` rows with NaN or infinity, which no index holds, may be among them and are passed over.
    """
    keep = k + _MARGIN
    result = np.full((len(xq), 0), 0, np.float32), np.full((len(xq), 0), -1, np.int64)
    step = max(1, _SWEEP_BYTES // max(store.row_bytes, 4 * len(xq)))
    for numbers, rows in _allowed_rows(store, allowed, step):
        trace.pause()
        x = as_float32(rows)
        if some_bad:
            finite = np.isfinite(x).all(axis=1)
            x, numbers = x[finite], numbers[finite]
        if metric == "cosine":
            x, _ = normalise(x)
        scores = xq @ x.T
        if metric == "l2":
            scores = np.einsum("ij,ij->i", x, x) - 2 * scores  # |q|² is the same for all rows
        result = merge_best(result, (scores, np.broadcast_to(numbers, scores.shape)), keep, metric)
    found = distances(xq, result[1], store, metric)
    return best(found, ids_of(result[1]), k, metric)
