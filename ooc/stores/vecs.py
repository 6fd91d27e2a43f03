"""``.fvecs`` and ``.bvecs`` of the TEXMEX sets: before each row its dimension as an int32.

Format: http://corpus-texmex.irisa.fr/, little-endian; float32 or uint8.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ooc.errors import DataError, StoreError
from ooc.stores.base import check_rows, check_shape
from ooc.stores.mapped import MappedStore, one_tile
from ooc.types import AnyArray, IntArray

__all__ = ["VecsStore", "open_vecs"]

_DIM_BYTES = 4


class VecsStore(MappedStore):
    """A mapped ``*vecs`` file; the dimension before each row that is read is checked."""

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop``, a view with a gap of four bytes between rows.

        Raises
        ------
        DataError
            When a row has another dimension than the first.
        """
        rows = super().read(start, stop)
        if start < stop:
            self._check_dims(np.arange(start, stop, dtype=np.int64))
        return rows

    def gather(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, as a copy in the order asked for.

        Raises
        ------
        DataError
            When one of the rows has another dimension than the first.
        """
        taken = super().gather(rows)
        self._check_dims(check_rows(rows, self.n))
        return taken

    def _check_dims(self, rows: IntArray) -> None:
        stride = self._tiles.stride
        dims: AnyArray = np.ndarray((self.n,), "<i4", self._map(0).bytes.data, 0, (stride,))
        consecutive = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
        some = dims[rows[0] : rows[-1] + 1] if consecutive else dims[rows]
        wrong = np.flatnonzero(some != self.d)
        if len(wrong):
            raise DataError(
                f"{self.uri} row {rows[wrong[0]]} says that it has {some[wrong[0]]} dimensions, "
                f"the first row has {self.d}",
                kind="row-dimension",
                hint="The file is damaged, or its rows differ in length.",
            )


def open_vecs(path: Path, dataset: str | None = None) -> VecsStore:
    """Open an ``.fvecs`` or ``.bvecs`` file.

    Raises
    ------
    StoreError
        When the file is empty, cut off, or its first row makes no sense.
    """
    dtype = np.dtype("<f4") if path.suffix.lower() == ".fvecs" else np.dtype("u1")
    size = path.stat().st_size
    if size == 0:
        raise StoreError(f"{path} is empty", kind="store-empty")
    with path.open("rb") as file:
        header = file.read(_DIM_BYTES)
    d = int.from_bytes(header, "little", signed=True)
    stride = _DIM_BYTES + d * dtype.itemsize
    if d < 1 or size < stride:
        raise StoreError(
            f"{path} is not a {path.suffix} file: its first row would have {d} dimensions in a file of "
            f"{size} bytes",
            kind="store-format",
        )
    n, rest = divmod(size, stride)
    if rest:
        raise StoreError(
            f"{path} is cut off, or its rows differ in length: {size} bytes are {n} rows of {stride} bytes "
            f"and {rest} bytes more",
            kind="store-format",
            hint="Copy or write it again.",
        )
    shape = check_shape((n, d), str(path))
    tiles = one_tile(path, n, d, offset=_DIM_BYTES, stride=stride)
    return VecsStore(uri=str(path), format="vecs", shape=shape, dtype=dtype, tiles=tiles)
