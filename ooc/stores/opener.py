"""``open_store``: from what a user writes to an open ``Store``."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ooc.errors import ArgumentError, ResourceError, StoreError
from ooc.stores.array import ArrayStore
from ooc.stores.base import Store
from ooc.stores.formats import FORMATS, find_format, format_of_name, is_zarr
from ooc.types import StoreLike

__all__ = ["natural_key", "open_store", "split_dataset"]

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def open_store(spec: StoreLike) -> Store:
    """Open vectors for reading, wherever they are.

    Parameters
    ----------
    spec : path, str, numpy.ndarray, Store, or a list of these
        - a path to a file, or to a Zarr directory: the format is told by what the file begins with,
          else by its suffix;
        - ``PATH::/dataset``: an array in HDF5 or a Zarr group, a column in Parquet or Arrow; where a
          file has exactly one that can be vectors, it need not be named;
        - a URL that Zarr opens through fsspec (``http://``, ``s3://``, ``memory://``; extra
          ``[remote]``), with ``::/dataset`` where needed;
        - a glob (``"part-*.npy"``) or a directory of files of one format: read as one store, sorted by
          name with numbers by their value (``part-2`` before ``part-10``);
        - a list or tuple of any of these: one store, in the order given;
        - a 2-d numpy array, kept as it is, not copied; also an ``h5py.Dataset`` or ``zarr.Array``, opened
          again by its file and name;
        - a ``Store``: returned as it is.

    Returns
    -------
    Store
        Open; close it, or use it as a context manager. Nothing but headers has been read.

    Raises
    ------
    StoreError
        ``store-missing``: there is nothing at the path. ``store-format``: it is not of a known format,
        or cut off. ``dataset-missing``: the dataset is not there, or must be named. ``store-shape``,
        ``store-dtype``, ``store-empty``: it is not a 2-d array with rows, of a dtype vectors have.
    MissingExtraError
        When the package that reads the format is not installed.
    """
    if isinstance(spec, Store):
        return spec
    if isinstance(spec, np.ndarray):
        return ArrayStore(spec)
    if isinstance(spec, str | os.PathLike):
        return _open_named(os.fspath(spec))
    if isinstance(spec, list | tuple):
        return _open_parts(list(spec))
    return _open_object(spec)


def _open_named(text: str) -> Store:
    if text.startswith('["'):
        # The uri of a store of several parts.
        return _open_parts(_part_names(text))
    if text.startswith("~"):
        text = str(Path(text).expanduser())
    text = text.removeprefix("file://")
    try:
        return _open_text(text)
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"reading {text}")
        raise ResourceError(
            f"{text} cannot be read: {error.strerror or error}", kind="store-unreadable"
        ) from error


def _open_text(text: str) -> Store:
    if not text or text.startswith("::"):
        raise ArgumentError(f"{text!r} names no store", kind="store", hint="Give a path, or a URL.")
    text, dataset = (text, None) if Path(text).exists() else split_dataset(text)
    if _URL.match(text):
        from ooc.stores.zarr import open_url

        return open_url(text, dataset)
    path = Path(text).absolute()
    if path.is_dir() and not is_zarr(path):
        return _open_directory(path, dataset)
    if path.is_file() or path.is_dir():
        return _open_path(path, dataset)
    if path.exists():
        raise StoreError(
            f"{path} is a pipe or a device, which cannot be read in any order",
            kind="store-format",
            hint="Write it to a file first.",
        )
    if glob.has_magic(text):
        return _open_glob(text, dataset)
    raise StoreError(f"there is nothing at {path}", kind="store-missing", hint=_nearest(path))


def _open_path(path: Path, dataset: str | None) -> Store:
    known = find_format(path)
    if known is None:
        raise StoreError(
            f"{path} is not a store of vectors that ooc knows", kind="store-format", hint=_formats_hint()
        )
    return known.open(path, dataset)


def _open_directory(path: Path, dataset: str | None) -> Store:
    names = [p.name for p in path.iterdir() if not p.name.startswith(".") and format_of_name(p.name)]
    kinds = sorted({Path(name).suffix.lower() for name in names})
    if not names:
        raise StoreError(
            f"{path} is a directory without a store in it", kind="store-format", hint=_formats_hint()
        )
    if len(kinds) > 1:
        raise StoreError(
            f"{path} holds files of several kinds ({', '.join(kinds)}): which of them are the store is "
            "not clear",
            kind="store-format",
            hint=f"Name them by a pattern, for example '{path}/*{kinds[0]}'.",
        )
    parts = [_join(str(path / name), dataset) for name in sorted(names, key=natural_key)]
    return _open_parts(parts, uri=_join(str(path), dataset))


def _open_glob(pattern: str, dataset: str | None) -> Store:
    if not Path(pattern).is_absolute():
        pattern = str(Path(glob.escape(str(Path.cwd()))) / pattern)
    names = sorted(glob.glob(pattern, recursive=True), key=natural_key)  # noqa: PTH207 - absolute
    if not names:
        raise StoreError(f"no file matches {pattern}", kind="store-missing", hint="Check the pattern.")
    return _open_parts([_join(name, dataset) for name in names], uri=_join(pattern, dataset))


def _open_parts(parts: list[Any], *, uri: str | None = None) -> Store:
    from ooc.stores.multi import MultiStore

    if not parts:
        raise ArgumentError("a store of no parts: the list is empty", kind="store")
    if all(isinstance(part, int | float | list | tuple) for part in parts):
        raise ArgumentError(
            "vectors as nested Python lists are not a store", kind="store", hint="Give a numpy array."
        )
    if len(parts) == 1 and uri is None:
        return open_store(parts[0])
    return MultiStore((open_store(part) for part in parts), uri=uri)


def _open_object(spec: Any) -> Store:
    """An ``h5py.Dataset`` or a ``zarr.Array``, known by its class so that neither is imported."""
    for cls in type(spec).__mro__:
        library = cls.__module__.partition(".")[0]
        if library == "h5py" and cls.__name__ == "Dataset":
            return _open_named(f"{spec.file.filename}::{spec.name}")
        if library == "zarr" and cls.__name__ == "Array":
            from ooc.stores.zarr import open_array

            return open_array(spec)
    raise ArgumentError(
        f"a store cannot be a {type(spec).__name__}",
        kind="store",
        hint="Give a path, a list of paths, a 2-d numpy array, or an open store.",
    )


def split_dataset(text: str) -> tuple[str, str | None]:
    """``"x.h5::/emb"`` → ``("x.h5", "/emb")``; ``fsspec``'s own chains (``a::s3://b``) stay whole."""
    path, separator, dataset = text.rpartition("::")
    if not separator or _URL.match(dataset):
        return text, None
    return path, dataset or None


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts names with the numbers in them by value: ``part-2`` before ``part-10``."""
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in re.split(r"([0-9]+)", name)]


def _join(path: str, dataset: str | None) -> str:
    return path if dataset is None else f"{path}::{dataset}"


def _part_names(text: str) -> list[str]:
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"{text} is not a JSON list of stores: {error}", kind="store") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"{text} is not a JSON list of stores", kind="store")
    return names


def _formats_hint() -> str:
    names = (f"{f.name} ({' '.join(f.suffixes)})" for f in FORMATS)
    return f"ooc reads {', '.join(names)}, and a directory, glob or list of these."


def _nearest(path: Path) -> str:
    """What a mistyped path may have meant."""
    parent = path.parent
    if not parent.is_dir():
        return f"The directory {parent} does not exist either."
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1, cutoff=0.75)
    return f"Did you mean {parent / close[0]}?" if close else "Check the path."
