"""Spans of several stores read as one, whatever their dtypes: as float32.

Where they are mapped they are as quick as one: rows are found by their addresses (``ooc.stores.places``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ooc.errors import StoreError
from ooc.stores.base import Store, as_float32, check_rows
from ooc.stores.mapped import MappedStore
from ooc.stores.places import Places
from ooc.types import AnyArray, FloatArray, IntArray

__all__ = ["Span", "SpannedStore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """``rows`` rows from number ``first`` on of the store that ``open`` opens."""

    open: Callable[[], Store]
    first: int
    rows: int


class SpannedStore(Store):
    """Spans of stores one after another, each opened when the first of its rows is wanted.

    Safe from several threads. It has no ``uri``: what it is made of is known to whoever made it.

    Parameters
    ----------
    spans : sequence of Span
        At least one. Stores that they open are this store's, which closes them.
    d : int
    mapped : bool
        Whether all of them are mapped, as far as is known.

    Raises
    ------
    StoreError, ConflictError
        When rows are wanted: what opening a span's store raises.
    """

    def __init__(self, spans: Sequence[Span], d: int, *, mapped: bool) -> None:
        self._spans, self._lock = spans, threading.Lock()
        self._stores: list[Store | None] = [None] * len(spans)
        self._starts: IntArray = np.cumsum([0, *(span.rows for span in spans)])
        #: Of the spans that were opened, those rows that lie in memory; and which spans were.
        self._views: list[AnyArray | None] = [None] * len(spans)
        self._opened = np.zeros(len(spans), bool)
        self._places = Places(self._starts, self._views)
        self._closed = False
        self.uri, self.format, self.n, self.d = "", "spans", int(self._starts[-1]), d
        self.dtype, self.mapped = np.dtype(np.float32), mapped
        self.chunk_starts, self.chunk_bytes = np.array([0, self.n], np.int64), 0

    def _store(self, i: int) -> Store:
        store = self._stores[i]
        if store is not None:
            return store
        with self._lock:
            if self._closed:
                raise StoreError("the rows were closed", kind="store-closed", hint="Open the index again.")
            store = self._stores[i]
            if store is None:
                store = self._stores[i] = self._spans[i].open()
                if isinstance(store, MappedStore):
                    store.line_up()
                view, first = store.view(), self._spans[i].first
                self._views[i] = None if view is None else view[first : first + self._spans[i].rows]
                self._places = Places(self._starts, self._views)
                self._opened[i] = True
            return store

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop`` as float32."""
        self._check_span(start, stop)
        parts = [as_float32(self._store(i).read(a, b)) for i, a, b in self._within(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((0, self.d), np.float32), *parts])

    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, as a copy in the order asked for."""
        self.will_take(rows)
        return self.gather(rows)

    def in_place(self, rows: IntArray) -> tuple[FloatArray, IntArray] | None:
        """An array and which of its rows these are, where they lie in mapped files as float32."""
        spans, places = self._found(rows)
        return places.in_place(spans, rows)

    def gather(self, rows: IntArray) -> FloatArray:
        """As ``take``, for rows that were asked for with ``will_take`` before."""
        rows = check_rows(rows, self.n)
        spans, places = self._found(rows)
        if places.knows(spans):
            return as_float32(places.gather(spans, rows))
        out = np.empty((len(rows), self.d), np.float32)
        for i, at, inside in self._split(spans, rows):
            out[at] = self._store(i).gather(inside)
        return out

    def will_take(self, rows: IntArray) -> int:
        """Start bringing in the rows with the given numbers; returns at once how many reads that is."""
        rows = check_rows(rows, self.n)
        spans, places = self._found(rows)
        if places.knows(spans):
            return places.will_take(spans, rows)
        return sum(self._store(i).will_take(inside) for i, _, inside in self._split(spans, rows))

    def will_need(self, start: int, stop: int) -> None:
        """Start bringing in rows ``start`` to ``stop``; returns at once."""
        for i, first, last in self._within(start, stop):
            self._store(i).will_need(first, last)

    def forget(self, start: int, stop: int) -> None:
        """Let go of rows ``start`` to ``stop``."""
        for i, first, last in self._within(start, stop):
            self._store(i).forget(first, last)

    def close(self) -> None:
        """Close what was opened; may be called twice."""
        with self._lock:
            self._closed, stores = True, self._stores
            self._stores = [None] * len(self._spans)
            self._views = [None] * len(self._spans)
            self._places, self._opened = Places(self._starts, self._views), np.zeros(len(self._spans), bool)
        for store in stores:
            if store is not None:
                store.close()

    def _found(self, rows: IntArray) -> tuple[IntArray, Places]:
        """Which spans hold the rows, all of them opened, and where those are that lie in memory."""
        spans: IntArray = np.searchsorted(self._starts, rows, side="right") - 1
        opened = self._opened[spans]
        if not opened.all():
            for i in np.unique(spans[~opened]).tolist():
                self._store(i)
        return spans, self._places

    def _split(self, spans: IntArray, rows: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
        """Each of the spans, where in ``rows`` its rows stand, and their numbers in its store."""
        for i in np.unique(spans).tolist():
            at = np.flatnonzero(spans == i)
            yield i, at, rows[at] - self._starts[i] + self._spans[i].first

    def _within(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The spans that hold rows ``start`` to ``stop``, with the rows of each one's store."""
        self._check_span(start, stop)
        i = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            begin, end = self._starts[i : i + 2].tolist()
            shift = self._spans[i].first - begin
            yield i, start + shift, min(stop, end) + shift
            start, i = end, i + 1
