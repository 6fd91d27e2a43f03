"""Exact neighbours of queries among rows that pass by once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

#: Rows compared with the queries at a time.
TILE = 2_048
#: Queries compared with a tile at a time.
_QUERIES = 1_024


class Nearest:
    """The ``k`` rows of greatest inner product with each query, of all rows that were added.

    Products are those of float32: of two rows whose products differ by less than its rounding (about
    1e-6) either may come first. Equal products are in order of row.

    Attributes
    ----------
    ids : (nq, k) int64
        Rows, the nearest first; -1 where fewer than ``k`` were added.
    similarities : (nq, k) float32
        Their inner products; ``-inf`` where there is no row.
    """

    def __init__(self, queries: FloatArray, k: int) -> None:
        self._queries = queries
        self._k = k
        self.ids: IntArray = np.full((len(queries), k), -1, np.int64)
        self.similarities: FloatArray = np.full((len(queries), k), -np.inf, np.float32)
        self._found: list[tuple[IntArray, IntArray, FloatArray]] = []  # query, row, product
        self._found_count = 0
        self._products: FloatArray | None = None  # made when it is needed

    def add(self, rows: FloatArray, first: int) -> None:
        """Compare up to ``TILE`` rows, of which the first is row ``first``, with all queries."""
        if len(self._queries) == 0:
            return
        if self._products is None:
            self._products = np.empty(min(len(self._queries), _QUERIES) * TILE, np.float32)
        m = len(rows)
        worst = self.similarities[:, -1]
        for start in range(0, len(self._queries), _QUERIES):
            group = slice(start, start + _QUERIES)
            queries = self._queries[group]
            products = self._products[: len(queries) * m].reshape(len(queries), m)
            np.matmul(queries, rows.T, out=products)
            least = worst[group]
            if m >= self._k and np.isneginf(least).any():
                # Nothing to compare with yet: the k-th of this tile alone is a bound already.
                least = np.maximum(least, np.partition(products, m - self._k, axis=1)[:, m - self._k])
            query, row = np.nonzero(products >= least[:, None])
            self._found.append((query + start, row + first, products[query, row]))
            self._found_count += len(query)
        if self._found_count >= self.ids.size:
            self.settle()

    def merge(self, other: tuple[IntArray, FloatArray]) -> None:
        """Add what another process found among other rows: its ``ids`` and ``similarities``."""
        ids, similarities = other
        query, column = np.nonzero(ids >= 0)
        self._found.append((query, ids[query, column], similarities[query, column]))
        self.settle()

    def settle(self) -> None:
        """Keep the best of what was found; ``ids`` and ``similarities`` are right after it."""
        kept_query, kept_column = np.nonzero(self.ids >= 0)
        self._found.append(
            (kept_query, self.ids[kept_query, kept_column], self.similarities[kept_query, kept_column])
        )
        query, row, product = (np.concatenate(part) for part in zip(*self._found, strict=True))
        self._found, self._found_count = [], 0
        order = np.lexsort((row, -product, query))
        query = query[order]
        starts = np.searchsorted(query, np.arange(len(self.ids)))
        place = np.arange(len(query)) - starts[query]
        best = place < self._k
        query, place, order = query[best], place[best], order[best]
        self.ids[query, place] = row[order]
        self.similarities[query, place] = product[order]
