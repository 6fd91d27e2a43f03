"""Several stores read as one: the parts' rows one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ooc.errors import StoreError
from ooc.mapping import MapPool
from ooc.stores.base import Store, check_rows
from ooc.stores.mapped import MappedStore
from ooc.types import AnyArray, IntArray

__all__ = ["MultiStore"]


class MultiStore(Store):
    """Stores of the same width and dtype, in the order given.

    Parameters
    ----------
    parts : sequence of Store
        At least one. They are the new store's from now on, which closes them.
    uri : str
        What opens the same parts again.

    Raises
    ------
    StoreError
        ``store-shape`` or ``store-dtype`` when the parts differ, naming the first two that do.
    """

    def __init__(self, parts: Sequence[Store], *, uri: str) -> None:
        first = parts[0]
        for part in parts:
            if part.d != first.d:
                raise StoreError(
                    f"the parts of a store differ in width: {_name(first)} has d = {first.d}, "
                    f"{_name(part)} has d = {part.d}",
                    kind="store-shape",
                )
            if part.dtype != first.dtype:
                raise StoreError(
                    f"the parts of a store differ in dtype: {_name(first)} holds {first.dtype.name}, "
                    f"{_name(part)} holds {part.dtype.name}",
                    kind="store-dtype",
                    hint="Convert the parts to one dtype.",
                )
        self.uri, self.format = uri, first.format
        self.d, self.dtype = first.d, first.dtype
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(part.n for part in parts)], dtype=np.int64)
        self.n = int(self._starts[-1])
        self.mapped = all(part.mapped for part in parts)
        self.chunk_starts = np.concatenate(
            [
                np.zeros(1, np.int64),
                *(p.chunk_starts[1:] + s for p, s in zip(parts, self._starts[:-1], strict=True)),
            ]
        )
        self.chunk_bytes = max(part.chunk_bytes for part in parts)
        # One bound on open mappings for all parts together.
        self._pool = MapPool(random=True)
        for part in parts:
            if isinstance(part, MappedStore):
                part.share(self._pool)

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
        rows = check_rows(rows, self.n)
        out = np.empty((len(rows), self.d), self.dtype)
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        for i in np.flatnonzero(np.diff(bounds)).tolist():
            at = order[bounds[i] : bounds[i + 1]]
            out[at] = self._parts[i].take(rows[at] - self._starts[i])
        return out

    def will_need(self, start: int, stop: int) -> None:
        """Start bringing in rows ``start`` to ``stop``; returns at once."""
        for part, begin, end in self._spans(start, stop):
            part.will_need(begin, end)

    def forget(self, start: int, stop: int) -> None:
        """Let go of rows ``start`` to ``stop``."""
        for part, begin, end in self._spans(start, stop):
            part.forget(begin, end)

    def close(self) -> None:
        """Close every part; may be called twice."""
        for part in self._parts:
            part.close()
        self._pool.close()

    def _spans(self, start: int, stop: int) -> Iterator[tuple[Store, int, int]]:
        """The parts that hold rows ``start`` to ``stop``, each with its own span."""
        self._check_span(start, stop)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for i in range(first, len(self._parts)):
            offset = int(self._starts[i])
            if offset >= stop:
                return
            yield self._parts[i], max(start - offset, 0), min(stop - offset, self._parts[i].n)


def _name(store: Store) -> str:
    return store.uri or "an array in memory"
