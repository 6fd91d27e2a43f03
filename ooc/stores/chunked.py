"""Stores whose rows must be decoded, a chunk at a time: compressed Zarr, filtered HDF5, Parquet."""

from __future__ import annotations

import threading
from abc import abstractmethod

import numpy as np

from ooc.errors import ResourceError, StoreError
from ooc.stores.base import Store, check_dtype, check_rows
from ooc.types import AnyArray, IntArray

__all__ = ["ChunkedStore"]


class ChunkedStore(Store):
    """Base of stores that decode.

    A format gives ``_decode``, and ``_decode_into`` where several chunks at once are cheaper than one
    by one. The last chunk that was decoded for a part of its rows is kept, so that reads that follow
    each other decode a chunk once, wherever they cut it.

    Parameters
    ----------
    uri, format : str
        As in ``Store``.
    shape : (n, d)
        Checked by the caller with ``check_shape``.
    dtype : numpy.dtype
        As stored; either byte order.
    chunk_starts : (c + 1,) int64
        First row of each chunk, ascending, then ``n``.
    """

    def __init__(
        self,
        *,
        uri: str,
        format: str,  # noqa: A002 - as the attribute is called
        shape: tuple[int, int],
        dtype: np.dtype[np.generic],
        chunk_starts: IntArray,
    ) -> None:
        self.uri, self.format = uri, format
        self.n, self.d = shape
        self.dtype = check_dtype(dtype, uri)
        self.mapped = False
        self.chunk_starts = chunk_starts
        self.chunk_bytes = int(np.diff(chunk_starts).max()) * self.row_bytes
        self._kept: tuple[int, AnyArray] | None = None
        self._lock = threading.Lock()
        self._closed = False

    @abstractmethod
    def _decode(self, index: int) -> AnyArray:
        """Rows ``chunk_starts[index]`` to ``chunk_starts[index + 1]``, ``(m, d)``, any byte order.

        Called from several threads.
        """

    def _decode_into(self, first: int, last: int, out: AnyArray) -> None:
        """Write the rows of chunks ``first`` to ``last`` (excluded) into ``out``."""
        starts = self.chunk_starts - self.chunk_starts[first]
        for i in range(first, last):
            out[starts[i] : starts[i + 1]] = self._decode(i)

    @ResourceError.if_refused("reading rows of a store")
    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop``: a read-only view of one decoded chunk, or an array of its own."""
        self._check_span(start, stop)
        self._check_open()
        if start == stop:
            return np.empty((0, self.d), self.dtype)
        starts = self.chunk_starts
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, stop, side="left"))  # excluded
        if last - first == 1:
            begin = int(starts[first])
            return self._chunk(first, keep=stop < starts[last])[start - begin : stop - begin]
        out = np.empty((stop - start, self.d), self.dtype)
        if starts[first] < start:
            head = self._chunk(first, keep=False)[start - int(starts[first]) :]
            out[: len(head)] = head
            first += 1
        cut = starts[last] > stop
        whole = last - 1 if cut else last
        if first < whole:
            self._decode_into(first, whole, out[int(starts[first]) - start : int(starts[whole]) - start])
        if cut:
            begin = int(starts[whole])
            out[begin - start :] = self._chunk(whole, keep=True)[: stop - begin]
        return out

    @ResourceError.if_refused("reading rows of a store")
    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, in the order asked for; each chunk is decoded once."""
        rows = check_rows(rows, self.n)
        self._check_open()
        out = np.empty((len(rows), self.d), self.dtype)
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self.chunk_starts)
        for i in np.flatnonzero(np.diff(bounds)).tolist():
            at = order[bounds[i] : bounds[i + 1]]
            out[at] = self._chunk(i, keep=True)[rows[at] - self.chunk_starts[i]]
        return out

    def close(self) -> None:
        """Give files and the kept chunk up; may be called twice."""
        self._closed = True
        with self._lock:
            self._kept = None

    def _chunk(self, index: int, *, keep: bool) -> AnyArray:
        """One decoded chunk, read-only: the kept one, or decoded now and kept where ``keep`` says so."""
        with self._lock:
            if self._kept is not None and self._kept[0] == index:
                rows = self._kept[1]
                if not keep:
                    self._kept = None
                return rows
            # Let go before decoding the next, so that one is held and not two.
            self._kept = None
        rows = np.asarray(self._decode(index), dtype=self.dtype)
        rows.flags.writeable = False
        if keep:
            with self._lock:
                self._kept = (index, rows)
        return rows

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.uri} was closed", kind="store-closed", hint="Open it again.")
