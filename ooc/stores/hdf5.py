"""HDF5 datasets: mapped where the bytes lie raw, else read with h5py.

Contiguous and unfiltered chunked datasets are mapped through the offsets that the library gives;
whatever the library would have to decode, or to look for in another file, it reads.
Storage layouts: https://support.hdfgroup.org/documentation/hdf5/latest/_l_b_dset_layout.html.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ooc.errors import MissingExtraError, OocError, ResourceError, StoreError
from ooc.mapping import drop_file
from ooc.stores.base import Store, check_chunks, check_dtype, check_shape, even_starts
from ooc.stores.choose import Arrays, choose_array, refuse_missing
from ooc.stores.chunked import ChunkedStore
from ooc.stores.hdf5_journal import open_for_reading, see_read
from ooc.stores.hdf5_links import refuse_leading_outside
from ooc.stores.mapped import MappedStore, Tiles, one_tile
from ooc.types import AnyArray, IntArray
from ooc.units import MIB

__all__ = ["Hdf5Store", "open_hdf5"]

#: What is read at a time from a dataset without chunks that cannot be mapped.
_STEP_BYTES = 4 * MIB


class Hdf5Store(ChunkedStore):
    """An HDF5 dataset read with h5py, whose lock lets one thread read at a time."""

    def __init__(self, file: h5py.File, dataset: h5py.Dataset, *, uri: str) -> None:
        n, d = dataset.shape
        row_bytes = d * dataset.dtype.itemsize
        rows = dataset.chunks[0] if dataset.chunks else max(_STEP_BYTES // row_bytes, 1)
        super().__init__(
            uri=uri,
            format="hdf5",
            shape=(n, d),
            dtype=dataset.dtype,
            chunk_starts=even_starts(n, min(rows, n), uri),
        )
        self._file: h5py.File | None = file
        self._dataset = dataset
        self._path = Path(file.filename)
        self._places: IntArray | None = None

    def close(self) -> None:
        """Close the file; may be called twice."""
        super().close()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def forget(self, start: int, stop: int) -> None:
        """Let the page cache let go of the chunks with rows ``start`` to ``stop``."""
        self._check_span(start, stop)
        if self._dataset.chunks is None or start == stop:
            return
        if self._places is None:
            self._places = _chunk_places(self._dataset, (self.n, self.d))
        rows = self._dataset.chunks[0]
        places = self._places[start // rows : (stop - 1) // rows + 1].reshape(-1, 2)
        drop_file(self._path, places[places[:, 1] > 0].tolist())

    def _decode(self, index: int) -> AnyArray:
        start, stop = self.chunk_starts[index : index + 2].tolist()
        out = np.empty((stop - start, self.d), self.dtype)
        self._read_into(start, stop, out)
        return out

    def _decode_into(self, first: int, last: int, out: AnyArray) -> None:
        self._read_into(int(self.chunk_starts[first]), int(self.chunk_starts[last]), out)

    def _read_into(self, start: int, stop: int, out: AnyArray) -> None:
        try:
            self._dataset.read_direct(out, np.s_[start:stop])
            see_read(self._file)
        except Exception as error:  # of a damaged file h5py raises what it likes
            ResourceError.raise_if_lacking(error, f"reading {self.uri}")
            raise ResourceError(
                f"{self.uri}: rows {start} to {stop} cannot be read: {error}",
                kind="store-unreadable",
                hint="The file may be damaged or cut off, or a file it refers to be missing.",
            ) from error


def open_hdf5(path: Path, dataset: str | None = None) -> Store:
    """Open a dataset in an HDF5 file.

    Parameters
    ----------
    path : Path
        The file, absolute.
    dataset : str, optional
        Its name in the file; not needed where exactly one dataset can be vectors.

    Returns
    -------
    Store
        A ``MappedStore`` where the bytes lie raw and rows read through the mapping equal h5py's own
        reading, else an ``Hdf5Store``.

    Raises
    ------
    StoreError
        When the file is not readable HDF5, or the dataset is not there, ambiguous, or not vectors.
    MissingExtraError
        When its filter is not installed.
    """
    try:
        file = open_for_reading(path)
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"opening {path}")
        raise StoreError(
            f"{path} cannot be opened as HDF5: {error}",
            kind="store-format",
            hint="It may be cut off, damaged, or open for writing in another process.",
        ) from error
    try:
        name = choose_array(str(path), dataset, lambda: _datasets(path, file), what="dataset")
        refuse_leading_outside(path, file, name)
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            refuse_missing(str(path), name, _datasets(path, file), what="dataset")
        store = _open_dataset(path, file, found)
        try:
            see_read(file)
        except OSError:
            store.close()
            raise
    except BaseException as error:
        file.close()
        if isinstance(error, OocError | ImportError) or not isinstance(error, Exception):
            raise
        # Of a damaged file h5py raises what it likes.
        ResourceError.raise_if_lacking(error, f"opening {path}")
        raise StoreError(
            f"{path} cannot be read as HDF5: {type(error).__name__}: {error}",
            kind="store-format",
            hint="It may be damaged, or cut off.",
        ) from error
    if store.mapped:
        file.close()
    return store


def _open_dataset(path: Path, file: h5py.File, dataset: h5py.Dataset) -> Store:
    uri = f"{path}::{dataset.name}"
    shape = check_shape(dataset.shape if dataset.shape is not None else (0,), uri)
    check_dtype(dataset.dtype, uri)
    tiles = _raw_tiles(path, dataset, shape)
    if tiles is not None:
        mapped = MappedStore(uri=uri, format="hdf5", shape=shape, dtype=dataset.dtype, tiles=tiles)
        if _same_rows(mapped, dataset):
            return mapped
        mapped.close()
    _need_filters(dataset, uri)
    return Hdf5Store(file, dataset, uri=uri)


def _raw_tiles(path: Path, dataset: h5py.Dataset, shape: tuple[int, int]) -> Tiles | None:
    """Where the bytes lie, or ``None`` where they are not all raw in this file."""
    n, d = shape
    create = dataset.id.get_create_plist()
    itemsize = dataset.dtype.itemsize
    # Another size on disk: a type that the library converts, for example one with padding.
    if (
        dataset.is_virtual
        or dataset.external
        or create.get_nfilters()
        or (dataset.id.get_type().get_size() != itemsize)
    ):
        return None
    size = path.stat().st_size
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None or offset + n * d * itemsize > size:
            return None
        return one_tile(path, n, d, offset=offset, stride=d * itemsize)
    rows, cols = dataset.chunks
    places = _chunk_places(dataset, shape)
    offsets = np.where(places[..., 1] > 0, places[..., 0], -1)
    if offsets.max() + rows * cols * itemsize > size:
        return None
    return Tiles(
        rows=rows,
        cols=cols,
        stride=cols * itemsize,
        files=(str(path),),
        file=np.where(offsets < 0, -1, 0),
        offset=offsets,
        fill=float(dataset.fillvalue),
    )


def _chunk_places(dataset: h5py.Dataset, shape: tuple[int, int]) -> IntArray:
    """Offset in the file and bytes there of each chunk, ``(down, across, 2)``; no bytes: not stored."""
    (n, d), (rows, cols) = shape, dataset.chunks
    down, across = -(-n // rows), -(-d // cols)
    check_chunks(down * across, f"{dataset.file.filename}::{dataset.name}")
    places = np.zeros((down, across, 2), np.int64)

    def note(chunk: Any) -> None:
        row, col = chunk.chunk_offset
        # Beyond the shape: a chunk that a killed writer had not yet recorded as rows.
        if row < n and col < d and chunk.byte_offset is not None:
            places[row // rows, col // cols] = chunk.byte_offset, chunk.size

    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(note)
    else:  # HDF5 before 1.12.3
        for i in range(dataset.id.get_num_chunks()):
            note(dataset.id.get_chunk_info(i))
    return places


def _same_rows(mapped: MappedStore, dataset: h5py.Dataset) -> bool:
    """Whether some rows of the mapping, bit for bit, are what the library reads."""
    for row in sorted({0, mapped.n // 3, 2 * mapped.n // 3, mapped.n - 1}):
        expected = dataset[row : row + 1].astype(mapped.dtype)
        if mapped.read(row, row + 1).tobytes() != expected.tobytes():
            return False
    return True


def _need_filters(dataset: h5py.Dataset, uri: str) -> None:
    """Make sure that every filter of the dataset is there, loading ``hdf5plugin`` where it is not."""
    create = dataset.id.get_create_plist()
    for i in range(create.get_nfilters()):
        code, _, _, name = create.get_filter(i)
        if h5py.h5z.filter_avail(code):
            continue
        filter_name = f"filter {code} ({name.decode(errors='replace').strip() or 'unnamed'})"
        if importlib.util.find_spec("hdf5plugin") is None:
            raise MissingExtraError(
                f"{uri} was written with HDF5 {filter_name}, which is not installed",
                hint="pip install 'ooc[hdf5plugin]'",
            )
        importlib.import_module("hdf5plugin")
        if not h5py.h5z.filter_avail(code):
            raise StoreError(
                f"{uri} was written with HDF5 {filter_name}, which neither h5py nor hdf5plugin has",
                kind="store-format",
                hint="Put the filter's plugin where HDF5_PLUGIN_PATH points, or write the dataset again.",
            )


def _datasets(path: Path, file: h5py.File) -> Arrays:
    found: dict[str, tuple[tuple[int, ...], str]] = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            if item.is_virtual:  # its shape may be asked of other files
                refuse_leading_outside(path, file, name)
            found[f"/{name}"] = (item.shape or (), item.dtype.name)

    file.visititems(note)
    return found
