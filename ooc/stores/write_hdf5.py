"""HDF5 stores in the making.

A growing dataset is written in HDF5's single-writer-multiple-reader mode, which orders the writes so
that the file on disk is whole at any instant: chunks, their index, then the new shape. What a killed
writer leaves is marked "open for writing"; such a file is readable with ``swmr=True`` as it is, and
the mark is cleared when it is appended to again. A dataset of known length lies in one piece and is
written by ``write_raw``; its metadata never changes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ooc.durable import partial_name, rename, sync_directory, translated
from ooc.errors import ArgumentError, ConflictError
from ooc.mapping import drop_cached
from ooc.stores.write import ChunkedWriter, lock_for_writing, remove_unlocked
from ooc.stores.write_raw import RawLayout, RawWriter
from ooc.types import AnyArray

__all__ = [
    "HDF5_COMPRESSIONS",
    "Hdf5Writer",
    "clear_open_mark",
    "contiguous_layout",
    "contiguous_writer",
    "dataset_name",
]

HDF5_COMPRESSIONS = ("none", "gzip", "lzf")

#: The file format of HDF5 1.10: the first with single-writer-multiple-reader mode.
_LIBVER = ("v110", "v110")

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


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
        self._fd = -1
        try:
            clear_open_mark(path)
            name = _appendable(path, dataset, d, dtype)
            try:
                self._file = h5py.File(path, "r+", libver=_LIBVER)
            except OSError as error:
                raise ConflictError(
                    f"{path} cannot be opened for writing: {error}",
                    kind="store-busy",
                    hint="Close it elsewhere first.",
                ) from error
            self._data = self._file[name]
            self._file.swmr_mode = True
            # Readers may come; a second writer, who would clear the mark, may not.
            self._fd = lock_for_writing(path, shared=True)
        except BaseException:
            self._release()
            raise
        unit, n = self._data.chunks[0], self._data.shape[0]
        super().__init__(f"{path}::/{name}", d=d, dtype=dtype, unit=unit, n=n)
        self._path = path
        if n % unit:
            self._keep(self._data[n - n % unit : n])

    def _write(self, start: int, rows: AnyArray) -> None:
        stop = start + len(rows)
        with translated(self._path, "writing"):
            self._data.resize((stop, self.d))
            self._data[start:stop] = rows
            self._data.flush()
            os.fsync(self._fd)
            drop_cached(self._fd)

    def _release(self) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                with translated(Path(file.filename), "closing"):
                    file.close()
                    if self._fd >= 0:
                        os.fsync(self._fd)
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _create(path: Path, name: str, d: int, dtype: np.dtype[Any], chunk_rows: int, compression: str) -> None:
    """An empty store, whole when it appears under its name."""
    partial = partial_name(path)
    remove_unlocked(partial)
    with translated(path, "creating"):
        with h5py.File(partial, "w", libver=_LIBVER) as file:
            file.create_dataset(
                name,
                shape=(0, d),
                maxshape=(None, d),
                chunks=(chunk_rows, d),
                dtype=dtype,
                compression=None if compression == "none" else compression,
            )
        _sync(partial)
        rename(partial, path)


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
            safe = _superblock(path)[8:9] == b"\x03"
            if not safe or found.chunks is None or found.maxshape[0] is not None or found.chunks[1] != d:
                raise ConflictError(
                    f"{path}::/{name} was not made to be appended to: a killed writer could damage it",
                    kind="store-differs",
                    hint="Copy it with `ooc convert` to NAME.zarr and append there.",
                )
            return name
    except OSError as error:
        raise ConflictError(
            f"{path} exists and cannot be appended to: {error}", kind="store-exists"
        ) from error


def _superblock(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(48)


def clear_open_mark(path: Path) -> bool:
    """Clear the mark that a killed writer left, as ``h5clear --status --increment=0`` does.

    Also brings the recorded end of the file up to its real end, so that nothing is allocated over
    chunks that are there. Returns whether there was a mark.

    Raises
    ------
    ConflictError
        When the file is in use: its writer lives.
    """
    lock = lock_for_writing(path)
    try:
        return _clear_open_mark(path)
    finally:
        os.close(lock)  # HDF5 takes a lock of its own when it opens the file


def _clear_open_mark(path: Path) -> bool:
    block = _superblock(path)
    # Version 3 of the superblock: 8 signature, version, two sizes, flags, then 8 each for base,
    # extension, end of file and root; lookup3 of all that.
    if len(block) < 48 or block[:8] != _SIGNATURE or block[8] != 3 or block[9] != 8 or block[11] == 0:
        return False
    (end,) = struct.unpack_from("<Q", block, 28)
    with translated(path, "repairing"), path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size < end:
            os.ftruncate(file.fileno(), end)
        head = bytearray(block[:44])
        head[11] = 0
        struct.pack_into("<Q", head, 28, max(size, end))
        file.write(bytes(head) + struct.pack("<I", _lookup3(bytes(head))))
        file.flush()
        os.fsync(file.fileno())
    return True


def _lookup3(data: bytes) -> int:
    """Bob Jenkins' ``hashlittle`` with initial value 0: the checksum of HDF5 metadata."""
    mask = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return ((x << k) | (x >> (32 - k))) & mask

    a = b = c = (0xDEADBEEF + len(data)) & mask
    whole = (len(data) - 1) // 12 * 12
    for at in range(0, whole, 12):
        x, y, z = struct.unpack_from("<III", data, at)
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        a = ((a - c) & mask) ^ rot(c, 4)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rot(a, 6)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rot(b, 8)
        b = (b + a) & mask
        a = ((a - c) & mask) ^ rot(c, 16)
        c = (c + b) & mask
        b = ((b - a) & mask) ^ rot(a, 19)
        a = (a + c) & mask
        c = ((c - b) & mask) ^ rot(b, 4)
        b = (b + a) & mask
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
    c = ((c ^ b) - rot(b, 14)) & mask
    a = ((a ^ c) - rot(c, 11)) & mask
    b = ((b ^ a) - rot(a, 25)) & mask
    c = ((c ^ b) - rot(b, 16)) & mask
    a = ((a ^ c) - rot(c, 4)) & mask
    b = ((b ^ a) - rot(a, 14)) & mask
    return int((c ^ b) - rot(b, 24)) & mask


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def contiguous_layout(
    file: Path, dataset: str | None, *, n: int, d: int, dtype: np.dtype[Any], fresh: bool
) -> RawLayout:
    """Where the rows lie in an HDF5 file with one contiguous dataset, made first where ``fresh``.

    The space is taken at once; the rows are written past HDF5, which never touches the file again.
    """
    name = dataset_name(dataset)
    with translated(file, "creating"):
        if fresh:
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.CONTIGUOUS)
            plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
            links.set_create_intermediate_group(True)
            with h5py.File(file, "w") as out:
                h5py.h5d.create(
                    out.id,
                    name.encode(),
                    h5py.h5t.py_create(dtype),
                    h5py.h5s.create_simple((n, d)),
                    dcpl=plist,
                    lcpl=links,
                ).close()
            _sync(file)
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
