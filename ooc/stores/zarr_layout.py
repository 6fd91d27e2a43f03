"""Where the bytes of an uncompressed Zarr array lie, from its metadata alone.

Reads the metadata itself, so that mapping an array does not import zarr, which takes longer than the
search it is wanted for. Whatever it does not understand it leaves to zarr, by answering ``None``.

Formats: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html, .../v3/core/index.html, and
.../v3/codecs/sharding-indexed/index.html.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ooc.errors import StoreError
from ooc.stores.base import DTYPES, bfloat16, check_chunks, check_shape
from ooc.stores.inside import refuse_outside
from ooc.stores.mapped import MappedStore, Tiles
from ooc.types import AnyArray

__all__ = ["is_array", "map_array"]

#: Offset and length of an inner chunk that a shard does not hold.
_ABSENT = 2**64 - 1
_CRC_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """What the metadata says: chunks of raw numbers, one file each, or shards of such chunks."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    files: tuple[int, int]
    """Rows and columns that one file holds."""
    chunks: tuple[int, int]
    prefix: str
    separator: str
    fill: Any
    index_bytes: int = 0
    """Bytes of a shard's index; 0 where there are no shards."""
    index_at_end: bool = True


def is_array(node: Path) -> bool:
    """Whether a directory is a Zarr array."""
    return (node / ".zarray").is_file() or _metadata(node).get("node_type") == "array"


def map_array(node: Path, uri: str, root: Path) -> MappedStore | None:
    """Map a Zarr array in the directory of a store, or ``None`` where zarr has to decode it.

    Raises
    ------
    StoreError
        When its metadata is not JSON, it is not 2-d or empty, a chunk is cut off, or a link leads out of
        the store.
    MissingExtraError
        When it holds bfloat16 and ``ml_dtypes`` is not installed.
    """
    meta = _metadata(node)
    try:
        layout = _layout_v2(meta) if meta.get("zarr_format") == 2 else _layout_v3(meta, uri)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
    if layout is None or not _makes_sense(layout):
        return None
    shape = check_shape(layout.shape, uri)
    down, across = (-(-n // step) for n, step in zip(shape, layout.files, strict=True))
    check_chunks(down * across, str(node))
    paths = _Paths(f"{node}/{layout.prefix}", layout.separator, across)
    sizes = _sizes(paths, down, root)
    tiles = (_sharded_tiles if layout.index_bytes else _plain_tiles)(node, layout, shape, paths, sizes)
    if tiles is None:
        return None
    return MappedStore(uri=uri, format="zarr", shape=shape, dtype=layout.dtype, tiles=tiles)


def _makes_sense(layout: _Layout) -> bool:
    """Whether sizes are whole numbers that fit together; zarr says what is wrong where they do not."""
    sizes = (*layout.files, *layout.chunks)
    return (
        all(type(size) is int for size in (*layout.shape, *sizes))
        and all(size > 0 for size in sizes)
        and all(f % c == 0 for f, c in zip(layout.files, layout.chunks, strict=True))
        and layout.separator in (".", "/")
    )


def _metadata(node: Path) -> dict[str, Any]:
    for name in (".zarray", "zarr.json"):
        try:
            if not stat.S_ISREG((node / name).lstat().st_mode):
                refuse_outside(node / name, node, of=str(node))
            meta = json.loads((node / name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{node / name} is not JSON: {error}", kind="store-format") from error
        return meta if isinstance(meta, dict) else {}
    return {}


def _layout_v2(meta: dict[str, Any]) -> _Layout | None:
    dtype = np.dtype(meta["dtype"])
    if meta["compressor"] is not None or meta["filters"] or meta["order"] != "C" or dtype.name not in DTYPES:
        return None
    rows, cols = meta["chunks"]
    return _Layout(
        shape=tuple(meta["shape"]),
        dtype=dtype,
        files=(rows, cols),
        chunks=(rows, cols),
        prefix="",
        separator=meta.get("dimension_separator", "."),
        fill=meta["fill_value"],
    )


def _layout_v3(meta: dict[str, Any], uri: str) -> _Layout | None:
    grid, keys = meta["chunk_grid"], meta["chunk_key_encoding"]
    if (
        meta["zarr_format"] != 3
        or meta.get("storage_transformers")
        or meta["data_type"] not in DTYPES
        or grid["name"] != "regular"
        or keys["name"] not in ("default", "v2")
    ):
        return None
    rows, cols = files = tuple(grid["configuration"]["chunk_shape"])
    codecs, index_bytes, at_end = meta["codecs"], 0, True
    if len(codecs) == 1 and codecs[0]["name"] == "sharding_indexed":
        sharding = codecs[0]["configuration"]
        codecs = sharding["codecs"]
        rows, cols = sharding["chunk_shape"]
        if _endian(sharding["index_codecs"][:1]) != "<":
            return None
        rest = [codec["name"] for codec in sharding["index_codecs"][1:]]
        if rest not in ([], ["crc32c"]):
            return None
        index_bytes = files[0] * files[1] // (rows * cols) * 16 + (_CRC_BYTES if rest else 0)
        at_end = sharding.get("index_location", "end") == "end"
    order = _endian(codecs)
    if order is None:
        return None
    name = meta["data_type"]
    dtype = bfloat16(uri) if name == "bfloat16" else np.dtype(name)
    if name == "bfloat16" and order == ">":
        return None
    default = keys["name"] == "default"
    separator = keys.get("configuration", {}).get("separator", "/" if default else ".")
    return _Layout(
        shape=tuple(meta["shape"]),
        dtype=dtype.newbyteorder(order) if name != "bfloat16" else dtype,
        files=files,
        chunks=(rows, cols),
        prefix=f"c{separator}" if default else "",
        separator=separator,
        fill=meta["fill_value"],
        index_bytes=index_bytes,
        index_at_end=at_end,
    )


def _endian(codecs: list[dict[str, Any]]) -> Literal["<", ">"] | None:
    """The byte order where the codecs do nothing but write numbers, else ``None``."""
    if len(codecs) != 1 or codecs[0]["name"] != "bytes":
        return None
    endian = codecs[0].get("configuration", {}).get("endian", "little")
    return "<" if endian == "little" else ">" if endian == "big" else None


def _plain_tiles(
    node: Path, layout: _Layout, shape: tuple[int, int], paths: _Paths, sizes: AnyArray
) -> Tiles | None:
    """Tiles of an array with one file a chunk; a file that is not there is a chunk of fill values."""
    rows, cols = layout.chunks
    tile_bytes = rows * cols * layout.dtype.itemsize
    there = sizes >= 0
    short = np.flatnonzero(there.ravel() & (sizes.ravel() < tile_bytes))
    if len(short):
        path = paths[int(short[0])]
        raise StoreError(
            f"{path} is cut off: a chunk of {rows} x {cols} {layout.dtype.name} needs {tile_bytes} bytes, "
            f"the file has {sizes.ravel()[short[0]]}",
            kind="store-format",
            hint="Copy or write the array again.",
        )
    return _tiles(
        layout, paths, np.where(there, np.arange(sizes.size).reshape(sizes.shape), -1), np.zeros_like(sizes)
    )


def _sharded_tiles(
    node: Path, layout: _Layout, shape: tuple[int, int], paths: _Paths, sizes: AnyArray
) -> Tiles | None:
    """Tiles of an array with many chunks in a file, through the index in each file."""
    rows, cols = layout.chunks
    tile_bytes = rows * cols * layout.dtype.itemsize
    inner = (layout.files[0] // rows, layout.files[1] // cols)
    down, across = sizes.shape
    check_chunks(down * inner[0] * across * inner[1], str(node))
    file = np.full((down * inner[0], across * inner[1]), -1, np.int64)
    offset = np.zeros_like(file)
    for at in range(sizes.size):
        i, j = divmod(at, across)
        size = int(sizes[i, j])
        if size < 0:
            continue
        index = _read_index(paths[at], layout, size)
        if index is None:
            return None
        begin, length = index[..., 0], index[..., 1]
        there = begin != _ABSENT
        if (length[there] != tile_bytes).any() or (begin[there] > max(size - tile_bytes, 0)).any():
            return None
        cell = np.s_[i * inner[0] : (i + 1) * inner[0], j * inner[1] : (j + 1) * inner[1]]
        file[cell] = np.where(there, at, -1)
        offset[cell] = np.where(there, begin, 0).astype(np.int64)
    # The last shards reach beyond the array.
    used = np.s_[: -(-shape[0] // rows), : -(-shape[1] // cols)]
    return _tiles(layout, paths, np.ascontiguousarray(file[used]), np.ascontiguousarray(offset[used]))


def _read_index(path: str, layout: _Layout, size: int) -> AnyArray | None:
    """Offset and length of each inner chunk, ``(down, across, 2)`` uint64."""
    if size < layout.index_bytes:
        return None
    with Path(path).open("rb") as shard:
        shard.seek(size - layout.index_bytes if layout.index_at_end else 0)
        data = shard.read(layout.index_bytes)
    down, across = (f // c for f, c in zip(layout.files, layout.chunks, strict=True))
    return np.frombuffer(data, "<u8", count=down * across * 2).reshape(down, across, 2)


def _tiles(layout: _Layout, paths: _Paths, file: AnyArray, offset: AnyArray) -> Tiles | None:
    fill = 0.0
    if (file < 0).any():
        try:
            fill = float(layout.fill or 0)
        except (TypeError, ValueError):
            return None
    rows, cols = layout.chunks
    return Tiles(
        rows=rows,
        cols=cols,
        stride=cols * layout.dtype.itemsize,
        files=paths,
        file=file,
        offset=offset,
        fill=fill,
    )


@dataclass(frozen=True, slots=True)
class _Paths:
    """The file of each chunk or shard, row by row. Names follow from numbers: millions need no memory."""

    begin: str
    separator: str
    across: int

    def __getitem__(self, at: int) -> str:
        i, j = divmod(at, self.across)
        return f"{self.begin}{i}{self.separator}{j}"


def _sizes(paths: _Paths, down: int, root: Path) -> AnyArray:
    """The bytes of the file of each chunk or shard, row by row; -1 where there is none."""
    sizes = np.empty((down, paths.across), np.int64)
    nested = paths.separator == "/"
    if nested:
        refuse_outside(os.path.dirname(paths.begin), root, of=str(root))  # noqa: PTH120
    for i in range(down):
        if nested and os.path.islink(f"{paths.begin}{i}"):  # noqa: PTH114 - of many thousands of names
            refuse_outside(f"{paths.begin}{i}", root, of=str(root))
        for j in range(paths.across):
            sizes[i, j] = _size(paths[i * paths.across + j], root)
    return sizes


def _size(path: str, root: Path) -> int:
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            refuse_outside(path, root, of=str(root))
            found = os.stat(path)  # noqa: PTH116 - of many thousands of names
    except FileNotFoundError:
        return -1
    return found.st_size
