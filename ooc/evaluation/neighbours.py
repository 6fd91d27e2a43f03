"""Files of true neighbours: written as any results are, or ids alone; read in the usual formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ooc.durable import DurableFile, translated
from ooc.errors import ArgumentError, DataError, StoreError
from ooc.search.hit_writer import HitWriter
from ooc.search.hits import SUFFIXES as HIT_SUFFIXES
from ooc.search.hits import check_out, open_hits
from ooc.types import AnyArray, IntArray, PathOrStr

__all__ = ["SUFFIXES", "check_neighbours", "open_neighbours", "read_neighbours"]

_IDS_ALONE = (".ivecs", ".npy")
SUFFIXES = (*HIT_SUFFIXES, *_IDS_ALONE)

#: Names under which ids are looked for, the first that is there.
_NAMES = ("neighbors", "neighbours", "ids", "indices")


class _Ids(HitWriter):
    """Ids alone, row after row: ``.npy`` of int64, or ``.ivecs``: int32 with k before each row."""

    _file: DurableFile | None = None

    def _open(self) -> None:
        self._file = DurableFile(self.path)
        if self.path.suffix.lower() == ".npy":
            header = {"descr": "<i8", "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(_Header(self._file), header)

    def _write(self, columns: Mapping[str, AnyArray]) -> None:
        assert self._file is not None
        ids = columns["ids"]
        if self.path.suffix.lower() == ".npy":
            self._file.write(np.ascontiguousarray(ids, "<i8"))
            return
        if ids.size and int(ids.max()) > np.iinfo(np.int32).max:
            raise ArgumentError(
                f"row {int(ids.max())} is beyond what an .ivecs file counts (int32)",
                kind="out-name",
                hint="Write .h5, .npz or .npy.",
            )
        lines = np.empty((len(ids), self.shape[1] + 1), "<i4")
        lines[:, 0], lines[:, 1:] = self.shape[1], ids
        self._file.write(lines)

    def _finish(self) -> None:
        assert self._file is not None
        self._file.commit()

    def _release(self) -> None:
        if self._file is not None:
            self._file.abandon()


class _Header:
    """What numpy's writer of headers takes for a file."""

    def __init__(self, file: DurableFile) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        self._file.write(data)
        return len(data)


def check_neighbours(path: PathOrStr, *, overwrite: bool = False) -> Path:
    """Where neighbours go, absolute, seen to be a place for them.

    Raises
    ------
    ArgumentError, ConflictError
        As ``ooc.search.hits.check_out``.
    """
    return check_out(path, overwrite=overwrite, suffixes=SUFFIXES)


def open_neighbours(
    path: PathOrStr, *, shape: tuple[int, int], settings: Mapping[str, Any], overwrite: bool = False
) -> HitWriter:
    """A writer of neighbours whose format the suffix says; see ``ooc.search.hits.open_hits``."""
    target = check_neighbours(path, overwrite=overwrite)
    if target.suffix.lower() in _IDS_ALONE:
        return _Ids(target, shape, settings)
    return open_hits(target, shape=shape, settings=settings, overwrite=overwrite)


def read_neighbours(path: PathOrStr) -> IntArray:
    """The ids in a file of true neighbours, ``(nq, k)`` int64, as they are in it.

    HDF5 in ann-benchmarks' layout (``neighbors``), ``.npz`` (``neighbors`` or ``ids``), ``.npy``,
    ``.ivecs``, and what ``ooc exact`` and ``ooc search --out`` write. Distances in it are not used:
    conventions differ, and those of the rows themselves are certain.

    Raises
    ------
    StoreError
        Nothing is there, or it is not of these formats.
    DataError
        It does not hold a 2-d array of ids.
    """
    name = Path(path).expanduser()
    if not name.exists():
        raise StoreError(f"there is no {name}", kind="store-missing", hint="Check the name.")
    suffix = name.suffix.lower()
    read = {".npy": _npy, ".npz": _npz, ".ivecs": _ivecs, ".zarr": _zarr, ".parquet": _parquet}
    read |= {".pq": _parquet, ".h5": _hdf5, ".hdf5": _hdf5}
    if suffix not in read:
        raise StoreError(
            f"{name} is not of a format in which true neighbours are kept",
            kind="store-format",
            hint=f"Known are {', '.join(read)}.",
        )
    with translated(name, "reading"):
        try:
            ids = np.asarray(read[suffix](name))
        except (ValueError, KeyError, EOFError, OSError, BadZipFile) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise StoreError(f"{name} cannot be read: {error}", kind="store-format") from error
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise DataError(
            f"{name} holds {ids.dtype} of shape {ids.shape}; true neighbours are a 2-d array of row numbers",
            kind="ground-truth",
        )
    return ids.astype(np.int64, copy=False)


def _named(path: Path, names: Any) -> str:
    for name in _NAMES:
        if name in names:
            return name
    raise StoreError(
        f"{path} has no array of neighbours: it holds {', '.join(sorted(map(str, names))) or 'nothing'}",
        kind="dataset-missing",
        hint=f"Name it {_NAMES[0]}.",
    )


def _npy(path: Path) -> AnyArray:
    return np.asarray(np.load(path, allow_pickle=False))


def _npz(path: Path) -> AnyArray:
    # Opened here: numpy leaves the file of an archive open that is none.
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
        if not hasattr(file, "files"):
            raise ValueError("it is no archive of arrays")
        return np.asarray(file[_named(path, file.files)])


def _hdf5(path: Path) -> AnyArray:
    import h5py

    with h5py.File(path, "r") as file:
        return np.asarray(file[_named(path, list(file))][:])


def _ivecs(path: Path) -> AnyArray:
    values = np.fromfile(path, "<i4")
    k = int(values[0]) if len(values) else 0
    if k < 1 or len(values) % (k + 1):
        raise ValueError("its rows are not of one length")
    lines = values.reshape(-1, k + 1)
    if (lines[:, 0] != k).any():
        raise ValueError("its rows are not of one length")
    return lines[:, 1:]


def _zarr(path: Path) -> AnyArray:
    import zarr

    group = zarr.open_group(path, mode="r")
    return np.asarray(group[_named(path, list(group))])


def _parquet(path: Path) -> AnyArray:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        from ooc.errors import MissingExtraError

        raise MissingExtraError(
            f"{path} cannot be read: the package pyarrow is not installed", hint="pip install 'ooc[parquet]'"
        ) from error
    table = pq.read_table(path)
    column = table.column(_named(path, table.column_names)).combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), -1)
