"""The nearest of many rows by comparing all of them.

The store is read front to back; a matrix product rules out what cannot be among the best, and the rest is
compared one by one (``ooc.search.sweep``): what is returned is never a distance out of the product of two
large matrices, and nothing is lost by its rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ooc.search.best import best
from ooc.search.sweep import TILE, Sweep
from ooc.search.trace import NOTHING, Trace
from ooc.stores.base import Store, as_float32
from ooc.types import AnyArray, FloatArray, IntArray, Metric

__all__ = ["exhaustive"]

#: Rows read at a time where all are compared.
_SWEEP_BYTES = 8 * 1024 * 1024
#: Up to this part of the rows is gathered rather than read past.
_FEW = 0.25
#: So many more are kept, since ties are settled by id, and rows come in another order.
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
    sweep = Sweep(xq, k + _MARGIN, metric)
    step = max(1, _SWEEP_BYTES // max(store.row_bytes, 4 * min(len(xq), TILE)))
    seen, bad = 0, np.empty(0, np.int64)
    for numbers, rows in _allowed_rows(store, allowed, step):
        trace.pause()
        x = as_float32(rows)
        if some_bad:
            bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
            if len(bad):
                x = x.copy()
                x[bad] = 0
        sweep.take(sweep.look_at(seen, x, bad))
        seen += len(numbers)
    found, places = sweep.result()
    if seen:
        places = np.where(places < 0, -1, allowed[places])
    return best(found, ids_of(places), k, metric)
