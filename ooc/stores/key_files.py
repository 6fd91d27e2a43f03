"""Files of keys: text, npy, columns of Parquet and Arrow, datasets of HDF5 and Zarr. Read block by block."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ooc.errors import ArgumentError, MissingExtraError, OocError, ResourceError, StoreError
from ooc.stores.choose import refuse_missing
from ooc.stores.formats import find_format
from ooc.stores.keys import BLOCK_KEYS, KeySource, from_sequence
from ooc.stores.opener import split_dataset
from ooc.stores.texts import Texts
from ooc.types import AnyArray, KeyKind

__all__ = ["arrow_values", "open_key_file"]

#: What is read of a text file at a time.
_TEXT_BYTES = 4 << 20


def open_key_file(text: str, kind: KeyKind | None) -> KeySource:
    """Keys in a file that is named as stores are.

    Raises
    ------
    StoreError
        It is not there, or cannot be read; ``dataset-missing``: it holds no such column or dataset.
    ArgumentError
        What it holds are no keys.
    MissingExtraError
        A package that reads it is not installed.
    """
    name, dataset = (text, None) if Path(text).exists() else split_dataset(text)
    path = Path(name).expanduser().absolute()
    if not path.exists():
        raise StoreError(f"there is no file of keys at {path}", kind="store-missing", hint="Check the path.")
    with _reading(path):
        found = find_format(path)
        format_ = "text" if found is None else found.name
        if path.is_dir() and found is None:
            raise ArgumentError(
                f"{path} is a directory", kind="keys", hint="Name a file, or an array of a Zarr group."
            )
        if format_ in ("text", "npy"):
            if dataset is not None:
                raise StoreError(f"{path} has no {dataset!r} in it", kind="dataset-missing")
            return _text(path, kind) if format_ == "text" else _npy(path, kind)
        if format_ in ("parquet", "arrow"):
            return _column(path, dataset, parquet=format_ == "parquet")
        if format_ == "hdf5":
            return _hdf5(path, dataset)
        if format_ == "zarr":
            return _zarr(path, dataset)
    raise ArgumentError(f"{path} holds vectors, no keys", kind="keys")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of the libraries beneath, as one that says where."""
    try:
        yield
    except OocError:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{path} cannot be read: the package {error.name} is not installed",
            hint="pip install 'ooc[parquet]', or give the keys as text.",
        ) from error
    except Exception as error:  # they raise what they like
        ResourceError.raise_if_lacking(error, f"reading {path}")
        raise StoreError(
            f"{path} cannot be read as keys: {error}", kind="store-format", hint="Copy or write it again."
        ) from error


def _checked(path: Path, read: Iterator[Any]) -> Iterator[Any]:
    with _reading(path):
        yield from read


def _text(path: Path, kind: KeyKind | None) -> KeySource:
    """A key a line."""
    whole = kind == "int64"
    with path.open("rb") as file:
        count, last = 0, b"\n"
        while piece := file.read(_TEXT_BYTES):
            count, last = count + piece.count(b"\n"), piece[-1:]
    n = count + (last != b"\n")

    def read() -> Iterator[Any]:
        row = 0
        for lines in _lines(path):
            yield _numbers(lines, path, row) if whole else lines
            row += len(lines)

    return KeySource(str(path), n, "int64" if whole else "str", lambda: _checked(path, read()))


def _lines(path: Path) -> Iterator[Texts]:
    """The lines of a text file; how they end is left out, and so is a byte order mark."""
    row, left = 0, b""
    with path.open("rb") as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        while piece := file.read(_TEXT_BYTES):
            piece = left + piece
            end = piece.rfind(b"\n") + 1
            piece, left = piece[:end], piece[end:]
            if piece:
                lines = _split(piece, path, row)
                yield lines
                row += len(lines)
    if left:
        yield _split(left + b"\n", path, row)


def _split(piece: bytes, path: Path, row: int) -> Texts:
    """Whole lines."""
    piece = piece.replace(b"\r\n", b"\n")
    try:
        piece.decode()
    except UnicodeDecodeError as error:
        at = row + piece.count(b"\n", 0, error.start)
        raise ArgumentError(
            f"line {at + 1} of {path} is no UTF-8 text: {error.reason}",
            kind="keys",
            hint="Write the file again as UTF-8, or give the keys in another format.",
        ) from error
    data = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero(data == 10)
    # Each line without its end is one byte shorter.
    offsets = np.concatenate(([0], ends - np.arange(len(ends))))
    return Texts(offsets.astype(np.int64), data[data != 10])


def _numbers(lines: Texts, path: Path, row: int) -> list[int]:
    numbers = []
    for i, line in enumerate(lines.strings()):
        try:
            numbers.append(int(line))
        except ValueError:
            raise ArgumentError(
                f"line {row + i + 1} of {path} is {line[:80]!r}: the keys of this index are whole numbers",
                kind="keys",
            ) from None
    return numbers


def _npy(path: Path, kind: KeyKind | None) -> KeySource:
    values: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    return from_sequence(values, str(path), kind)


def _column(path: Path, name: str | None, *, parquet: bool) -> KeySource:
    """A column of a Parquet or Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if parquet:
        with pq.ParquetFile(path, memory_map=True) as file:
            schema, n = file.schema_arrow, file.metadata.num_rows
    else:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            schema = reader.schema
            n = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
    fitting = [field.name for field in schema if _is_key(field.type)]
    wanted = (name or "").strip("/")
    if wanted not in fitting:
        there = f"Columns that can be: {', '.join(fitting)}." if fitting else None
        if wanted in schema.names:
            raise ArgumentError(
                f"column {wanted!r} of {path} is {schema.field(wanted).type}; "
                "keys are whole numbers or strings",
                kind="keys",
                hint=there,
            )
        what = f"{path} has no column {wanted!r}" if wanted else f"which column of {path} are the keys?"
        raise StoreError(what, kind="dataset-missing", hint=there)
    kind: KeyKind = "int64" if pa.types.is_integer(_values(schema.field(wanted).type)) else "str"

    def read() -> Iterator[Any]:
        if parquet:
            with pq.ParquetFile(path, memory_map=True) as file:
                for batch in file.iter_batches(BLOCK_KEYS, columns=[wanted]):
                    yield batch.column(0)
            return
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i).column(wanted)

    return KeySource(f"{path}::{wanted}", n, kind, lambda: _checked(path, read()))


def _values(type_: Any) -> Any:
    """What a column holds; of a dictionary, what is in that."""
    import pyarrow as pa

    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_key(type_: Any) -> bool:
    import pyarrow as pa

    held = _values(type_)
    return bool(pa.types.is_integer(held) or pa.types.is_string(held) or pa.types.is_large_string(held))


def arrow_values(array: Any, where: str, row: int) -> AnyArray | Texts:
    """Values of pyarrow as numbers or strings, without a Python object for each."""
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        at = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise ArgumentError(f"row {row + at} in {where} has no key", kind="keys", hint="Every row needs one.")
    if pa.types.is_integer(array.type):
        numbers: AnyArray = array.to_numpy(zero_copy_only=False)
        return numbers
    if not _is_key(array.type):
        raise ArgumentError(f"{where} holds {array.type}; keys are whole numbers or strings", kind="keys")
    array = array.cast(pa.large_string())
    array.validate(full=True)
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1]
    held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return Texts(offsets - offsets[0], held[offsets[0] : offsets[-1]])


def _hdf5(path: Path, name: str | None) -> KeySource:
    import h5py

    from ooc.stores.hdf5_journal import open_for_reading, see_read

    with open_for_reading(path) as file:
        found = file.get(name) if name else None
        if not isinstance(found, h5py.Dataset):
            there: dict[str, tuple[tuple[int, ...], str]] = {}
            file.visititems(functools.partial(_note, there))
            refuse_missing(str(path), name or "", there, what="dataset of keys")
        source = from_sequence(found, f"{path}::{name}")
        see_read(file)

    def read() -> Iterator[Any]:
        with open_for_reading(path) as file:
            for i in range(0, source.n, BLOCK_KEYS):
                keys = file[name][i : i + BLOCK_KEYS]
                see_read(file)
                yield keys

    return KeySource(source.where, source.n, source.kind, lambda: _checked(path, read()))


def _note(there: dict[str, tuple[tuple[int, ...], str]], name: str, item: Any) -> None:
    if hasattr(item, "shape") and len(item.shape or ()) == 1:
        there[f"/{name}"] = (item.shape, item.dtype.name)


def _zarr(path: Path, name: str | None) -> KeySource:
    import zarr

    root = zarr.open(str(path), mode="r")
    array: Any = root if isinstance(root, zarr.Array) and not name else None
    if array is None and name and not isinstance(root, zarr.Array):
        array = root.get(name.strip("/"))
    if not isinstance(array, zarr.Array):
        members = () if isinstance(root, zarr.Array) else root.members(max_depth=None)
        there = {
            f"/{key}": (tuple(item.shape), item.dtype.name)
            for key, item in members
            if isinstance(item, zarr.Array) and len(item.shape) == 1
        }
        refuse_missing(str(path), name or "", there, what="array of keys")
    source = from_sequence(array, f"{path}::{name}" if name else str(path))
    return KeySource(source.where, source.n, source.kind, lambda: _checked(path, source.read()))
