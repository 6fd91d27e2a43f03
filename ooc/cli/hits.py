"""Search results into a file, block by block: ``distances`` (float32) and ``ids`` (int64), each (nq, k).

The file grows under a temporary name and appears under its own when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from ooc.durable import partial_name, remove_tree, rename, translated
from ooc.errors import ArgumentError, ConflictError
from ooc.stores.write import existing_parent
from ooc.types import FloatArray, IntArray

__all__ = ["SUFFIXES", "HitWriter", "open_hits"]

SUFFIXES = (".npz", ".h5", ".hdf5", ".zarr")


class HitWriter(ABC):
    """A file of results in the making; a context manager that publishes it when the block ends well.

    Parameters
    ----------
    path : Path
        Absolute; its suffix is the format's.
    shape : (nq, k)
    settings : mapping
        JSON-ready; kept with the results.
    """

    def __init__(self, path: Path, shape: tuple[int, int], settings: Mapping[str, Any]) -> None:
        self.path = path
        self.shape = shape
        self.settings = settings
        self.partial = partial_name(path)
        with translated(path, "creating"):
            self._discard()
            try:
                self._open()
            except BaseException:
                self._discard()
                raise

    def _discard(self) -> None:
        """Remove what is unfinished."""
        _remove(self.partial)

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def write(self, start: int, distances: FloatArray, ids: IntArray) -> None:
        """The results of consecutive queries from ``start`` on, which follows on the last block."""

    @abstractmethod
    def _close(self, *, whole: bool) -> None:
        """Close what is open; the partial file or directory is complete if ``whole``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with translated(self.path, "writing"):
                self._close(whole=error is None)
            if error is None:
                if self.path.is_dir():
                    remove_tree(self.path)
                rename(self.partial, self.path)
        finally:
            self._discard()


class _Npz(HitWriter):
    """A zip takes one member at a time: both arrays are written beside it first."""

    _parts: dict[str, IO[bytes]]

    def _open(self) -> None:
        self._parts = {}
        for name, dtype in (("distances", np.float32), ("ids", np.int64)):
            file = self._parts[name] = self._scratch(name).open("w+b")
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": self.shape}
            np.lib.format.write_array_header_1_0(file, header)

    def _scratch(self, name: str) -> Path:
        return self.partial.with_name(f"{self.partial.name}.{name}")

    def write(self, start: int, distances: FloatArray, ids: IntArray) -> None:
        with translated(self.path, "writing"):
            self._parts["distances"].write(np.ascontiguousarray(distances, np.float32).data)
            self._parts["ids"].write(np.ascontiguousarray(ids, np.int64).data)

    def _close(self, *, whole: bool) -> None:
        if not whole:
            return
        with zipfile.ZipFile(self.partial, "w", zipfile.ZIP_STORED) as archive:
            for name, file in self._parts.items():
                file.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    shutil.copyfileobj(file, member, 1 << 20)
            with archive.open("settings.npy", "w") as member:
                np.lib.format.write_array(member, np.array(json.dumps(dict(self.settings))))

    def _discard(self) -> None:
        super()._discard()
        for file in getattr(self, "_parts", {}).values():
            with contextlib.suppress(OSError):  # of a full disk: nothing in it is wanted
                file.close()
        for name in ("distances", "ids"):
            self._scratch(name).unlink(missing_ok=True)


class _Hdf5(HitWriter):
    def _open(self) -> None:
        import h5py

        self._file = h5py.File(self.partial, "w")
        self._file.attrs["settings"] = json.dumps(dict(self.settings))
        self._distances = self._file.create_dataset("distances", self.shape, np.float32)
        self._ids = self._file.create_dataset("ids", self.shape, np.int64)

    def write(self, start: int, distances: FloatArray, ids: IntArray) -> None:
        with translated(self.path, "writing"):
            self._distances[start : start + len(ids)] = distances
            self._ids[start : start + len(ids)] = ids

    def _close(self, *, whole: bool) -> None:
        self._file.close()


class _Zarr(HitWriter):
    def _open(self) -> None:
        import zarr

        group = zarr.create_group(self.partial, attributes={"settings": dict(self.settings)})
        # A block is written once, and chunks are multiples of the blocks that searches come in.
        chunks = (min(self.shape[0], 4096), self.shape[1])
        self._distances: Any = group.create_array(
            "distances", shape=self.shape, dtype=np.float32, chunks=chunks
        )
        self._ids: Any = group.create_array("ids", shape=self.shape, dtype=np.int64, chunks=chunks)

    def write(self, start: int, distances: FloatArray, ids: IntArray) -> None:
        with translated(self.path, "writing"):
            self._distances[start : start + len(ids)] = distances
            self._ids[start : start + len(ids)] = ids

    def _close(self, *, whole: bool) -> None:
        pass


_WRITERS: dict[str, type[HitWriter]] = {".npz": _Npz, ".h5": _Hdf5, ".hdf5": _Hdf5, ".zarr": _Zarr}


def open_hits(
    path: str, *, shape: tuple[int, int], settings: Mapping[str, Any], overwrite: bool = False
) -> HitWriter:
    """A writer of results whose format the suffix says.

    Raises
    ------
    ArgumentError
        When the suffix is not one of ``SUFFIXES``, or the directory is missing.
    ConflictError
        When something is there and shall not be overwritten, or is a directory that is no Zarr group.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _WRITERS:
        raise ArgumentError(
            f"{path} has a name that no file of results has",
            kind="out-name",
            hint=f"End it in one of {', '.join(SUFFIXES)}.",
        )
    target = existing_parent(Path(path).expanduser())
    if os.path.lexists(target):
        if not overwrite:
            raise ConflictError(
                f"{target} exists",
                kind="out-exists",
                hint="Name another file, or say --overwrite to replace it.",
            )
        if target.is_dir() and not ((target / "zarr.json").exists() and suffix == ".zarr"):
            raise ConflictError(
                f"{target} is a directory and not results of a search: it is not replaced", kind="out-exists"
            )
    return _WRITERS[suffix](target, shape, settings)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
