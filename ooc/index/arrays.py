"""Arrays of an index directory: ``.npy`` files whose dtype and shape are known before they are read.

A header that says something else, or a file that is not as long as it says, is damage: nothing is allocated
by what a header claims.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import DTypeLike

from ooc.errors import IndexDirError, ResourceError
from ooc.stores.npy_header import read_npy_header
from ooc.types import AnyArray

__all__ = ["ROWS_BEGIN", "read_array", "rows_head"]

#: Headers that are written here are shorter: an array of one or two dimensions, padded to 4096 bytes at most.
_HEADER_BYTES = 4096 + 64
#: Files of rows have a header of this length, so that rows keep to pages where they can.
ROWS_BEGIN = 4096


def read_array(
    path: Path, dtype: DTypeLike, shape: tuple[int | None, ...], *, mapped: bool = False
) -> AnyArray:
    """The array in an ``.npy`` file that this package wrote.

    Parameters
    ----------
    path : Path
    dtype, shape
        What it must be; None in the shape for what is not known.
    mapped : bool
        Map it in place of reading it.

    Raises
    ------
    IndexDirError
        The file is missing or cannot be read, is no such array, or is not as long as that takes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            found, fortran, kind, begin = read_npy_header(file.read(_HEADER_BYTES))
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        raise _damaged(path, str(error.strerror)) from error
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    wanted = np.dtype(dtype)
    fits = len(found) == len(shape) and all(
        s in (None, f) and f >= 0 for f, s in zip(found, shape, strict=True)
    )
    if not fits or fortran or kind != wanted or not kind.isnative:
        expected = " x ".join("any" if s is None else str(s) for s in shape)
        raise _damaged(path, f"it is not {expected} {wanted}")
    count = 1
    for one in found:
        count *= one
    if size != begin + count * wanted.itemsize:
        raise _damaged(
            path, f"it has {size} bytes, not the {begin + count * wanted.itemsize} that it speaks of"
        )
    if mapped and count:
        return np.memmap(path, wanted, "r", begin, found)
    with path.open("rb") as file:
        file.seek(begin)
        array = np.fromfile(file, wanted, count)
    if len(array) != count:
        raise _damaged(path, "it ends early")
    return array.reshape(found)


def rows_head(path: Path) -> str:
    """XXH3-128 of the header of a file of rows, hexadecimal.

    Raises
    ------
    IndexDirError
        The file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return xxhash.xxh3_128_hexdigest(file.read(ROWS_BEGIN))
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        raise _damaged(path, str(error.strerror)) from error


def _damaged(path: Path, why: str) -> IndexDirError:
    return IndexDirError(
        f"{path} cannot be read: {why}",
        kind="index-damaged",
        hint="Copy the directory anew, or mend it with `ooc verify --repair`.",
    )
