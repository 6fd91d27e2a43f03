"""An array in memory, or one that the caller mapped, as a store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ooc.stores.base import Block, Store, check_dtype, check_rows, check_shape
from ooc.types import AnyArray, IntArray

__all__ = ["ArrayStore"]


class ArrayStore(Store):
    """A 2-d numpy array, kept as it is: any strides, no copy, also where it is a ``numpy.memmap``.

    It has no ``uri``: what is built from it cannot find it again by itself.
    """

    def __init__(self, array: AnyArray) -> None:
        self.uri, self.format, self.mapped = "", "array", False
        self.n, self.d = check_shape(array.shape, "the array")
        self.dtype = check_dtype(array.dtype, "the array")
        self.chunk_starts = np.array([0, self.n], np.int64)
        self.chunk_bytes = 0
        self._array = array

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop``, a read-only view (a copy where the byte order is foreign)."""
        self._check_span(start, stop)
        rows = self._array[start:stop]
        if not rows.dtype.isnative:
            return rows.astype(self.dtype)
        view = rows.view()
        view.flags.writeable = False
        return view

    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, as a copy."""
        return np.ascontiguousarray(self._array[check_rows(rows, self.n)], dtype=self.dtype)

    def view(self) -> AnyArray | None:
        """The array itself, where its rows are evenly spaced."""
        array = self._array
        adjacent = array.strides[1] == array.itemsize and array.strides[0] >= 0
        return array if array.dtype.isnative and adjacent else None

    def close(self) -> None:
        """Nothing to give up: the array is its owner's."""

    def blocks(self, rows: int, *, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Consecutive blocks of ``rows`` rows, as views; nothing is read ahead."""
        stop = self._check_blocks(rows, start, stop)
        return self._mapped_blocks(rows, start, stop)

    def describe(self) -> str:
        """One line for people."""
        return f"array in memory ({self.n} x {self.d} {self.dtype.name})"
