"""Some rows of a store, read before a build: a code is chosen by them, and the machine's speed measured."""

from __future__ import annotations

import time

import numpy as np

from ooc.build.draw import draw_few
from ooc.build.rows import prepare
from ooc.stores import Store
from ooc.types import FloatArray, Metric

__all__ = ["QUERIES", "Glance"]

#: Rows that stand for all: one of so many, and how many at least and at most.
_ONE_OF, _LEAST_ROWS, _MOST_ROWS = 32, 512, 4096
#: And at most so many values, whatever the dimensions; but so many rows.
_MOST_VALUES, _FEW = 1 << 21, 64
#: Besides them rows that stand for queries.
QUERIES = 128


class Glance:
    """Rows that stand for the first ``n`` of a store, read once, when they are first asked for.

    Attributes
    ----------
    n : int
        Rows of the store that count.
    seconds : float
        What it took to read and prepare a row of them; 0 before that.
    """

    def __init__(self, store: Store, metric: Metric, seed: int, n: int | None = None) -> None:
        self.n = store.n if n is None else n
        self.seconds = 0.0
        self._store, self._metric, self._seed = store, metric, seed
        self._rows: FloatArray | None = None

    @property
    def rows(self) -> FloatArray:
        """Some rows ``(m, d)``, prepared, in the order of the store; what cannot be indexed is left out.

        The same rows, metric and seed give the same ones.
        """
        if self._rows is None:
            most = min(_MOST_ROWS, max(_MOST_VALUES // self._store.d, _FEW))
            count = min(max(self.n // _ONE_OF, _LEAST_ROWS), most)
            self._rows = self.read(count + QUERIES, self._seed)
        return self._rows

    def read(self, count: int, seed: int) -> FloatArray:
        """About so many other rows, as ``rows``."""
        began = time.perf_counter()
        numbers = draw_few(self._store, self.n, count, seed)
        self._store.will_take(numbers)
        prepared = prepare(self._store.gather(numbers), self._metric)
        rows = np.ascontiguousarray(prepared.x[prepared.comparable(self._metric)], dtype=np.float32)
        self.seconds = (time.perf_counter() - began) / len(numbers)
        return rows
