"""The index's own rows: in which dtype it keeps them, in which files, and what they lose by it.

They are written in place while shards are filled, in blocks on the grid that starts at row 0. The loss
is kept for each block and summed up when all are there, so it is the same however the rows were cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from ooc.build.sample import npy_header
from ooc.build.shards import Shard
from ooc.build.sizes import copied_dtype
from ooc.durable import RowsFile, as_bytes
from ooc.errors import DataError
from ooc.index.layout import SegmentLayout
from ooc.stores.base import as_float32
from ooc.stores.cast import cast_rows
from ooc.stores.scaled import to_int8
from ooc.types import AnyArray, CopyDtype, FloatArray

__all__ = ["Copied", "Copies", "copy_error", "copy_record"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """What was written of one block.

    Attributes
    ----------
    checksums : tuple of str
        XXH3-128 of its part of each file: of rows, and of scales where there are any.
    loss : (float, float), optional
        Sum of the squared errors, and of the squares of the rows themselves; None where the copy is
        exact. Rows with NaN or infinity do not count.
    """

    checksums: tuple[str, ...]
    loss: tuple[float, float] | None


class Copies:
    """The files of the index's own rows, written in place, any block at any time, by several threads.

    Making it makes the files, which only one process at a time may do; writing is free to all.

    Parameters
    ----------
    dtype : str
        Of the store.
    copy_dtype : {"store", "float16", "int8"}
    shape : (n, d)
    segment : SegmentLayout
        Where the files are.
    """

    def __init__(
        self, dtype: str, copy_dtype: CopyDtype, shape: tuple[int, int], segment: SegmentLayout
    ) -> None:
        self._dtype, self._how = copied_dtype(dtype, copy_dtype), copy_dtype
        self._files: list[RowsFile] = []
        parts = [(segment.vectors, shape, self._dtype)]
        if copy_dtype == "int8":
            parts.append((segment.scales, (shape[0], 1), np.dtype(np.float32)))
        try:
            for path, size_of, kind in parts:
                size = math.prod(size_of) * kind.itemsize
                self._files.append(RowsFile(path, npy_header(size_of, kind), size))
        except BaseException:
            self.close()
            raise

    def write(self, start: int, rows: AnyArray) -> Copied:
        """Write a block ``(m, d)`` of rows in the store's dtype; ``start`` is the number of the first.

        Raises
        ------
        DataError
            A value is beyond float16, where that is the dtype of the copy.
        """
        arrays, loss = self._encoded(start, rows)
        for file, array in zip(self._files, arrays, strict=True):
            file.write(start * array.shape[1] * array.dtype.itemsize, array)
        digests = (xxhash.xxh3_128_hexdigest(as_bytes(array)) for array in arrays)
        return Copied(checksums=tuple(digests), loss=loss)

    def _encoded(self, start: int, rows: AnyArray) -> tuple[list[AnyArray], tuple[float, float] | None]:
        """What goes into each file, and the loss."""
        if self._how == "store":
            exact = as_float32(rows) if self._dtype.name == "float32" else rows
            return [np.ascontiguousarray(exact, dtype=self._dtype)], None
        x = as_float32(rows)
        if self._how == "int8":
            values, scales = to_int8(x)
            return [values, scales], _loss(x, np.multiply(values, scales, dtype=np.float32))
        try:
            cast = cast_rows(x, self._dtype, first=start)
        except DataError as error:
            error.hint = "Build with a copy as int8, which scales each row, or as the store has it."
            raise
        return [cast], _loss(x, cast.astype(np.float32))

    def flush(self) -> None:
        """Make all that was written durable."""
        for file in self._files:
            file.flush()

    def close(self) -> None:
        """Close the files; may be called twice."""
        for file in self._files:
            file.close()


def _loss(x: FloatArray, decoded: FloatArray) -> tuple[float, float]:
    """Sums of squared errors and of squares; ``decoded`` is overwritten."""
    with np.errstate(invalid="ignore"):  # of rows that are not finite
        error = np.subtract(decoded, x, out=decoded)
    errors = np.einsum("ij,ij->i", error, error, dtype=np.float64)
    squares = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    finite = np.isfinite(squares)
    return float(errors[finite].sum()), float(squares[finite].sum())


def copy_record(blocks: list[Copied]) -> dict[str, Any]:
    """What the record of a shard says of its copied blocks, in their order."""
    return {
        "row_checksums": [block.checksums[0] for block in blocks],
        "scale_checksums": [block.checksums[1] for block in blocks if len(block.checksums) > 1],
        "copy_loss": [list(block.loss) for block in blocks if block.loss is not None],
    }


def copy_error(shards: Iterable[Shard]) -> float:
    """Root mean square error of the whole copy, relative to that of the rows: 0 where it is exact.

    The sums are exact but for one rounding, so how the rows were cut into shards does not show.
    """
    errors, squares = zip(*(loss for shard in shards for loss in shard.copy_loss), strict=True)
    whole = math.fsum(squares)
    return math.sqrt(math.fsum(errors) / whole) if whole else 0.0
