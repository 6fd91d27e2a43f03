"""Several stores read as one: the parts' rows one after another."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import numpy as np

from ooc.errors import StoreError
from ooc.mapping import MapPool
from ooc.stores.base import Store, check_rows
from ooc.stores.mapped import MappedStore
from ooc.types import AnyArray, IntArray

__all__ = ["MultiStore"]

#: Parts that are not mapped and stay open.
_OPEN_PARTS = 32


class MultiStore(Store):
    """Stores of the same width and dtype, in the order given.

    Parameters
    ----------
    parts : iterable of Store
        At least one. They are the new store's from now on, which closes them, also when it raises.
    uri : str
        What opens the same parts again.

    Raises
    ------
    StoreError
        ``store-shape`` or ``store-dtype`` when the parts differ, naming the first two that do.

    Notes
    -----
    However many parts there are, a bounded number of files is open: mapped parts share one pool, and of
    the others those used last stay open while the rest are opened again when needed.
    """

    def __init__(self, parts: Iterable[Store], *, uri: str | None = None) -> None:
        self._pool = MapPool(random=True)
        self._parts: list[Store | None] = []
        self._recent: OrderedDict[int, Store] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        uris: list[str] = []
        counts, starts = [0], [np.zeros(1, np.int64)]
        self.mapped, self.chunk_bytes, self.n = True, 0, 0
        try:
            for part in parts:
                self._add(part)
                if not uris:
                    self.format, self.d, self.dtype = part.format, part.d, part.dtype
                    first = part.uri
                _check_alike(self, first, part)
                uris.append(part.uri)
                starts.append(part.chunk_starts[1:] + self.n)
                self.n += part.n
                counts.append(self.n)
                self.mapped &= part.mapped
                self.chunk_bytes = max(self.chunk_bytes, part.chunk_bytes)
        except BaseException:
            self.close()
            raise
        self._uris = uris
        self.uri = uri if uri is not None else json.dumps(uris) if all(uris) else ""
        self._starts = np.array(counts, np.int64)
        self.chunk_starts = np.concatenate(starts)

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop``: as the part gives them where they lie in one, else a copy."""
        self._check_span(start, stop)
        if start == stop:
            return np.empty((0, self.d), self.dtype)
        spans = list(self._spans(start, stop))
        if len(spans) == 1:
            part, begin, end = spans[0]
            return part.read(begin, end)
        self.will_need(start, stop)
        out = np.empty((stop - start, self.d), self.dtype)
        done = 0
        for part, begin, end in spans:
            out[done : done + end - begin] = part.read(begin, end)
            done += end - begin
        return out

    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, as a copy in the order asked for."""
        # All parts are asked before the first is waited for.
        self.will_take(rows)
        return self.gather(rows)

    def gather(self, rows: IntArray) -> AnyArray:
        """As ``take``, for rows that were asked for with ``will_take`` before."""
        rows = check_rows(rows, self.n)
        out = np.empty((len(rows), self.d), self.dtype)
        for i, at, inside in self._split(rows):
            out[at] = self._part(i).gather(inside)
        return out

    def will_take(self, rows: IntArray) -> int:
        """Start bringing in the rows with the given numbers; returns at once how many reads that is."""
        asked = 0
        for i, _, inside in self._split(check_rows(rows, self.n)):
            part = self._parts[i]
            if part is not None:
                asked += part.will_take(inside)
        return asked

    def will_need(self, start: int, stop: int) -> None:
        """Start bringing in rows ``start`` to ``stop``; returns at once."""
        for part, begin, end in self._spans(start, stop):
            part.will_need(begin, end)

    def forget(self, start: int, stop: int) -> None:
        """Let go of rows ``start`` to ``stop``."""
        for part, begin, end in self._spans(start, stop):
            part.forget(begin, end)

    def describe(self) -> str:
        """One line for people; a list of many parts is not spelled out."""
        line = super().describe()
        if not self.uri.startswith('["'):
            return line
        parts = f"{len(self._uris)} parts from {self._uris[0]} to {self._uris[-1]}"
        return line.replace(self.uri, parts, 1)

    def close(self) -> None:
        """Close every part; may be called twice."""
        self._closed = True
        for part in (*self._parts, *self._recent.values()):
            if part is not None:
                part.close()
        self._pool.close()

    def _add(self, part: Store) -> None:
        """Keep a part: open where it is mapped or in memory, else among those used last."""
        if isinstance(part, MappedStore):
            part.share(self._pool)
        if part.mapped or not part.uri:
            self._parts.append(part)
            return
        self._recent[len(self._parts)] = part
        self._parts.append(None)
        if len(self._recent) > _OPEN_PARTS:
            # Not closed: another thread may be reading from it. It goes with its last user.
            self._recent.popitem(last=False)

    def _part(self, i: int) -> Store:
        part = self._parts[i]
        if part is not None:
            return part
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.uri} was closed", kind="store-closed", hint="Open it again.")
            part = self._recent.pop(i, None)
            if part is None:
                from ooc.stores.opener import open_store

                part = open_store(self._uris[i])
                if part.n != self._starts[i + 1] - self._starts[i]:
                    raise StoreError(
                        f"{part.uri} changed while it was read as part of {self.uri}", kind="store-changed"
                    )
            self._recent[i] = part
            if len(self._recent) > _OPEN_PARTS:
                self._recent.popitem(last=False)
            return part

    def _split(self, rows: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
        """Which parts hold the rows, where in ``rows`` each one's stand, and its own numbers."""
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        for i in np.flatnonzero(np.diff(bounds)).tolist():
            at = order[bounds[i] : bounds[i + 1]]
            yield i, at, rows[at] - self._starts[i]

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Store, int, int]]:
        """The parts that hold rows ``start`` to ``stop``, each with its own span."""
        self._check_span(start, stop)
        i = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            offset, end = self._starts[i : i + 2].tolist()
            yield self._part(i), start - offset, min(stop, end) - offset
            start, i = end, i + 1


def _check_alike(store: MultiStore, first: str, part: Store) -> None:
    names = f"{first or 'an array in memory'} and {part.uri or 'an array in memory'}"
    if part.d != store.d:
        raise StoreError(
            f"the parts of a store differ in width: {names} have d = {store.d} and {part.d}",
            kind="store-shape",
        )
    if part.dtype != store.dtype:
        raise StoreError(
            f"the parts of a store differ in dtype: {names} hold {store.dtype.name} and {part.dtype.name}",
            kind="store-dtype",
            hint="Convert the parts to one dtype.",
        )
