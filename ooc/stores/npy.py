"""NumPy's ``.npy``: a header, then the numbers.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Object arrays are
refused by their dtype; nothing is ever unpickled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ooc.errors import StoreError
from ooc.stores.base import check_chunks, check_dtype, check_shape
from ooc.stores.mapped import MappedStore, Tiles, one_tile
from ooc.stores.npy_header import read_npy_header

__all__ = ["open_npy"]

#: Magic, length and header lie within this. A damaged length must not make numpy read gigabytes.
_HEADER_BYTES = 1 << 17


def open_npy(path: Path, dataset: str | None = None) -> MappedStore:
    """Open an ``.npy`` file, in C or Fortran order, in either byte order.

    Raises
    ------
    StoreError
        When it is not an npy file, is shorter than its header says, or does not hold vectors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    try:
        shape, fortran, dtype, offset = read_npy_header(head)
    except ValueError as error:
        raise StoreError(
            f"{path} is not a readable npy file: {error}",
            kind="store-format",
            hint="Copy or write it again.",
        ) from error
    native = check_dtype(dtype, str(path))
    n, d = check_shape(shape, str(path))
    if size < offset + n * d * native.itemsize:
        raise StoreError(
            f"{path} is cut off: {n} x {d} {native.name} need {offset + n * d * native.itemsize} bytes, "
            f"the file has {size}",
            kind="store-format",
            hint="Copy or write it again.",
        )
    if fortran and n > 1 and d > 1:
        check_chunks(d, str(path))
        # Each column is a tile of its own.
        tiles = Tiles(
            rows=n,
            cols=1,
            stride=dtype.itemsize,
            files=(str(path),),
            file=np.zeros((1, d), np.int64),
            offset=(offset + np.arange(d, dtype=np.int64) * n * dtype.itemsize).reshape(1, d),
        )
    else:
        tiles = one_tile(path, n, d, offset=offset, stride=d * dtype.itemsize)
    return MappedStore(uri=str(path), format="npy", shape=(n, d), dtype=dtype, tiles=tiles)
