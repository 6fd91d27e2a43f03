"""Zarr stores in the making: chunk files first, the new shape last.

zarr encodes into memory; the files are then written here, each whole under a temporary name, flushed
and renamed, and after them the metadata with the new shape. A crash leaves chunks that the metadata
does not know yet, which are written over later.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ooc.durable import DurableFile, make_directory, partial_name, translated
from ooc.errors import ArgumentError, ConflictError, ResourceError
from ooc.stores.write import ChunkedWriter, lock_for_writing
from ooc.types import AnyArray

if TYPE_CHECKING:
    import zarr

__all__ = ["ZARR_COMPRESSIONS", "ZarrWriter"]

ZARR_COMPRESSIONS = ("none", "zstd", "gzip", "lz4")

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")


class ZarrWriter(ChunkedWriter):
    """Appends to a Zarr array on a local disk; see ``ooc.create_store``."""

    def __init__(
        self,
        path: Path,
        dataset: str | None,
        *,
        d: int,
        dtype: np.dtype[Any],
        append: bool,
        chunk_rows: int,
        compression: str = "none",
        shard_rows: int | None = None,
        zarr_format: Literal[2, 3] = 3,
    ) -> None:
        import zarr

        _check_settings(compression, chunk_rows, shard_rows, zarr_format)
        self._root = path
        self._name = dataset or ""
        self._staged: dict[str, Any] = {}
        self._store = zarr.storage.MemoryStore(self._staged)
        self._lock = -1
        home = path / self._name
        exists = any((home / name).exists() for name in _METADATA)
        if exists and not append:
            raise ConflictError(
                f"{home} exists",
                kind="store-exists",
                hint="Name another destination, or append to it with append=True.",
            )
        if not exists and home.exists() and not _is_free(home):
            raise ConflictError(
                f"{home} exists and is not a Zarr array",
                kind="store-exists",
                hint="Name another destination.",
            )
        make_directory(path)
        self._lock = lock_for_writing(path)
        try:
            self._load_parents()
            if exists:
                self._array = self._open(home, d, dtype)
            else:
                self._array = self._create(d, dtype, chunk_rows, shard_rows, compression, zarr_format)
        except BaseException:
            self._release()
            raise
        unit = (self._array.shards or self._array.chunks)[0]
        n = int(self._array.shape[0])
        super().__init__(f"{path}::/{dataset}" if dataset else str(path), d=d, dtype=dtype, unit=unit, n=n)
        if n % unit:
            disk = zarr.open_array(path, path=self._name, mode="r")
            self._keep(np.asarray(disk[n - n % unit : n]))

    def _load_parents(self) -> None:
        """Stage the metadata of the groups above, so that they are not made again."""
        parts = self._name.split("/") if self._name else []
        for depth in range(len(parts)):
            folder = "/".join(parts[:depth])
            for name in (*_METADATA, ".zmetadata"):
                file = self._root / folder / name
                if not file.exists():
                    continue
                data = file.read_bytes()
                if name == ".zmetadata" or (
                    name == "zarr.json" and json.loads(data).get("consolidated_metadata")
                ):
                    raise ConflictError(
                        f"{file.parent} has consolidated metadata, which would not know of new rows",
                        kind="store-consolidated",
                        hint="Write to another path, or remove the consolidated metadata first.",
                    )
                self._stage(f"{folder}/{name}".lstrip("/"), data)

    def _stage(self, key: str, data: bytes) -> None:
        from zarr.core.buffer import default_buffer_prototype

        self._staged[key] = default_buffer_prototype().buffer.from_bytes(data)

    def _open(self, home: Path, d: int, dtype: np.dtype[Any]) -> zarr.Array[Any]:
        import zarr

        for name in _METADATA:
            if (home / name).exists():
                self._stage(f"{self._name}/{name}".lstrip("/"), (home / name).read_bytes())
        try:
            array = zarr.open_array(
                self._store, path=self._name, mode="r+", config={"write_empty_chunks": True}
            )
        except Exception as error:  # zarr raises many kinds for a group or damaged metadata
            ResourceError.raise_if_lacking(error, f"opening {home}")
            raise ConflictError(
                f"{home} is not a Zarr array that can be appended to: {error}",
                kind="store-exists",
                hint="Name another destination.",
            ) from error
        found = np.dtype(array.dtype).name
        if array.ndim != 2 or array.shape[1] != d or found != dtype.name:
            raise ConflictError(
                f"{home} holds {array.shape} {found}; rows of {d} {dtype.name} cannot be appended to it",
                kind="store-differs",
                hint="Give its own d and dtype, or name another destination.",
            )
        return array

    def _create(
        self,
        d: int,
        dtype: np.dtype[Any],
        chunk_rows: int,
        shard_rows: int | None,
        compression: str,
        zarr_format: Literal[2, 3],
    ) -> zarr.Array[Any]:
        import zarr

        array = zarr.create_array(
            self._store,
            name=self._name or None,
            shape=(0, d),
            chunks=(chunk_rows, d),
            shards=None if shard_rows is None else (shard_rows, d),
            dtype=dtype,
            compressors=_compressors(compression, dtype.itemsize, zarr_format),
            zarr_format=zarr_format,
            fill_value=0,
            # A chunk of zeros is a file like any other: left out, it could not be mapped.
            config={"write_empty_chunks": True},
        )
        # From the root down: a name is there once all above it is.
        for key in sorted(self._staged, key=lambda key: key.count("/")):
            if not (self._root / key).exists():
                self._write_file(key)
        return array

    def _write_file(self, key: str) -> None:
        target = self._root / key
        make_directory(target.parent)
        with DurableFile(target) as file:
            file.write(self._staged[key].as_numpy_array())

    def _write(self, start: int, rows: AnyArray) -> None:
        stop = start + len(rows)
        self._array.resize((stop, self.d))
        for begin in range(start, stop, self.unit):
            end = min(begin + self.unit, stop)
            self._array[begin:end] = rows[begin - start : end - start]
            for key in [key for key in self._staged if key.rpartition("/")[2] not in _METADATA]:
                self._write_file(key)
                del self._staged[key]
        record = "zarr.json" if self._array.metadata.zarr_format == 3 else ".zarray"
        with translated(self._root, "writing"):
            self._write_file(f"{self._name}/{record}".lstrip("/"))

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _is_free(home: Path) -> bool:
    """Whether a directory holds nothing but what a killed writer left of its first file."""
    return home.is_dir() and all(p == partial_name(home / p.name[1:-8]) for p in home.iterdir())


def _check_settings(compression: str, chunk_rows: int, shard_rows: int | None, zarr_format: int) -> None:
    if compression not in ZARR_COMPRESSIONS:
        raise ArgumentError(
            f"Zarr stores are not written with compression {compression!r}",
            kind="compression",
            hint=f"Choose one of {', '.join(ZARR_COMPRESSIONS)}.",
        )
    if zarr_format not in (2, 3):
        raise ArgumentError(f"there is no Zarr format {zarr_format}: it is 2 or 3", kind="zarr-format")
    if shard_rows is not None and (zarr_format == 2 or shard_rows % chunk_rows):
        raise ArgumentError(
            f"shards of {shard_rows} rows do not go with chunks of {chunk_rows} in Zarr format {zarr_format}",
            kind="shards",
            hint="Shards need Zarr format 3 and a multiple of chunk_rows.",
        )


def _compressors(compression: str, itemsize: int, zarr_format: Literal[2, 3]) -> Any:
    if compression == "none":
        return None
    if zarr_format == 2:
        # Untyped, as are the codecs' constructors in zarr.
        numcodecs: Any = importlib.import_module("numcodecs")
        if compression == "lz4":
            return numcodecs.Blosc(cname="lz4")
        return numcodecs.Zstd() if compression == "zstd" else numcodecs.GZip()
    codecs: Any = importlib.import_module("zarr.codecs")
    if compression == "lz4":
        return codecs.BloscCodec(cname="lz4", typesize=itemsize)
    return codecs.ZstdCodec() if compression == "zstd" else codecs.GzipCodec()
