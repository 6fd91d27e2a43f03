"""Rows of several stores by their addresses, so that one call reaches them all.

A process has one address space: rows that lie in many mapped files are bytes at so many places of one very
long array, most of which is nobody's. Where their distances from each other are multiples of a row they are
even rows of one array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ooc.mapping import ask_for_each, between
from ooc.stores.base import is_plain
from ooc.stores.mapped import gather_bytes
from ooc.types import AnyArray, FloatArray, IntArray

__all__ = ["Places"]


class Places:
    """Where the rows of some arrays are that stand for spans of rows. Never changes; keeps the arrays.

    Parameters
    ----------
    starts : (s,) int64
        Number of the first row of each span.
    views : sequence of (m, d) arrays or None
        The rows of each span; None where they do not lie in memory. Those that have another dtype than the
        first ones are passed over, too.
    """

    def __init__(self, starts: IntArray, views: Sequence[AnyArray | None]) -> None:
        there = [(i, view) for i, view in enumerate(views) if view is not None]
        self._dtype: np.dtype[Any] = there[0][1].dtype if there else np.dtype(np.float32)
        self._known = np.zeros(len(views), bool)
        self._at, self._strides = np.zeros((2, len(views)), np.int64)
        #: Spans whose rows are even rows of ``_array``, and by how much their numbers are moved there.
        self._lined, self._moved = np.zeros(len(views), bool), np.zeros(len(views), np.int64)
        if not there:
            return
        alike = [(i, view) for i, view in there if view.dtype == self._dtype]
        d = there[0][1].shape[1]
        self._width = d * self._dtype.itemsize
        self._bytes = between([view for _, view in alike])
        self._low = self._bytes.ctypes.data
        for i, view in alike:
            self._known[i], self._strides[i] = True, view.strides[0]
            self._at[i] = view.ctypes.data - int(starts[i]) * view.strides[0]
        plain = [(i, view) for i, view in alike if is_plain(view)]
        if plain:
            # Most often all of them; those that are not even with the first are gathered.
            remainder = plain[0][1].ctypes.data % self._width
            lined = [(i, view) for i, view in plain if view.ctypes.data % self._width == remainder]
            data = between([view for _, view in lined])
            self._array: FloatArray = data.view(np.float32).reshape(-1, d)
            for i, view in lined:
                self._lined[i] = True
                self._moved[i] = (view.ctypes.data - data.ctypes.data) // self._width - int(starts[i])

    def knows(self, spans: IntArray) -> bool:
        """Whether the rows of all of these spans, one at least, lie in memory and have the same dtype."""
        return len(spans) > 0 and bool(self._known[spans].all())

    def in_place(self, spans: IntArray, rows: IntArray) -> tuple[FloatArray, IntArray] | None:
        """As ``Store.in_place``, of ``rows`` ``(m,)`` that are in ``spans`` ``(m,)``."""
        if not len(spans) or not self._lined[spans].all():
            return None
        return self._array, rows + self._moved[spans]

    def gather(self, spans: IntArray, rows: IntArray) -> AnyArray:
        """The rows ``(m, d)`` as they are, all of which are known."""
        offsets = self._addresses(spans, rows) - self._low
        gathered: AnyArray = gather_bytes(self._bytes, offsets, self._width).view(self._dtype)
        return gathered.reshape(len(rows), -1)

    def will_take(self, spans: IntArray, rows: IntArray) -> int:
        """Start reading rows, all of which are known; how many reads that is."""
        return ask_for_each(self._addresses(spans, rows), self._width)

    def _addresses(self, spans: IntArray, rows: IntArray) -> IntArray:
        return self._at[spans] + rows * self._strides[spans]
