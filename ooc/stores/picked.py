"""Some rows of a store, in an order of one's own, as a store."""

from __future__ import annotations

import numpy as np

from ooc.errors import ArgumentError
from ooc.stores.base import Store, check_rows
from ooc.types import AnyArray, IntArray

__all__ = ["PickedStore", "RangeStore"]


class RangeStore(Store):
    """Rows ``first`` to ``stop`` of a store, numbered from 0. The store stays its owner's.

    Raises
    ------
    ArgumentError
        The span is empty or not within the store.
    """

    def __init__(self, store: Store, first: int, stop: int) -> None:
        if not 0 <= first < stop <= store.n:
            raise ArgumentError(f"rows {first} to {stop} are not in a store of {store.n} rows", kind="rows")
        self._store, self._first = store, first
        self.uri, self.format, self.mapped = store.uri, store.format, store.mapped
        self.n, self.d, self.dtype = stop - first, store.d, store.dtype
        inside = store.chunk_starts[(store.chunk_starts > first) & (store.chunk_starts < stop)]
        self.chunk_starts = np.concatenate(([0], inside - first, [self.n])).astype(np.int64)
        self.chunk_bytes = store.chunk_bytes

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop``, as the store gives them."""
        self._check_span(start, stop)
        return self._store.read(start + self._first, stop + self._first)

    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, in the order asked for."""
        return self._store.take(check_rows(rows, self.n) + self._first)

    def gather(self, rows: IntArray) -> AnyArray:
        """As ``take``, for rows that were asked for with ``will_take`` before."""
        return self._store.gather(check_rows(rows, self.n) + self._first)

    def will_take(self, rows: IntArray) -> int:
        """Start bringing in the rows with the given numbers."""
        return self._store.will_take(check_rows(rows, self.n) + self._first)

    def will_need(self, start: int, stop: int) -> None:
        """Start bringing in rows ``start`` to ``stop``."""
        self._store.will_need(start + self._first, stop + self._first)

    def forget(self, start: int, stop: int) -> None:
        """Let go of rows ``start`` to ``stop``."""
        self._store.forget(start + self._first, stop + self._first)

    def close(self) -> None:
        """Nothing to give up: the store is its owner's."""


class PickedStore(Store):
    """The rows of a store with the given numbers, in their order. The store stays its owner's.

    Parameters
    ----------
    rows : (n,) int64
        Numbers of rows of the store; at least one.
    """

    def __init__(self, store: Store, rows: IntArray) -> None:
        self._store, self._rows = store, check_rows(rows, store.n)
        # Rows lie anywhere: blocks are gathered, by a thread that reads ahead.
        self.uri, self.format, self.mapped = "", store.format, False
        self.n, self.d, self.dtype = len(rows), store.d, store.dtype
        self.chunk_starts = np.array([0, self.n], np.int64)
        self.chunk_bytes = store.chunk_bytes

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop`` of those that were picked, gathered."""
        self._check_span(start, stop)
        return self._store.take(self._rows[start:stop])

    def take(self, rows: IntArray) -> AnyArray:
        """The picked rows with the given numbers, in the order asked for."""
        return self._store.take(self._rows[check_rows(rows, self.n)])

    def close(self) -> None:
        """Nothing to give up: the store is its owner's."""
