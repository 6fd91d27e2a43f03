"""Writing stores: rows are appended, and what is recorded is on disk.

``create_store`` makes Zarr and HDF5 stores. A writer collects rows until a chunk is whole, writes it,
waits until the disk has it, and only then records the new number of rows: a process killed at any
instant leaves a store that opens and holds a prefix of what was appended. The formats are
``write_zarr`` and ``write_hdf5``; ``write_raw`` and ``write_arrow`` serve ``convert``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from ooc.durable import journal_name, remove_files, remove_tree, translated
from ooc.errors import ArgumentError, ConflictError, ResourceError
from ooc.stores.cast import as_rows, cast_rows, writable_dtype
from ooc.types import AnyArray, PathOrStr
from ooc.units import MIB

__all__ = [
    "ChunkedWriter",
    "StoreWriter",
    "create_store",
    "default_chunk_rows",
    "existing_parent",
    "lock_for_writing",
    "remove_unlocked",
    "split_name",
]

#: A chunk of this size: large enough for the disk, small enough to hold several.
_CHUNK_BYTES = 8 * MIB

ZARR_SUFFIXES = (".zarr",)
HDF5_SUFFIXES = (".h5", ".hdf5")


class StoreWriter(ABC):
    """A store that takes rows at its end.

    As a context manager it is closed when the block ends, well or not: the rows that were appended
    are kept.

    Attributes
    ----------
    uri : str
        What ``ooc.open_store`` takes to read it (absolute).
    d : int
        Columns.
    dtype : numpy.dtype
        What rows are stored as.
    n : int
        Rows of the store, with those not yet on disk.
    durable_n : int
        Rows that survive a crash at this moment; at most ``n``.
    """

    def __init__(self, uri: str, *, d: int, dtype: np.dtype[Any], n: int = 0) -> None:
        self.uri = uri
        self.d = d
        self.dtype = dtype
        self.n = n
        self.durable_n = n
        self._state: Literal["open", "failed", "closed"] = "open"

    @ResourceError.if_refused("appending to a store")
    def append(self, rows: AnyArray) -> None:
        """Append rows.

        When this returns, all whole chunks are on disk; the rest follows with ``flush`` or ``close``.

        Parameters
        ----------
        rows : (m, d) array
            Integers or floats. To a float dtype they are rounded to nearest, but a finite value must
            stay finite; to int8 or uint8 every value must be whole and in range.

        Raises
        ------
        DataError
            When the rows do not fit; none of them is taken.
        ResourceError
            When the disk refuses. The writer then takes no more: open the store with ``append=True``
            and go on from its ``n``.
        """
        self._check_open()
        cast = cast_rows(as_rows(rows, self.d), self.dtype, first=self.n)
        if len(cast) == 0:
            return
        try:
            self._put(cast)
        except BaseException:
            self._state = "failed"
            raise

    @ResourceError.if_refused("writing a store")
    def flush(self) -> None:
        """Bring every row to the disk, those of an unfinished chunk too."""
        self._check_open()
        try:
            self._sync()
        except BaseException:
            self._state = "failed"
            raise

    @ResourceError.if_refused("writing a store")
    def close(self) -> None:
        """Flush and give the files up; may be called twice."""
        if self._state == "closed":
            return
        try:
            if self._state == "open":
                self._finish()
        finally:
            self._state = "closed"
            self._release()

    def abandon(self) -> None:
        """Give the files up and leave on disk what is there, without a last flush."""
        if self._state != "closed":
            self._state = "failed"
            try:
                self._release()
            finally:
                self._state = "closed"

    def _check_open(self) -> None:
        if self._state == "closed":
            raise ArgumentError(f"{self.uri} is closed: nothing can be appended", kind="closed")
        if self._state == "failed":
            raise ResourceError(
                f"an earlier write to {self.uri} failed; {self.durable_n} rows are on disk",
                kind="writer-failed",
                hint="Open it again with append=True and go on from its n.",
            )

    @abstractmethod
    def _put(self, rows: AnyArray) -> None:
        """Take rows of the right shape and dtype; raises ``n``, and ``durable_n`` as far as it goes."""

    @abstractmethod
    def _sync(self) -> None:
        """Make all rows durable."""

    def _finish(self) -> None:
        """The last step of a writer that did not fail."""
        self._sync()

    @abstractmethod
    def _release(self) -> None:
        """Give up files and locks; nothing is written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ChunkedWriter(StoreWriter):
    """A writer that hands whole chunks on and keeps the rest in memory.

    Every write begins at the first row of a chunk, so that no chunk is ever read to be changed: an
    unfinished last chunk stays in memory after a flush and is written again, longer.

    Parameters
    ----------
    unit : int
        Rows that are written at once: a chunk's, or a shard's.
    """

    def __init__(self, uri: str, *, d: int, dtype: np.dtype[Any], unit: int, n: int = 0) -> None:
        super().__init__(uri, d=d, dtype=dtype, n=n)
        self.unit = unit
        self._tail = np.empty((0, d), dtype)
        self._held = 0

    def _keep(self, rows: AnyArray) -> None:
        if len(self._tail) == 0:
            self._tail = np.empty((self.unit, self.d), self.dtype)
        self._tail[self._held : self._held + len(rows)] = rows
        self._held += len(rows)

    def _put(self, rows: AnyArray) -> None:
        self.n += len(rows)
        if self._held:
            taken = min(self.unit - self._held, len(rows))
            self._keep(rows[:taken])
            rows = rows[taken:]
            if self._held == self.unit:
                self._write(self.n - len(rows) - self.unit, self._tail)
                self.durable_n, self._held = self.n - len(rows), 0
        whole = len(rows) - len(rows) % self.unit
        if whole:
            self._write(self.n - len(rows), rows[:whole])
            self.durable_n = self.n - len(rows) + whole
        if whole < len(rows):
            self._keep(rows[whole:])

    def _sync(self) -> None:
        if self.durable_n < self.n:
            self._write(self.n - self._held, self._tail[: self._held])
            self.durable_n = self.n

    @abstractmethod
    def _write(self, start: int, rows: AnyArray) -> None:
        """Write rows from ``start``, a multiple of ``unit``; return when they are on disk and recorded."""


def split_name(name: PathOrStr) -> tuple[Path, str | None]:
    """``PATH::/dataset`` → the path and the dataset without its slashes (None where none is named)."""
    path, mark, dataset = os.fspath(name).partition("::")
    return Path(path), (dataset.strip("/") or None) if mark else None


def default_chunk_rows(row_bytes: int, n: int | None = None) -> int:
    """Rows of a chunk of 4 to 8 MiB: a power of two, at most ``n``."""
    rows = 1 << (max(1, _CHUNK_BYTES // row_bytes).bit_length() - 1)
    return rows if n is None else max(1, min(rows, n))


def existing_parent(path: Path) -> Path:
    """The absolute path, of which the directory must be there.

    Raises
    ------
    ArgumentError
        When the directory is missing.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link that names the store
    if not path.parent.is_dir():
        raise ArgumentError(
            f"{path} cannot be written: the directory {path.parent} does not exist",
            kind="directory-missing",
            hint="Make the directory first.",
        )
    return path


def lock_for_writing(path: Path, *, shared: bool = False) -> int:
    """Lock an existing file or directory against a second writer; returns what ``os.close`` unlocks.

    The lock goes with the process. Where the file system has none (some network mounts) there is none.

    Raises
    ------
    ConflictError
        When another writer holds it.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        import fcntl

        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise ConflictError(
            f"{path} is in use",
            kind="store-busy",
            hint="Wait until its reader or writer is done: one writer at a time.",
        ) from None
    except (ImportError, OSError):
        pass
    return fd


def remove_unlocked(path: Path) -> None:
    """Remove what an earlier writer left unfinished, file or directory; nothing there is fine.

    Raises
    ------
    ConflictError
        When that writer is still at work.
    """
    if not path.exists():
        return
    fd = lock_for_writing(path)
    try:
        with translated(path, "removing"):
            if path.is_dir():
                remove_tree(path)
            remove_files([path, journal_name(path)])
    finally:
        os.close(fd)


@ResourceError.if_refused("creating a store")
def create_store(
    path: PathOrStr,
    *,
    d: int,
    dtype: Any = "float32",
    n: int | None = None,
    append: bool = False,
    chunk_rows: int | None = None,
    compression: str = "none",
    shard_rows: int | None = None,
    zarr_format: Literal[2, 3] = 3,
) -> StoreWriter:
    """Make a Zarr or HDF5 store and return its writer; or go on with one that is there.

    A process killed at any instant, or a power cut, leaves a store that ``open_store`` opens and that
    holds a prefix of the appended rows. Beside an HDF5 store lies a journal (``.NAME.journal``) while
    it grows; where one was left behind, opening it with ``append=True`` puts the file in order for
    other programs too.

    Parameters
    ----------
    path : path
        ``NAME.zarr`` or ``NAME.h5`` (``.hdf5``), with ``::/dataset`` for an array within (HDF5 without:
        ``vectors``). An HDF5 store has a file to itself.
    d : int
        Columns.
    dtype : dtype
        float32, float16, float64, int8 or uint8.
    n : int, optional
        Number of rows to come, where known. An uncompressed HDF5 store then lies in one piece; it
        appears under its name when closed with all its rows, and not at all otherwise. The others
        only choose their chunks by it.
    append : bool
        Go on after the last durable row of a store that is there (of the same ``d`` and ``dtype``; its
        chunks and compression stay). Where none is there, it is made.
    chunk_rows : int, optional
        Rows of a chunk; by default as many as take 4 to 8 MiB.
    compression : str
        ``"none"`` lets the store be memory-mapped. Zarr: zstd, gzip, lz4; HDF5: gzip, lzf.
    shard_rows : int, optional
        Rows of a shard (one file of many chunks), a multiple of ``chunk_rows``; Zarr 3 only.
    zarr_format : {3, 2}
        Version of the Zarr format.

    Raises
    ------
    ArgumentError
        When an argument is wrong.
    ConflictError
        When the store exists and ``append`` is not set, is of another shape or dtype, is in use, or
        (HDF5) was not made to be appended to. It is left as it is.
    ResourceError
        When the disk refuses.
    """
    if "://" in os.fspath(path):
        raise ArgumentError(
            f"{os.fspath(path)} cannot be written: stores are made on a local disk", kind="store-name"
        )
    file, dataset = split_name(path)
    wanted = writable_dtype(dtype)
    for name, value in (("d", d), ("n", n), ("chunk_rows", chunk_rows), ("shard_rows", shard_rows)):
        if value is not None and (isinstance(value, bool) or value < 1):
            raise ArgumentError(f"{name} must be at least 1, not {value}", kind="size")
    suffix = file.suffix.lower()
    chunk_rows = chunk_rows or default_chunk_rows(d * wanted.itemsize, n)
    if suffix in ZARR_SUFFIXES:
        from ooc.stores.write_zarr import ZarrWriter

        return ZarrWriter(
            existing_parent(file),
            dataset,
            d=d,
            dtype=wanted,
            append=append,
            chunk_rows=chunk_rows,
            compression=compression,
            shard_rows=shard_rows,
            zarr_format=zarr_format,
        )
    if suffix not in HDF5_SUFFIXES:
        raise ArgumentError(
            f"{file} has a name that no writable store has",
            kind="store-name",
            hint="Call it NAME.zarr or NAME.h5.",
        )
    if shard_rows is not None:
        raise ArgumentError("HDF5 has no shards", kind="shards", hint="Leave shard_rows out.")
    from ooc.stores.write_hdf5 import Hdf5Writer, contiguous_writer

    if n is not None and compression == "none" and not append:
        return contiguous_writer(existing_parent(file), dataset, n=n, d=d, dtype=wanted)
    return Hdf5Writer(
        existing_parent(file),
        dataset,
        d=d,
        dtype=wanted,
        append=append,
        chunk_rows=chunk_rows,
        compression=compression,
    )
