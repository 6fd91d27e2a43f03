"""Which formats there are, and how a path is told to be one of them.

A record here names the module that opens a format; it is imported when a store of that format is
opened, so that reading an npy file pays for no other library.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ooc.errors import MissingExtraError, StoreError
from ooc.stores.base import Store

__all__ = ["FORMATS", "Format", "find_format", "format_of_name", "is_zarr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A readable format.

    Attributes
    ----------
    name : str
        As ``Store.format`` gives it.
    suffixes : tuple of str
        Lower-case ends of file names, with the dot.
    opener : str
        ``module:function``; the function takes ``(path: Path, dataset: str | None)`` and returns a
        ``Store``.
    magic : tuple of bytes
        What files of this format begin with.
    extra : str
        The optional extra of ``ooc`` that brings the library; empty where none is needed.
    inside : str
        What a name after ``::`` stands for (``"dataset"``, ``"column"``); empty where there is nothing
        to name.
    """

    name: str
    suffixes: tuple[str, ...]
    opener: str
    magic: tuple[bytes, ...] = ()
    extra: str = ""
    inside: str = ""

    def open(self, path: Path, dataset: str | None) -> Store:
        """Open a store of this format.

        Raises
        ------
        MissingExtraError
            When the library that reads it is not installed.
        StoreError
            ``dataset-missing`` where a dataset is named and the format has none; else what the format's
            opener raises.
        """
        if dataset is not None and not self.inside:
            raise StoreError(
                f"{path} is one array: there is no {dataset!r} in it",
                kind="dataset-missing",
                hint=f"Name it without '::{dataset}'.",
            )
        module, function = self.opener.split(":")
        try:
            opener = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if not self.extra or (error.name or "").startswith("ooc"):
                raise
            raise MissingExtraError(
                f"{path} is {self.name}, and the package {error.name} is not installed",
                hint=f"pip install 'ooc[{self.extra}]'",
            ) from error
        return cast(Callable[[Path, str | None], Store], opener)(path, dataset)


FORMATS: tuple[Format, ...] = (
    Format(name="npy", suffixes=(".npy",), opener="ooc.stores.npy:open_npy", magic=(b"\x93NUMPY",)),
    Format(
        name="hdf5",
        suffixes=(".h5", ".hdf5", ".hdf", ".he5", ".h5ad", ".nc4"),
        opener="ooc.stores.hdf5:open_hdf5",
        magic=(b"\x89HDF\r\n\x1a\n",),
        inside="dataset",
    ),
    Format(name="zarr", suffixes=(".zarr", ".zarr.zip"), opener="ooc.stores.zarr:open_zarr", inside="array"),
    Format(name="vecs", suffixes=(".fvecs", ".bvecs"), opener="ooc.stores.vecs:open_vecs"),
    Format(
        name="bin",
        suffixes=(".fbin", ".f16bin", ".bf16bin", ".u8bin", ".i8bin"),
        opener="ooc.stores.bin:open_bin",
    ),
    Format(
        name="parquet",
        suffixes=(".parquet", ".pq"),
        opener="ooc.stores.parquet:open_parquet",
        magic=(b"PAR1",),
        extra="parquet",
        inside="column",
    ),
    Format(
        name="arrow",
        suffixes=(".arrow", ".feather", ".ipc"),
        opener="ooc.stores.parquet:open_arrow",
        magic=(b"ARROW1",),
        extra="parquet",
        inside="column",
    ),
)


def format_of_name(name: str) -> Format | None:
    """The format that a file name stands for, by its suffix."""
    lower = name.lower()
    return next((f for f in FORMATS if lower.endswith(f.suffixes)), None)


def find_format(path: Path) -> Format | None:
    """The format of a file or directory: what its first bytes say, else its suffix."""
    if path.is_dir():
        return _named("zarr") if is_zarr(path) else None
    with path.open("rb") as file:
        begin = file.read(16)
        known = next((f for f in FORMATS if f.magic and begin.startswith(f.magic)), None)
        if known is not None:
            return known
        # HDF5 may follow a user block of 512 bytes or a power of two times that.
        at = 512
        while file.seek(at) == at and len(begin := file.read(8)) == 8:
            if begin == _named("hdf5").magic[0]:
                return _named("hdf5")
            at *= 2
    return format_of_name(path.name)


def is_zarr(path: Path) -> bool:
    """Whether a directory is the root of a Zarr array or group (v2 or v3)."""
    return any((path / name).is_file() for name in ("zarr.json", ".zarray", ".zgroup"))


def _named(name: str) -> Format:
    return next(f for f in FORMATS if f.name == name)
