"""Parquet and Arrow/Feather files: a column of vectors, one row group or record batch at a time.

The column is a ``fixed_size_list`` or a ``list`` of which every row has the same length; what a chunk
holds is checked when it is read. Arrow files are memory-mapped: a batch that is not compressed costs
no copy.
"""

from __future__ import annotations

import struct
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ooc.errors import DataError, OocError, ResourceError, StoreError
from ooc.stores.base import Store, check_shape
from ooc.stores.chunked import ChunkedStore
from ooc.types import AnyArray

__all__ = ["ArrowStore", "ParquetStore", "open_arrow", "open_parquet"]

_DTYPES = {
    pa.float32(): "float32",
    pa.float16(): "float16",
    pa.float64(): "float64",
    pa.int8(): "int8",
    pa.uint8(): "uint8",
}

#: What pyarrow raises for a damaged file; ValueError where a name in it is not UTF-8.
_ERRORS = (pa.ArrowException, OSError, ValueError)


class _ColumnStore(ChunkedStore):
    """A column of vectors, decoded by what the file calls a chunk."""

    def __init__(
        self,
        path: Path,
        *,
        format: str,  # noqa: A002 - as the attribute is called
        field: pa.Field,
        d: int,
        lengths: list[int],
    ) -> None:
        if min(lengths, default=0) < 0:
            raise pa.ArrowInvalid(f"a chunk of {min(lengths)} rows")
        # An empty chunk would be a span without rows: it is left out, and its index kept.
        self._indices = [i for i, length in enumerate(lengths) if length]
        starts = np.concatenate(([0], np.cumsum([lengths[i] for i in self._indices], dtype=np.int64)))
        self._column = field.name
        self._guard = threading.Lock()
        uri = f"{path}::{field.name}"
        super().__init__(
            uri=uri,
            format=format,
            shape=check_shape((int(starts[-1]), d), uri),
            dtype=np.dtype(_DTYPES[field.type.value_type]),
            chunk_starts=starts.astype(np.int64),
        )

    @abstractmethod
    def _load(self, index: int) -> list[pa.Array]:
        """The column's arrays in chunk ``index`` of the file."""

    def _decode(self, index: int) -> AnyArray:
        row, stop = self.chunk_starts[index : index + 2].tolist()
        try:
            with self._guard:
                arrays = self._load(self._indices[index])
            for array in arrays:
                array.validate()
            if sum(map(len, arrays)) != stop - row:
                raise pa.ArrowInvalid(f"{sum(map(len, arrays))} rows where {stop - row} should be")
        except _ERRORS as error:
            raise ResourceError(
                f"rows {row} to {stop - 1} of {self.uri} cannot be read: {error}",
                kind="store-unreadable",
                hint="The file is damaged, or changed since it was opened: write it again.",
            ) from error
        parts = []
        for array in arrays:
            parts.append(_matrix(array, self.d, row, self.uri))
            row += len(array)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class ParquetStore(_ColumnStore):
    """A column of a Parquet file; a chunk is a row group."""

    def __init__(self, path: Path, file: pq.ParquetFile, field: pa.Field, d: int) -> None:
        meta = file.metadata
        lengths = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._file = file
        super().__init__(path, format="parquet", field=field, d=d, lengths=lengths)

    def _load(self, index: int) -> list[pa.Array]:
        return list(self._file.read_row_group(index, columns=[self._column]).column(self._column).chunks)

    def close(self) -> None:
        super().close()
        self._file.close()


class ArrowStore(_ColumnStore):
    """A column of an Arrow or Feather file; a chunk is a record batch."""

    def __init__(
        self,
        path: Path,
        source: pa.MemoryMappedFile,
        field: pa.Field,
        *,
        d: int,
        lengths: list[int],
        compressed: bool,
    ) -> None:
        # Leaving columns out saves their decompression, but makes copies where there is none to save.
        position = pa.ipc.open_file(source).schema.get_field_index(field.name)
        options = pa.ipc.IpcReadOptions(included_fields=[position]) if compressed else None
        self._source = source
        self._reader = pa.ipc.open_file(source, options=options)
        super().__init__(path, format="arrow", field=field, d=d, lengths=lengths)

    def _load(self, index: int) -> list[pa.Array]:
        return [self._reader.get_batch(index).column(self._column)]

    def close(self) -> None:
        super().close()
        self._source.close()


def open_parquet(path: Path, dataset: str | None) -> Store:
    """Open a column of a Parquet file.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str, optional
        The column; by default the only one that holds lists of numbers.

    Raises
    ------
    StoreError
        ``store-format``: not a Parquet file, or cut off. ``dataset-missing``: no such column, or more
        than one that could be meant. ``store-empty``: no rows.
    DataError
        When the first row is null.
    """
    with _reading(path, "Parquet"):
        file = pq.ParquetFile(path, memory_map=True)
    try:
        with _reading(path, "Parquet"):
            field = _choose(path, file.schema_arrow, dataset)
            d = _fixed_size(field)
            if d is None:
                first = next(file.iter_batches(batch_size=1, columns=[field.name]), None)
                d = _first_length(first.column(0) if first is not None else None, f"{path}::{field.name}")
            return ParquetStore(path, file, field, d)
    except BaseException:
        file.close()
        raise


def open_arrow(path: Path, dataset: str | None) -> Store:
    """Open a column of an Arrow file (Feather version 2 is the same); as ``open_parquet``."""
    with _reading(path, "an Arrow file"):
        source = pa.memory_map(str(path))
    try:
        with _reading(path, "an Arrow file"):
            reader = pa.ipc.open_file(source)
            lengths, compressed = _scan_batches(source, path)
            field = _choose(path, reader.schema, dataset)
            d = _fixed_size(field)
            if d is None:
                index = next((i for i, length in enumerate(lengths) if length), None)
                column = None if index is None else reader.get_batch(index).column(field.name)
                d = _first_length(column, f"{path}::{field.name}")
            return ArrowStore(path, source, field, d=d, lengths=lengths, compressed=compressed)
    except BaseException:
        source.close()
        raise


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Errors of pyarrow, as an error that says what to do."""
    try:
        yield
    except OocError:
        raise
    except (*_ERRORS, struct.error) as error:
        raise StoreError(
            f"{path} cannot be read as {what}: {error}",
            kind="store-format",
            hint="It may be cut off or of another format; Arrow streams and Feather version 1 are not read: "
            "write it again with pyarrow.feather.write_feather or pyarrow.parquet.write_table.",
        ) from error


def _is_vectors(type_: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_)
    return lists and type_.value_type in _DTYPES


def _choose(path: Path, schema: pa.Schema, dataset: str | None) -> pa.Field:
    """The column of vectors."""
    candidates = [field.name for field in schema if _is_vectors(field.type)]
    there = f"Columns of vectors in it: {', '.join(candidates)}." if candidates else None
    if dataset is not None:
        name = dataset.strip("/")
        if name in candidates:
            return schema.field(name)
        if name not in schema.names:
            raise StoreError(
                f"{path} has no column {name!r}",
                kind="dataset-missing",
                hint=there or f"It has {', '.join(schema.names)}, none with vectors.",
            )
        raise StoreError(
            f"column {name!r} of {path} is {schema.field(name).type}; vectors are lists of "
            f"{', '.join(_DTYPES.values())}",
            kind="store-dtype",
            hint=there,
        )
    if len(candidates) != 1:
        raise StoreError(
            f"{path} has {len(candidates) or 'no'} columns of vectors",
            kind="dataset-missing",
            hint=f"{there} Name one: '{path}::{candidates[0]}'."
            if candidates
            else f"It has {', '.join(schema.names) or 'no columns'}; vectors are lists of "
            f"{', '.join(_DTYPES.values())}.",
        )
    return schema.field(candidates[0])


def _fixed_size(field: pa.Field) -> int | None:
    return int(field.type.list_size) if pa.types.is_fixed_size_list(field.type) else None


def _first_length(column: pa.Array | None, where: str) -> int:
    if column is None or len(column) == 0:
        raise StoreError(f"{where} is empty: it has no rows", kind="store-empty")
    column.validate()
    if not column[0].is_valid:
        raise _null_row(where, 0)
    return len(column[0])


def _null_row(where: str, row: int) -> DataError:
    return DataError(
        f"row {row} of {where} is null, or has a null in it",
        kind="null-row",
        hint="Leave such rows out, or fill them, before the column is used.",
    )


def _matrix(array: pa.Array, d: int, row: int, where: str) -> AnyArray:
    """An array of lists as ``(len, d)``, a view of its values; ``row`` is the number of its first."""
    if array.null_count:
        raise _null_row(where, row + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]))
    if not pa.types.is_fixed_size_list(array.type):
        lengths = np.diff(array.offsets.to_numpy())
        if (lengths != d).any():
            first = int(np.flatnonzero(lengths != d)[0])
            raise DataError(
                f"row {row + first} of {where} has {lengths[first]} values; the first row has {d}",
                kind="rows-shape",
                hint="All rows of a store have one length.",
            )
    values = array.flatten()
    if values.null_count:
        place = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        raise _null_row(where, row + place // d)
    return np.asarray(values.to_numpy(zero_copy_only=True)).reshape(-1, d)


def _scan_batches(source: pa.MemoryMappedFile, path: Path) -> tuple[list[int], bool]:
    """Rows of each record batch, and whether any is compressed.

    From the messages alone: pyarrow would decompress every batch for it.

    The footer and the messages are flatbuffers (Arrow columnar format, "IPC file format").
    """
    size = source.size()
    (length,) = struct.unpack("<i", source.read_at(4, size - 10))
    footer = _read_at(source, size - 10 - length, length)
    lengths, compressed = [], False
    at = _flat_field(footer, _flat_root(footer), 3)
    if at is None:
        return [], False
    vector = at + struct.unpack_from("<I", footer, at)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    for i in range(count):
        offset, meta = struct.unpack_from("<qi", footer, vector + 4 + 24 * i)
        message = _read_at(source, offset, meta)
        # Since Arrow 0.15 a continuation mark comes before the length.
        message = message[8:] if message[:4] == b"\xff\xff\xff\xff" else message[4:]
        header = _flat_field(message, _flat_root(message), 2)
        if header is None:
            raise pa.ArrowInvalid(f"record batch {i} of {path} has no header")
        batch = header + struct.unpack_from("<I", message, header)[0]
        place = _flat_field(message, batch, 0)
        compressed |= _flat_field(message, batch, 3) is not None
        lengths.append(0 if place is None else struct.unpack_from("<q", message, place)[0])
    return lengths, compressed


def _read_at(source: pa.MemoryMappedFile, offset: int, length: int) -> bytes:
    if min(offset, length) < 0 or offset + length > source.size():
        raise pa.ArrowInvalid(f"{length} bytes at {offset} are not in the file")
    return bytes(source.read_at(length, offset))


def _flat_root(buffer: bytes) -> int:
    return int(struct.unpack_from("<I", buffer, 0)[0])


def _flat_field(buffer: bytes, table: int, field: int) -> int | None:
    """Where a field of a flatbuffer table lies; None where it has its default."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    place = 4 + 2 * field
    if place >= struct.unpack_from("<H", buffer, vtable)[0]:
        return None
    (offset,) = struct.unpack_from("<H", buffer, vtable + place)
    return table + offset if offset else None
