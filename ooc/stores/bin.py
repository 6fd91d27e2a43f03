"""The big-ann-benchmarks layout: ``n`` and ``d`` as little-endian uint32, then the rows.

``.fbin`` float32, ``.u8bin`` uint8, ``.i8bin`` int8 as in
https://github.com/harsha-simhadri/big-ann-benchmarks (``benchmark/dataset_io.py``); by the same
pattern ``.f16bin`` float16 and ``.bf16bin`` bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ooc.errors import StoreError
from ooc.stores.base import bfloat16, check_shape
from ooc.stores.mapped import MappedStore, one_tile

__all__ = ["open_bin"]

_HEADER_BYTES = 8
_DTYPES = {".fbin": "<f4", ".f16bin": "<f2", ".u8bin": "u1", ".i8bin": "i1"}


def open_bin(path: Path, dataset: str | None = None) -> MappedStore:
    """Open a file in the big-ann layout; the suffix gives the dtype.

    Raises
    ------
    StoreError
        When the file does not have the length its header says, or holds no rows.
    MissingExtraError
        When ``.bf16bin`` needs ``ml_dtypes`` and it is not installed.
    """
    suffix = path.suffix.lower()
    dtype = bfloat16(str(path)) if suffix == ".bf16bin" else np.dtype(_DTYPES[suffix])
    size = path.stat().st_size
    with path.open("rb") as file:
        header = np.frombuffer(file.read(_HEADER_BYTES), np.uint8)
    if len(header) < _HEADER_BYTES:
        raise StoreError(f"{path} is too short for a header of two uint32 (n, d)", kind="store-format")
    n, d = check_shape(tuple(header.view("<u4").tolist()), str(path))
    needed = _HEADER_BYTES + n * d * dtype.itemsize
    if size != needed:
        raise StoreError(
            f"{path} does not fit its header: {n} x {d} {dtype.name} make {needed} bytes, "
            f"the file has {size}",
            kind="store-format",
            hint=f"A cut-off copy, or another dtype than {suffix} stands for.",
        )
    tiles = one_tile(path, n, d, offset=_HEADER_BYTES, stride=d * dtype.itemsize)
    return MappedStore(uri=str(path), format="bin", shape=(n, d), dtype=dtype, tiles=tiles)
