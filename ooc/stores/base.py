"""What a store is: ``n`` rows of ``d`` numbers, read in blocks or row by row, never whole.

Three kinds share the protocol. A mapped store hands out views of the file; a chunked store decodes
a chunk at a time, ahead of need; an array store is memory already. The rest of the package sees
only ``Store``.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import xxhash

from ooc.errors import ArgumentError, MissingExtraError, StoreError
from ooc.mapping import start_thread
from ooc.types import AnyArray, FloatArray, IntArray

__all__ = [
    "DTYPES",
    "Block",
    "Store",
    "as_float32",
    "bfloat16",
    "check_chunks",
    "check_dtype",
    "check_rows",
    "check_shape",
    "even_starts",
    "is_plain",
]

#: The dtypes a store may have, by name; bfloat16 needs the package ``ml_dtypes``.
DTYPES = ("float32", "float16", "float64", "int8", "uint8", "bfloat16")

#: Each chunk costs some tens of bytes of memory. More than this is damage, or chunks of hardly a row.
_MAX_CHUNKS = 1 << 24

#: A fingerprint looks at this many places, spread evenly over the rows, and at this many rows there.
_FINGERPRINT_PLACES = 32
_FINGERPRINT_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive rows of a store.

    ``rows`` is ``(m, d)`` in the store's dtype, read-only, and for a mapped store a view of the
    file: it stays right, but after the next two blocks were asked for its pages may be read again.
    """

    start: int
    rows: AnyArray


class Store(ABC):
    """A 2-d array ``(n, d)`` of vectors on disk, far away, or in memory.

    Attributes
    ----------
    uri : str
        What ``ooc.open_store`` takes to open it again from any directory (absolute); empty where
        nothing does: for an array in memory, and for rows with scales, which their index opens.
    format : str
        Short name of the format: ``"npy"``, ``"hdf5"``, ``"zarr"``, ...
    n, d : int
        Rows and columns.
    dtype : numpy.dtype
        One of ``DTYPES``, in native byte order.
    mapped : bool
        Whether rows are views of memory-mapped files, so that any row costs what its bytes cost.
    chunk_starts : (c + 1,) int64
        First row of each chunk, then ``n``. Reading a span that begins and ends at these decodes
        nothing twice. A store without chunks has one.
    chunk_bytes : int
        Private memory that holding one decoded chunk takes; 0 for a mapped store.
    """

    uri: str
    format: str
    n: int
    d: int
    dtype: np.dtype[np.generic]
    mapped: bool
    chunk_starts: IntArray
    chunk_bytes: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the store's dtype."""
        return self.d * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows in the store's dtype, before any compression."""
        return self.n * self.row_bytes

    @abstractmethod
    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop`` as ``(stop - start, d)`` in the store's dtype.

        A view of the file where the store is mapped and the rows lie together; do not write to it.
        Safe from several threads.

        Raises
        ------
        ArgumentError
            When the span is not within the store.
        """

    @abstractmethod
    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, ``(len(rows), d)``, C-contiguous, in the order asked for.

        Any order; repeats are allowed. What the rows need is asked of the disk all at once, or each
        chunk decoded once. Safe from several threads.

        Raises
        ------
        ArgumentError
            When a number is not in ``0 .. n - 1``.
        """

    def will_need(self, start: int, stop: int) -> None:  # noqa: B027 - advice, by default none
        """Start bringing in rows ``start`` to ``stop``; returns at once."""

    def will_take(self, rows: IntArray) -> int:
        """Start bringing in the rows with the given numbers; returns at once how many reads were asked for.

        ``take`` does it by itself; for those who have something to do before they ``gather`` the rows.
        """
        return 0

    def gather(self, rows: IntArray) -> AnyArray:
        """As ``take``, for rows that were asked for with ``will_take`` before."""
        return self.take(rows)

    def view(self) -> AnyArray | None:
        """All rows as one ``(n, d)`` array in the store's dtype, where they lie so; None where they do not.

        A view: nothing is read. Rows are evenly spaced, in memory or in one mapped file; numbers within a
        row are adjacent. It need not be aligned.
        """
        return None

    def in_place(self, rows: IntArray) -> tuple[FloatArray, IntArray] | None:
        """An array, and which of its rows the given ones are; None where they are not in memory as float32.

        Parameters
        ----------
        rows : (m,) int64
            Numbers of rows, all within the store: nothing is checked.

        Returns
        -------
        array : (..., d) float32
            C-contiguous, aligned. Nothing is read, and no other rows of it may be touched.
        places : (m,) int64
        """
        array = self.view()
        if array is None or not is_plain(array):
            return None
        return array, rows

    def forget(self, start: int, stop: int) -> None:  # noqa: B027 - advice, by default none
        """Let the memory and the page cache let go of rows ``start`` to ``stop``."""

    @abstractmethod
    def close(self) -> None:
        """Give files and mappings up; may be called twice."""

    def blocks(self, rows: int, *, start: int = 0, stop: int | None = None) -> Iterator[Block]:
        """Consecutive blocks of ``rows`` rows (the last may be shorter), the next one read ahead.

        A mapped store's pages are asked for one block ahead and let go one block behind; another
        store's blocks are read and decoded by a thread of their own while this one is used. At any
        time at most three blocks are held.

        Raises
        ------
        ArgumentError
            When ``rows`` is below 1 or the span is not within the store.
        """
        stop = self._check_blocks(rows, start, stop)
        if self.mapped:
            return self._mapped_blocks(rows, start, stop)
        return self._decoded_blocks(rows, start, stop)

    def _check_blocks(self, rows: int, start: int, stop: int | None) -> int:
        stop = self.n if stop is None else stop
        if rows < 1 or not 0 <= start <= stop <= self.n:
            raise ArgumentError(
                f"blocks of {rows} rows from {start} to {stop} do not fit a store of {self.n} rows",
                kind="rows",
            )
        return stop

    def _check_span(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n:
            raise ArgumentError(
                f"rows {start} to {stop} are not in this store: it has rows 0 to {self.n - 1}", kind="rows"
            )

    def _mapped_blocks(self, rows: int, start: int, stop: int) -> Iterator[Block]:
        self.will_need(start, min(start + rows, stop))
        for begin in range(start, stop, rows):
            end = min(begin + rows, stop)
            self.will_need(end, min(end + rows, stop))
            yield Block(start=begin, rows=self.read(begin, end))
            # One block behind: threads may still be at work on the last part of this one.
            self.forget(max(begin - rows, start), begin)
        self.forget(max(start, stop - rows), stop)

    def _decoded_blocks(self, rows: int, start: int, stop: int) -> Iterator[Block]:
        ready: queue.Queue[Block | BaseException | None] = queue.Queue(maxsize=1)
        enough = threading.Event()

        def put(item: Block | BaseException | None) -> bool:
            while not enough.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def work() -> None:
            try:
                for begin in range(start, stop, rows):
                    end = min(begin + rows, stop)
                    if not put(Block(start=begin, rows=self.read(begin, end))):
                        return
                    self.forget(begin, end)
                put(None)
            except BaseException as error:  # handed to the consumer, raised there
                put(error)

        thread = threading.Thread(target=work, name="ooc-read-ahead", daemon=True)
        start_thread(thread)
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            enough.set()
            thread.join()

    def fingerprint(self, n: int | None = None) -> str:
        """A short text that changes when the first ``n`` rows (default: all) do.

        Shape and dtype, and the values of four rows at 32 evenly spaced places: a store that was
        replaced, re-ordered or re-computed is noticed, a single edited row most likely is not.
        Growing is not a change: the fingerprint of the first ``n`` rows stays.
        """
        n = self.n if n is None else n
        if not 0 < n <= self.n:
            raise ArgumentError(f"a fingerprint of {n} rows of a store of {self.n}", kind="rows")
        digest = xxhash.xxh3_128(f"{n} {self.d} {self.dtype.name}".encode())
        last = max(n - _FINGERPRINT_ROWS, 0)
        places = sorted({round(last * i / (_FINGERPRINT_PLACES - 1)) for i in range(_FINGERPRINT_PLACES)})
        rows = np.unique(
            np.concatenate([np.arange(p, min(p + _FINGERPRINT_ROWS, n), dtype=np.int64) for p in places])
        )
        digest.update(self.take(rows).tobytes())
        return f"xxh3:{digest.hexdigest()}"

    def describe(self) -> str:
        """One line for people: what, how many, how it is read."""
        how = "mapped" if self.mapped else "decoded chunk by chunk"
        return (
            f"{self.uri or 'array in memory'} ({self.format}, {self.n} x {self.d} {self.dtype.name}, {how})"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.describe()}>"


def is_plain(array: AnyArray) -> bool:
    """Whether an array is what compiled code takes: float32, C-contiguous, aligned."""
    return array.dtype == np.float32 and array.flags.c_contiguous and array.flags.aligned


def as_float32(rows: AnyArray) -> FloatArray:
    """Rows as C-contiguous float32: the same array where it is that already, else a converted copy.

    float64 is rounded to nearest; a value beyond float32's range becomes infinite.
    """
    if rows.dtype == np.float32:
        return np.ascontiguousarray(rows, dtype=np.float32)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows, dtype=np.float32)


def bfloat16(where: str) -> np.dtype[np.generic]:
    """The dtype bfloat16, little-endian as on all platforms that have it.

    Raises
    ------
    MissingExtraError
        When the package ``ml_dtypes``, which knows it, is not installed.
    """
    try:
        import ml_dtypes
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{where} holds bfloat16, and the package ml_dtypes is not installed",
            hint="pip install 'ooc[bfloat16]'",
        ) from error
    dtype: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def check_dtype(dtype: np.dtype[np.generic], where: str) -> np.dtype[np.generic]:
    """The dtype in native byte order.

    Raises
    ------
    StoreError
        When it is not one of ``DTYPES``.
    """
    if dtype.name not in DTYPES:
        raise StoreError(
            f"{where} holds {dtype.name}; vectors must be one of {', '.join(DTYPES)}",
            kind="store-dtype",
            hint="Convert it first, for example with numpy's astype('float32').",
        )
    return dtype.newbyteorder("=")


def check_shape(shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """``(n, d)``.

    Raises
    ------
    StoreError
        When the shape is not 2-d, there are no rows or no columns, or more than can be counted.
    """
    if len(shape) != 2:
        raise StoreError(
            f"{where} is {len(shape)}-d {shape}; vectors must be a 2-d array (n, d)",
            kind="store-shape",
            hint="Reshape it to one row a vector.",
        )
    n, d = shape
    if n < 1 or d < 1:
        raise StoreError(f"{where} is empty: its shape is {shape}", kind="store-empty")
    if max(n, d) >= 2**62:
        raise StoreError(
            f"{where} says that its shape is {shape}, which no disk holds",
            kind="store-shape",
            hint="Its metadata is damaged.",
        )
    return int(n), int(d)


def check_chunks(count: int, where: str) -> None:
    """See that a store has no more chunks than can be kept track of.

    Raises
    ------
    StoreError
        ``store-chunks``, when there are more than 16 777 216.
    """
    if count > _MAX_CHUNKS:
        raise StoreError(
            f"{where} has {count} chunks; at most {_MAX_CHUNKS} can be read",
            kind="store-chunks",
            hint="Write it again with larger chunks, of some MB each.",
        )


def check_rows(rows: IntArray, n: int) -> IntArray:
    """Row numbers as a 1-d int64 array.

    Raises
    ------
    ArgumentError
        When they are not whole numbers in ``0 .. n - 1``.
    """
    array = np.asarray(rows)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ArgumentError(
            f"row numbers must be a 1-d array of integers, not {array.ndim}-d {array.dtype}", kind="rows"
        )
    array = array.astype(np.int64, copy=False)
    if array.size and (array.min() < 0 or array.max() >= n):
        bad = array[(array < 0) | (array >= n)][0]
        raise ArgumentError(f"row {bad} is not in this store: it has rows 0 to {n - 1}", kind="rows")
    return array


def even_starts(n: int, rows: int, where: str = "the store") -> IntArray:
    """``chunk_starts`` of ``n`` rows in chunks of ``rows`` rows, the last one shorter.

    Raises
    ------
    StoreError
        When there are more than ``check_chunks`` lets pass.
    """
    check_chunks(-(-n // rows), where)
    return np.append(np.arange(0, n, rows, dtype=np.int64), n)
