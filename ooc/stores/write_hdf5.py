"""HDF5 stores in the making.

A growing dataset is chunked and written through ``hdf5_journal``: what was appended is recorded in
steps that happen whole or not at all. A dataset of known length lies in one piece and is written by
``write_raw``; its metadata never changes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ooc import disk
from ooc.durable import partial_name, rename, sync_directory, sync_file, translated
from ooc.errors import ArgumentError, ConflictError, ResourceError
from ooc.stores.hdf5_journal import JournaledFile, apply_journal
from ooc.stores.write import ChunkedWriter, lock_for_writing, remove_unlocked
from ooc.stores.write_raw import RawLayout, RawWriter
from ooc.types import AnyArray
from ooc.units import MIB

__all__ = [
    "HDF5_COMPRESSIONS",
    "Hdf5Writer",
    "contiguous_layout",
    "contiguous_writer",
    "create_contiguous",
    "dataset_name",
]

HDF5_COMPRESSIONS = ("none", "gzip", "lzf")

#: Rows are committed in steps of about this size.
_STEP_BYTES = 32 * MIB


def dataset_name(dataset: str | None) -> str:
    """The name of the dataset that is written where none is given."""
    return dataset or "vectors"


class Hdf5Writer(ChunkedWriter):
    """Appends to a chunked HDF5 dataset; see ``ooc.create_store``."""

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
    ) -> None:
        if compression not in HDF5_COMPRESSIONS:
            raise ArgumentError(
                f"HDF5 stores are not written with compression {compression!r}",
                kind="compression",
                hint=f"Choose one of {', '.join(HDF5_COMPRESSIONS)}.",
            )
        if path.exists() and not append:
            raise ConflictError(
                f"{path} exists; an HDF5 store has a file to itself",
                kind="store-exists",
                hint="Name another destination, or append to it with append=True.",
            )
        if not path.exists():
            _create(path, dataset_name(dataset), d, dtype, chunk_rows, compression)
        self._file: h5py.File | None = None
        self._journal: JournaledFile | None = None
        self._lock = lock_for_writing(path)
        try:
            with translated(path, "mending"):
                apply_journal(path)
            # Readers may come, and lock the file as HDF5 does; a second writer may not.
            os.close(self._lock)
            self._lock = lock_for_writing(path, shared=True)
            name = _appendable(path, dataset, d, dtype)
            self._journal = JournaledFile(path)
            with translated(path, "opening"), self._journal.told():
                self._file = h5py.File(self._journal, "r+")
                self._data = self._file[name]
                unit, n = self._data.chunks[0], self._data.shape[0]
                begun = self._data[n - n % unit : n]
        except BaseException:
            self._state = "failed"
            self._release()
            raise
        super().__init__(f"{path}::/{name}", d=d, dtype=dtype, unit=unit, n=n)
        self._path = path
        if len(begun):
            self._keep(begun)

    def _write(self, start: int, rows: AnyArray) -> None:
        assert self._file is not None
        assert self._journal is not None
        step = self.unit * max(1, _STEP_BYTES // (self.unit * self.d * self.dtype.itemsize))
        with translated(self._path, "writing"), self._journal.told():
            for begin in range(start, start + len(rows), step):
                end = min(begin + step, start + len(rows))
                self._journal.same = self._begun_chunk(begin)
                self._data.resize((end, self.d))
                self._data[begin:end] = rows[begin - start : end - start]
                self._file.flush()
                self._journal.commit()

    def _begun_chunk(self, start: int) -> tuple[int, int]:
        """Where an unfiltered chunk with recorded rows lies: these bytes are only written again."""
        if self._data.id.get_create_plist().get_nfilters() or start >= self._data.shape[0]:
            return (0, 0)
        info = self._data.id.get_chunk_info_by_coord((start, 0))
        return (info.byte_offset, info.byte_offset + info.size)

    def _release(self) -> None:
        file, self._file = self._file, None
        journal, self._journal = self._journal, None
        settled = False
        try:
            if file is not None and journal is not None:
                if self._state == "failed":
                    with contextlib.suppress(Exception):  # HDF5 may stumble over what failed
                        file.close()
                else:
                    with translated(journal.path, "closing"), journal.told():
                        file.close()
                        journal.commit()
                        settled = True
        finally:
            lock, self._lock = self._lock, -1
            try:
                if journal is not None:
                    journal.close(settled=settled)
            finally:
                if lock >= 0:
                    os.close(lock)


def _create(path: Path, name: str, d: int, dtype: np.dtype[Any], chunk_rows: int, compression: str) -> None:
    """An empty store, whole when it appears under its name."""
    partial = partial_name(path)
    remove_unlocked(partial)
    with translated(path, "creating"):
        disk.step("create", partial, _create_growing, partial, name, d, dtype, chunk_rows, compression)
        sync_file(partial)
        rename(partial, path)


def _create_growing(
    path: Path, name: str, d: int, dtype: np.dtype[Any], chunk_rows: int, compression: str
) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset(
            name,
            shape=(0, d),
            maxshape=(None, d),
            chunks=(chunk_rows, d),
            dtype=dtype,
            compression=None if compression == "none" else compression,
        )


def _appendable(path: Path, dataset: str | None, d: int, dtype: np.dtype[Any]) -> str:
    """The name of the dataset in a file that fits and can be appended to without danger."""
    try:
        with h5py.File(path, "r") as file:
            name = dataset_name(dataset)
            found = file.get(name)
            if dataset is None and not isinstance(found, h5py.Dataset) and len(file) == 1:
                name = next(iter(file))
                found = file.get(name)
            if not isinstance(found, h5py.Dataset):
                raise ConflictError(
                    f"{path} exists and has no dataset {name!r}; it holds {', '.join(file) or 'nothing'}",
                    kind="store-exists",
                    hint="An HDF5 store has a file to itself: name another file, or one of its datasets.",
                )
            if found.ndim != 2 or found.shape[1] != d or found.dtype != dtype:
                raise ConflictError(
                    f"{path}::/{name} holds {found.shape} {found.dtype.name}; rows of {d} {dtype.name} "
                    "cannot be appended to it",
                    kind="store-differs",
                    hint="Give its own d and dtype, or name another destination.",
                )
            if found.chunks is None or found.maxshape[0] is not None or found.chunks[1] != d:
                raise ConflictError(
                    f"{path}::/{name} cannot grow: its layout or its maximum shape do not let it",
                    kind="store-differs",
                    hint="Copy it with `ooc convert` to NAME.zarr and append there.",
                )
            return name
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"opening {path}")
        raise ConflictError(
            f"{path} exists and cannot be appended to: {error}", kind="store-exists"
        ) from error


def create_contiguous(out: h5py.File, name: str, *, n: int, d: int, dtype: np.dtype[Any]) -> None:
    """An ``(n, d)`` dataset in one piece, which has its place in the file from now on and no values."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)  # equal stores are equal bytes
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    h5py.h5d.create(
        out.id,
        name.encode(),
        h5py.h5t.py_create(dtype, logical=True),
        h5py.h5s.create_simple((n, d)),
        dcpl=plist,
        lcpl=links,
    ).close()


def _create_one(path: Path, name: str, n: int, d: int, dtype: np.dtype[Any]) -> None:
    with h5py.File(path, "w") as out:
        create_contiguous(out, name, n=n, d=d, dtype=dtype)


def contiguous_layout(
    file: Path, dataset: str | None, *, n: int, d: int, dtype: np.dtype[Any], fresh: bool
) -> RawLayout:
    """Where the rows lie in an HDF5 file with one contiguous dataset, made first where ``fresh``.

    The space is taken at once; the rows are written past HDF5, which never touches the file again.
    """
    name = dataset_name(dataset)
    with translated(file, "creating"):
        if fresh:
            disk.step("create", file, _create_one, file, name, n, d, dtype)
            sync_file(file)
            sync_directory(file.parent)
        with h5py.File(file, "r") as out:
            offset = int(out[name].id.get_offset())
    return RawLayout(n=n, d=d, dtype=dtype, offset=offset)


def contiguous_writer(path: Path, dataset: str | None, *, n: int, d: int, dtype: np.dtype[Any]) -> RawWriter:
    """Writes ``n`` rows in one piece; the file appears under its name once all are there."""
    if path.exists():
        raise ConflictError(
            f"{path} exists; an HDF5 store has a file to itself",
            kind="store-exists",
            hint="Name another destination, or append to it with append=True (without n).",
        )
    partial = partial_name(path)
    remove_unlocked(partial)
    layout = contiguous_layout(partial, dataset, n=n, d=d, dtype=dtype, fresh=True)
    return RawWriter(partial, layout, uri=f"{path}::/{dataset_name(dataset)}", publish=path)
