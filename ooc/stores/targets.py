"""What ``convert`` can write: from a destination's name and settings to a writer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ooc.errors import ArgumentError, ConflictError, ResourceError
from ooc.stores.base import Store
from ooc.stores.cast import WRITABLE, writable_dtype
from ooc.stores.formats import is_zarr
from ooc.stores.write import (
    HDF5_SUFFIXES,
    ZARR_SUFFIXES,
    StoreWriter,
    default_chunk_rows,
    existing_parent,
    split_name,
)
from ooc.stores.write_arrow import ARROW_COMPRESSIONS, ARROW_SUFFIXES, PARQUET_COMPRESSIONS, PARQUET_SUFFIXES
from ooc.stores.write_raw import RAW_DTYPES, RawWriter, raw_layout
from ooc.types import PathOrStr, StoreLike

__all__ = ["Target", "check_not_source", "check_not_stores", "parse_target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A store to be written, with every setting decided.

    Attributes
    ----------
    path : Path
        The file or directory, absolute.
    format : str
        ``"zarr"``, ``"hdf5"``, ``"parquet"``, ``"arrow"``, or the suffix without its dot.
    dataset : str or None
        The dataset or column in it.
    chunk_rows : int
        Rows of a chunk; 0 where the format has none.
    """

    path: Path
    format: str
    dataset: str | None
    n: int
    d: int
    dtype: np.dtype[Any]
    chunk_rows: int
    compression: str

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk where nothing is compressed: the last chunk is as long as the others."""
        whole = self.unit_rows if self.format in ("zarr", "hdf5") else 1
        prefix = 4 if self.format.endswith("vecs") else 0
        return -(-self.n // whole) * whole * (self.d * self.dtype.itemsize + prefix)

    @property
    def unit_rows(self) -> int:
        """Rows that the writer holds back until it can write them."""
        return max(1, self.chunk_rows)

    @property
    def resumable(self) -> bool:
        """Whether an unfinished file can be gone on with."""
        return self.format not in ("parquet", "arrow")

    def settings(self) -> dict[str, Any]:
        """What must be the same for an unfinished conversion to be gone on with; JSON-ready."""
        return {
            "format": self.format,
            "dataset": self.dataset,
            "dtype": self.dtype.name,
            "chunk_rows": self.chunk_rows,
            "compression": self.compression,
        }

    def open(self, path: Path, rows: int) -> StoreWriter:
        """A writer on ``path`` that goes on after at most ``rows`` durable rows; its ``n`` says where."""
        uri = str(self.path)
        if self.format == "zarr":
            from ooc.stores.write_zarr import ZarrWriter

            return ZarrWriter(
                path,
                self.dataset,
                d=self.d,
                dtype=self.dtype,
                append=True,
                chunk_rows=self.chunk_rows,
                compression=self.compression,
            )
        if self.format == "hdf5":
            from ooc.stores.write_hdf5 import Hdf5Writer, contiguous_layout

            if self.chunk_rows:
                return Hdf5Writer(
                    path,
                    self.dataset,
                    d=self.d,
                    dtype=self.dtype,
                    append=True,
                    chunk_rows=self.chunk_rows,
                    compression=self.compression,
                )
            layout = contiguous_layout(
                path, self.dataset, n=self.n, d=self.d, dtype=self.dtype, fresh=rows == 0
            )
            return RawWriter(path, layout, uri=uri, start=rows)
        if not self.resumable:
            from ooc.stores.write_arrow import ArrowWriter

            return ArrowWriter(
                path,
                parquet=self.format == "parquet",
                column=self.dataset,
                uri=uri,
                d=self.d,
                dtype=self.dtype,
                chunk_rows=self.chunk_rows,
                compression=self.compression,
            )
        layout = raw_layout(f".{self.format}", n=self.n, d=self.d, dtype=self.dtype)
        return RawWriter(path, layout, uri=uri, start=rows)

    def check_replaceable(self) -> None:
        """Whether the whole of what is at the path may go for this store.

        Raises
        ------
        ConflictError
            When it is not a store of this format, or holds more than the dataset that is written.
        """
        others: list[str] = []
        if self.format == "zarr":
            is_store = is_zarr(self.path)
            if is_store and not (self.path / ".zarray").exists():
                others = _zarr_members(self.path)
        elif self.format == "hdf5":
            is_store = self.path.is_file()
            others = _hdf5_members(self.path) if is_store else []
        else:
            is_store = self.path.is_file()
        if not is_store:
            raise ConflictError(
                f"{self.path} exists and is no {self.format} store: it is not replaced",
                kind="store-exists",
                hint="Name another destination.",
            )
        if len(others) > 1:
            raise ConflictError(
                f"{self.path} holds {len(others)} arrays ({', '.join(others[:8])}), which would all be lost",
                kind="store-exists",
                hint="Name another destination, or remove it first.",
            )


def _zarr_members(path: Path) -> list[str]:
    import zarr

    try:
        root = zarr.open(path, mode="r")
    except Exception as error:  # damaged metadata: nothing to lose that could be named
        ResourceError.raise_if_lacking(error, f"opening {path}")
        return []
    if not isinstance(root, zarr.Group):
        return []
    return [name for name, member in root.members(max_depth=None) if isinstance(member, zarr.Array)]


def _hdf5_members(path: Path) -> list[str]:
    import h5py

    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(name)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"opening {path}")
        return []
    return found


def parse_target(
    dst: PathOrStr,
    *,
    n: int,
    d: int,
    source: np.dtype[Any],
    dtype: Any = None,
    chunk_rows: int | None = None,
    compression: str | None = None,
) -> Target:
    """Decide every setting of a destination.

    Parameters
    ----------
    dst : path
        ``NAME.SUFFIX`` or ``NAME.SUFFIX::name``.
    n, d : int
        Rows and columns to come.
    source : numpy.dtype
        What they are, for where ``dtype`` is None.

    Raises
    ------
    ArgumentError
        When the name or a setting is not possible; the hint says what is.
    """
    path, dataset = split_name(dst)
    suffix = path.suffix.lower()
    allowed: tuple[str, ...] = WRITABLE
    compressions: tuple[str, ...] = ("none",)
    has_chunks = True
    if suffix in ZARR_SUFFIXES:
        from ooc.stores.write_zarr import ZARR_COMPRESSIONS

        name, compressions = "zarr", ZARR_COMPRESSIONS
    elif suffix in HDF5_SUFFIXES:
        from ooc.stores.write_hdf5 import HDF5_COMPRESSIONS

        name, compressions = "hdf5", HDF5_COMPRESSIONS
        has_chunks = chunk_rows is not None or compression not in (None, "none")
    elif suffix in PARQUET_SUFFIXES:
        name, compressions = "parquet", PARQUET_COMPRESSIONS
    elif suffix in ARROW_SUFFIXES:
        name, compressions = "arrow", ARROW_COMPRESSIONS
    elif suffix in RAW_DTYPES:
        name, allowed, has_chunks = suffix[1:], RAW_DTYPES[suffix], False
        if dataset is not None or chunk_rows is not None:
            raise ArgumentError(
                f"a {suffix} file is one array: it has no {'names' if dataset is not None else 'chunks'}",
                kind="store-name" if dataset is not None else "chunks",
                hint="Leave that out, or choose .zarr, .h5 or .parquet.",
            )
    else:
        known = (*ZARR_SUFFIXES, *HDF5_SUFFIXES, *RAW_DTYPES, *PARQUET_SUFFIXES, *ARROW_SUFFIXES)
        raise ArgumentError(
            f"{dst} does not say a format that can be written",
            kind="store-name",
            hint=f"End its name in one of {' '.join(known)}.",
        )
    if dtype is None:
        dtype = allowed[0] if len(allowed) == 1 else source
        dtype = "float32" if getattr(dtype, "name", dtype) == "bfloat16" else dtype
    compression = compression or "none"
    if compression not in compressions:
        raise ArgumentError(
            f"{suffix} stores are not written with compression {compression!r}",
            kind="compression",
            hint=f"Choose one of {', '.join(compressions)}.",
        )
    if chunk_rows is not None and (isinstance(chunk_rows, bool) or chunk_rows < 1):
        raise ArgumentError(f"chunk_rows must be at least 1, not {chunk_rows}", kind="size")
    kind = writable_dtype(dtype, allowed=allowed, what=f"a {suffix} store")
    rows = (chunk_rows or default_chunk_rows(d * kind.itemsize, n)) if has_chunks else 0
    target = Target(
        path=existing_parent(path),
        format=name,
        dataset=dataset,
        n=n,
        d=d,
        dtype=kind,
        chunk_rows=rows,
        compression=compression,
    )
    if suffix in RAW_DTYPES:
        raw_layout(suffix, n=n, d=d, dtype=kind)  # says now what it cannot count
    return target


def check_not_source(src: StoreLike, store: Store, path: Path) -> None:
    """See that a destination is not what is read, nor lies in it.

    Raises
    ------
    ArgumentError
        ``same-path``.
    """
    names = [store.uri, os.fspath(src)] if isinstance(src, str | os.PathLike) else [store.uri]
    check_not_stores(path, names, what="the source itself")


def check_not_stores(path: Path, uris: Iterable[str], *, what: str) -> None:
    """See that a destination is none of some stores, under whatever name, nor lies in one.

    Raises
    ------
    ArgumentError
        ``same-path``; the message says ``what`` they are.
    """
    wanted = Path(os.path.realpath(path))
    for uri in uris:
        for name in json.loads(uri) if uri.startswith('["') else [uri]:
            source = Path(os.path.realpath(name.partition("::")[0]))
            if name and (_same(source, wanted) or (source.is_dir() and wanted.is_relative_to(source))):
                raise ArgumentError(
                    f"{path} is {what}, or lies in it",
                    kind="same-path",
                    hint="Name another destination.",
                )


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file: also by hard links."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False
