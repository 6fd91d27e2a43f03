"""Rows of a fixed size after a header: npy, fvecs and bvecs, the big-ann files, contiguous HDF5.

The space is taken up front and rows are written where they belong, so that a writer can go on from
any row. Which rows are there is not told by the file: ``convert`` keeps a record of it beside, and
the file has its name only when it is whole.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ooc import disk
from ooc.durable import remove_file, rename, sync_directory, translated
from ooc.errors import ArgumentError, DataError
from ooc.mapping import drop_cached
from ooc.stores.write import StoreWriter, lock_for_writing
from ooc.types import AnyArray

__all__ = ["RAW_DTYPES", "RawLayout", "RawWriter", "raw_layout"]

#: What each suffix can hold; the first is taken where nothing is asked for.
RAW_DTYPES: dict[str, tuple[str, ...]] = {
    ".npy": ("float32", "float16", "float64", "int8", "uint8"),
    ".fvecs": ("float32",),
    ".bvecs": ("uint8",),
    ".fbin": ("float32",),
    ".f16bin": ("float16",),
    ".u8bin": ("uint8",),
    ".i8bin": ("int8",),
}

#: Written data is flushed and dropped from the page cache this often.
_FLUSH_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLayout:
    """Where rows lie in a file.

    Attributes
    ----------
    header : bytes
        What the file begins with; empty where it was made already.
    offset : int
        Byte of the first row.
    prefixed : bool
        Whether each row follows its length as int32 (fvecs, bvecs).
    """

    n: int
    d: int
    dtype: np.dtype[Any]
    offset: int
    header: bytes = b""
    prefixed: bool = False

    @property
    def stride(self) -> int:
        """Bytes from row to row."""
        return self.d * self.dtype.itemsize + 4 * self.prefixed

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.offset + self.n * self.stride

    def encode(self, rows: AnyArray) -> memoryview:
        """The rows as bytes of the file; copied only where they are prefixed or not contiguous."""
        if self.prefixed:
            pairs = np.empty(len(rows), np.dtype([("d", "<i4"), ("x", self.dtype, (self.d,))]))
            pairs["d"] = self.d
            pairs["x"] = rows
            return pairs.view(np.uint8).data
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def raw_layout(suffix: str, *, n: int, d: int, dtype: np.dtype[Any]) -> RawLayout:
    """The layout of a file with the given suffix, one of ``RAW_DTYPES``.

    Raises
    ------
    ArgumentError
        When the format cannot count so many rows or columns.
    """
    if suffix == ".npy":
        out = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            out, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n, d)}
        )
        header = out.getvalue()
        return RawLayout(n=n, d=d, dtype=dtype, offset=len(header), header=header)
    if suffix.endswith("vecs"):
        return RawLayout(n=n, d=d, dtype=dtype, offset=0, prefixed=True)
    if n >= 2**32:
        raise ArgumentError(
            f"{n} rows are more than {suffix} can count",
            kind="rows",
            hint="Choose .npy, .zarr or .h5.",
        )
    header = np.array([n, d], "<u4").tobytes()
    return RawLayout(n=n, d=d, dtype=dtype, offset=len(header), header=header)


class RawWriter(StoreWriter):
    """Writes the rows of a raw file in order, from any row on.

    Parameters
    ----------
    path : Path
        The file; made where it is missing.
    layout : RawLayout
        Where rows lie.
    uri : str
        What reads it when it is whole.
    start : int
        Rows that are there and durable already.
    publish : Path, optional
        Its final name: it is renamed when closed with all rows, and removed when closed with fewer.
    """

    def __init__(
        self, path: Path, layout: RawLayout, *, uri: str, start: int = 0, publish: Path | None = None
    ) -> None:
        super().__init__(uri, d=layout.d, dtype=layout.dtype, n=start)
        self._path = path
        self._layout = layout
        self._publish = publish
        self._fd = self._lock = -1
        with translated(path, "creating"):
            self._fd = disk.open_file(path, os.O_WRONLY | os.O_CREAT)
            try:
                self._lock = lock_for_writing(path)
                if start == 0:
                    disk.allocate(self._fd, path, layout.size)
                    disk.write(self._fd, path, memoryview(layout.header), 0)
                    disk.sync(self._fd, path)
                    sync_directory(path.parent)
            except BaseException:
                self._release()
                raise

    def _put(self, rows: AnyArray) -> None:
        if self.n + len(rows) > self._layout.n:
            raise DataError(
                f"{self.n + len(rows)} rows are more than the {self._layout.n} that were promised",
                kind="rows-shape",
                hint="Give the right n, or none.",
            )
        stride, pieces = self._layout.stride, max(1, _FLUSH_BYTES // self._layout.stride)
        with translated(self._path, "writing"):
            for begin in range(0, len(rows), pieces):
                piece = rows[begin : begin + pieces]
                at = self._layout.offset + self.n * stride
                disk.write(self._fd, self._path, self._layout.encode(piece), at)
                self.n += len(piece)
                if (self.n - self.durable_n) * stride >= _FLUSH_BYTES:
                    self._sync()

    def _sync(self) -> None:
        with translated(self._path, "writing"):
            disk.sync(self._fd, self._path, data_only=True)
            drop_cached(self._fd)
        self.durable_n = self.n

    def _finish(self) -> None:
        if self._publish is None:
            self._sync()
            return
        if self.n < self._layout.n:
            raise DataError(
                f"{self.n} of {self._layout.n} promised rows were appended; {self._publish} was not made",
                kind="rows-shape",
                hint="Append all rows, or leave n out where their number is not known.",
            )
        with translated(self._publish, "publishing"):
            disk.sync(self._fd, self._path)
            drop_cached(self._fd)
        rename(self._path, self._publish)
        self._publish = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._publish is not None:
            self.abandon()
        else:
            self.close()

    def _release(self) -> None:
        if self._publish is not None and self._fd >= 0:
            remove_file(self._path)  # promised whole, and not whole
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1
