"""Parquet and Arrow/Feather files in the making: one row group, or record batch, after another.

Both formats say where things lie at the end of the file: it cannot be gone on with, and a conversion
to them that was interrupted starts over.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from ooc import disk
from ooc.durable import translated
from ooc.errors import ArgumentError, MissingExtraError
from ooc.mapping import drop_cached
from ooc.stores.write import ChunkedWriter, lock_for_writing
from ooc.types import AnyArray

__all__ = ["ARROW_COMPRESSIONS", "ARROW_SUFFIXES", "PARQUET_COMPRESSIONS", "PARQUET_SUFFIXES", "ArrowWriter"]

PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
PARQUET_COMPRESSIONS = ("none", "zstd", "gzip", "lz4", "snappy")
ARROW_COMPRESSIONS = ("none", "zstd", "lz4")


class ArrowWriter(ChunkedWriter):
    """Writes one column of fixed-size lists.

    Nothing is durable before ``close``: ``flush`` does nothing and ``durable_n`` stays 0.

    Parameters
    ----------
    path : Path
        The file; written over.
    parquet : bool
        Parquet, or else the Arrow file format (which Feather is).
    column : str, optional
        The column's name (``vector``).
    chunk_rows : int
        Rows of a row group or record batch.

    Raises
    ------
    MissingExtraError
        When pyarrow is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        parquet: bool,
        column: str | None,
        uri: str,
        d: int,
        dtype: np.dtype[Any],
        chunk_rows: int,
        compression: str = "none",
    ) -> None:
        try:
            import pyarrow as pa
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{uri} cannot be written: the package pyarrow is not installed",
                hint="pip install 'ooc[parquet]'",
            ) from error
        known = PARQUET_COMPRESSIONS if parquet else ARROW_COMPRESSIONS
        if compression not in known:
            raise ArgumentError(
                f"{path.suffix} files are not written with compression {compression!r}",
                kind="compression",
                hint=f"Choose one of {', '.join(known)}.",
            )
        super().__init__(uri, d=d, dtype=dtype, unit=chunk_rows)
        self._path = path
        self._type = pa.list_(pa.from_numpy_dtype(dtype), d)
        self._schema = pa.schema([pa.field(column or "vector", self._type, nullable=False)])
        self._writer: Any = None
        with translated(path, "creating"):
            self._file: Any = disk.step("create", path, path.open, "wb")
        self._lock = -1
        try:
            self._lock = lock_for_writing(path)
            if parquet:
                import pyarrow.parquet as pq

                # Vectors hardly repeat: a dictionary would be built and thrown away.
                self._writer = pq.ParquetWriter(
                    self._file, self._schema, compression=compression, use_dictionary=False
                )
            else:
                options = pa.ipc.IpcWriteOptions(compression=None if compression == "none" else compression)
                self._writer = pa.ipc.new_file(self._file, self._schema, options=options)
        except BaseException:
            self._release()
            raise

    def _write(self, start: int, rows: AnyArray) -> None:
        import pyarrow as pa

        with translated(self._path, "writing"):
            for begin in range(0, len(rows), self.unit):
                piece = np.ascontiguousarray(rows[begin : begin + self.unit])
                column = pa.FixedSizeListArray.from_arrays(pa.array(piece.reshape(-1)), type=self._type)
                batch = pa.record_batch([column], schema=self._schema)
                disk.step("write", self._path, self._writer.write_batch, batch)
            self._bring_to_disk()

    def _bring_to_disk(self) -> None:
        disk.step("write", self._path, self._file.flush)
        disk.sync(self._file.fileno(), self._path)
        drop_cached(self._file.fileno())

    def _put(self, rows: AnyArray) -> None:
        super()._put(rows)
        self.durable_n = 0

    def _sync(self) -> None:
        pass

    def _finish(self) -> None:
        if self._held:
            self._write(self.n - self._held, self._tail[: self._held])
        with translated(self._path, "writing"):
            writer, self._writer = self._writer, None
            disk.step("write", self._path, writer.close)
            self._bring_to_disk()
        self.durable_n = self.n

    def _release(self) -> None:
        if hasattr(self._writer, "is_open"):
            self._writer.is_open = False  # or pyarrow would write a footer when it is collected
        self._writer = None
        # What is still in its buffer was given up, or is on the disk.
        with contextlib.suppress(OSError):
            self._file.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
