"""Search results into a file, block by block: ``distances`` (float32) and ``ids`` (int64), each (nq, k).

Where rows have keys there are ``keys`` too: int64, or strings, of fixed width in npz and HDF5.

The file, or the directory of a Zarr group, grows under a temporary name and appears under its own when
it is whole and on the disk. Nothing is compressed: how much room is needed is known before the first
search, and Zarr and HDF5 results can be memory-mapped like any store.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ooc.durable import DurableFile, RowsFile, make_directory, npy_head, sync_tree, write_json
from ooc.errors import ArgumentError, ConflictError, MissingExtraError, ResourceError
from ooc.index.layout import see_outside
from ooc.search.hit_writer import HitWriter
from ooc.stores.write import (
    HDF5_SUFFIXES,
    ZARR_SUFFIXES,
    default_chunk_rows,
    existing_parent,
)
from ooc.stores.write_arrow import PARQUET_SUFFIXES
from ooc.types import AnyArray, PathOrStr

if TYPE_CHECKING:
    from ooc.stores.write_zarr import ZarrWriter

__all__ = ["SUFFIXES", "check_out", "open_hits"]

SUFFIXES = (".npz", *HDF5_SUFFIXES, *ZARR_SUFFIXES, *PARQUET_SUFFIXES)

#: ``ids`` under the name that benchmarks of nearest neighbours give it (HDF5 alone has links).
_ALIAS = "neighbors"

_ARRAYS = ("distances", "ids", "keys")


class _Sink(io.RawIOBase):
    """A durable file for libraries that write front to back.

    After ``drop`` it takes everything and keeps nothing: they cannot be closed without a last write.
    """

    def __init__(self, file: DurableFile) -> None:
        self._file: DurableFile | None = file
        self._at = 0

    def drop(self) -> None:
        self._file = None

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._file is not None:
            self._file.write(view)
        self._at += len(view)
        return len(view)


class _Npz(HitWriter):
    """A zip takes one member at a time: all but ids wait beside it, in files without a name."""

    twice = ("distances", "keys")
    _file: DurableFile | None = None

    def _open(self) -> None:
        self._scratch: dict[str, IO[bytes]] = {}
        for name in self.columns:
            if name in self.twice:
                self._scratch[name] = tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
        self._file = DurableFile(self.path)
        self._sink = _Sink(self._file)
        self._archive = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_STORED)
        self._ids = self._member("ids")

    def _member(self, name: str) -> IO[bytes]:
        member = self._archive.open(f"{name}.npy", "w", force_zip64=True)
        try:
            member.write(npy_head(self.shape, self.columns[name]))
        except BaseException:
            self._sink.drop()
            member.close()  # or the archive could not be closed
            raise
        return member

    def _write(self, columns: Mapping[str, AnyArray]) -> None:
        for name, values in columns.items():
            self._scratch.get(name, self._ids).write(self._as_bytes(name, values).data)

    def _finish(self) -> None:
        assert self._file is not None
        self._ids.close()
        for name, scratch in self._scratch.items():
            scratch.seek(0)
            with self._member(name) as member:
                shutil.copyfileobj(scratch, member, 1 << 20)
        with self._archive.open("settings.npy", "w") as member:
            np.lib.format.write_array(member, np.array(self.settings))
        self._archive.close()
        self._file.commit()

    def _release(self) -> None:
        if self._file is not None:
            self._sink.drop()
            if hasattr(self, "_ids"):
                self._ids.close()
            self._archive.close()
            self._file.abandon()
        for scratch in getattr(self, "_scratch", {}).values():
            # A full disk, and what waits in its buffer: nothing in it is wanted.
            with contextlib.suppress(OSError):
                scratch.close()
        self._scratch = {}


class _Hdf5(HitWriter):
    """Contiguous datasets whose places are known once HDF5 has made them: it is not needed after."""

    _file: RowsFile | None = None

    def _open(self) -> None:
        import h5py

        from ooc.stores.write_hdf5 import create_contiguous

        nq, k = self.shape
        with h5py.File(self.partial, "w") as file:
            file.attrs["settings"] = self.settings
            for name, dtype in self.columns.items():
                text = dtype.kind == "S"
                stored = h5py.string_dtype("utf-8", dtype.itemsize) if text else dtype
                create_contiguous(file, name, n=nq, d=k, dtype=stored)
            file[_ALIAS] = file["ids"]
        with h5py.File(self.partial, "r") as file:
            self._at = {name: int(file[name].id.get_offset()) for name in self.columns}
        self._file = RowsFile(self.partial, b"", self.partial.stat().st_size)

    def _write(self, columns: Mapping[str, AnyArray]) -> None:
        assert self._file is not None
        for name, values in columns.items():
            array = self._as_bytes(name, values)
            begin = self.n * self.shape[1] * array.itemsize
            self._file.write(self._at[name] + begin, array)

    def _finish(self) -> None:
        assert self._file is not None
        self._file.flush()
        self._file.close()
        self._publish()

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()


class _Zarr(HitWriter):
    """A group of arrays; those of numbers are each written as a store of its own."""

    def _open(self) -> None:
        from ooc.stores.write_zarr import ZarrWriter

        self._arrays: dict[str, ZarrWriter] = {}
        self._texts: Any = None
        make_directory(self.partial)
        write_json(
            self.partial / "zarr.json",
            {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {"settings": json.loads(self.settings)},
            },
        )
        nq, k = self.shape
        rows = default_chunk_rows(8 * k, nq)
        for name, dtype in self.columns.items():
            path = self.partial / name
            if dtype.kind == "S":
                import zarr

                self._texts = zarr.create_array(
                    store=str(path), shape=(nq, k), chunks=(rows, k), dtype="string", compressors=None
                )
                continue
            self._arrays[name] = ZarrWriter(path, None, d=k, dtype=dtype, append=False, chunk_rows=rows)

    def _write(self, columns: Mapping[str, AnyArray]) -> None:
        for name, values in columns.items():
            if name in self._arrays:
                self._arrays[name].append(values)
            else:
                self._texts[self.n : self.n + len(values)] = np.where(values == None, "", values)  # noqa: E711

    def _finish(self) -> None:
        for array in self._arrays.values():
            array.close()
        if self._texts is not None:
            sync_tree(self.partial / "keys")
        self._publish()

    def _release(self) -> None:
        for array in getattr(self, "_arrays", {}).values():
            array.abandon()


class _Parquet(HitWriter):
    """A row a query, with columns of fixed-size lists; row groups of some MiB."""

    _file: DurableFile | None = None

    def _open(self) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"{self.path} cannot be written: the package pyarrow is not installed",
                hint="pip install 'ooc[parquet]', or name a file of another kind.",
            ) from error
        nq, k = self.shape
        kinds = {"f": pa.float32(), "i": pa.int64(), "S": pa.string()}
        self._types = {name: pa.list_(kinds[dtype.kind], k) for name, dtype in self.columns.items()}
        self._schema = pa.schema(
            [pa.field(name, kind, nullable=False) for name, kind in self._types.items()],
            metadata={"settings": self.settings},
        )
        self._group_rows = default_chunk_rows(8 * k, nq)
        self._held: list[Mapping[str, AnyArray]] = []
        self._file = DurableFile(self.path)
        self._sink = _Sink(self._file)
        self._writer = pq.ParquetWriter(
            self._sink, self._schema, compression="none", use_dictionary=False, write_statistics=False
        )

    def _write(self, columns: Mapping[str, AnyArray]) -> None:
        self._held.append(columns)
        if sum(len(part["ids"]) for part in self._held) >= self._group_rows:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa

        held, self._held = self._held, []
        if not held:
            return
        arrays = []
        for name, type_ in self._types.items():
            values = np.concatenate([part[name] for part in held]).reshape(-1)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(values, type_.value_type), type=type_))
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def _finish(self) -> None:
        assert self._file is not None
        self._write_group()
        self._writer.close()
        self._file.commit()

    def _release(self) -> None:
        if self._file is not None:
            self._sink.drop()
            if hasattr(self, "_writer"):
                self._writer.close()
            self._file.abandon()


def check_out(path: PathOrStr, *, overwrite: bool = False, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Where results go, absolute, seen to be a place for them: its name ends in one of ``suffixes``.

    Raises
    ------
    ArgumentError, ConflictError
        See ``open_hits``.
    """
    name = Path(path)
    if name.suffix.lower() not in suffixes:
        raise ArgumentError(
            f"{name} has a name that no file of results has",
            kind="out-name",
            hint=f"End it in one of {', '.join(suffixes)}.",
        )
    target = existing_parent(name.expanduser())
    see_outside(target)
    if not os.path.lexists(target):
        return target
    if not overwrite:
        raise ConflictError(
            f"{target} exists",
            kind="out-exists",
            hint="Name another file, or replace it with overwrite=True, --overwrite on the command line.",
        )
    if not _is_replaceable(target):
        raise ConflictError(
            f"{target} holds something else than results of a search: it is not replaced",
            kind="out-exists",
            hint="Name another file.",
        )
    return target


def _is_replaceable(path: Path) -> bool:
    """Whether nothing but results is lost with what is there; damaged files are not missed."""
    suffix = path.suffix.lower()
    if path.is_dir():
        members = {entry.name for entry in path.iterdir()}
        return suffix in ZARR_SUFFIXES and "zarr.json" in members <= {"zarr.json", *_ARRAYS}
    if suffix not in HDF5_SUFFIXES:
        return True
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return set(file) <= {*_ARRAYS, _ALIAS}
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"opening {path}")
        return True


def open_hits(
    path: PathOrStr,
    *,
    shape: tuple[int, int],
    settings: Mapping[str, Any],
    keys: np.dtype[Any] | None = None,
    overwrite: bool = False,
) -> HitWriter:
    """A writer of results whose format the suffix says; with ``keys``, of that dtype, beside the ids.

    Raises
    ------
    ArgumentError
        When the suffix is not one of ``SUFFIXES``, or the directory is missing or of an index.
    ConflictError
        When something is there and shall not be overwritten, or holds something else than results; or
        when another search writes it at this moment.
    MissingExtraError
        When the package that writes the format is not installed.
    ResourceError
        When the disk is too small, or refuses.
    """
    target = check_out(path, overwrite=overwrite)
    suffix = target.suffix.lower()
    if suffix in PARQUET_SUFFIXES:
        return _Parquet(target, shape, settings, keys)
    if suffix in ZARR_SUFFIXES:
        return _Zarr(target, shape, settings, keys)
    return (_Hdf5 if suffix in HDF5_SUFFIXES else _Npz)(target, shape, settings, keys)
