"""Rows in a quarter of their bytes: int8 values, and one float32 scale a row.

A row is its values times its scale, which is the row's largest absolute value over 127. Every row has
127 steps on either side of zero whatever its length, so nothing is out of range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ooc.errors import StoreError
from ooc.stores.base import Store, check_rows
from ooc.stores.mapped import MappedStore
from ooc.types import AnyArray, FloatArray, IntArray

__all__ = ["ScaledStore", "to_int8"]

_STEPS = 127

#: The largest scale: one more bit, and 127 times it would be beyond float32.
_LARGEST = np.nextafter(np.finfo(np.float32).max / np.float32(_STEPS), np.float32(0))


def to_int8(x: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Rows as int8 and their scales; their product is nearest to ``x`` that such scales allow.

    Parameters
    ----------
    x : (m, d) float32
        Not changed. Rows may hold NaN or infinity.

    Returns
    -------
    values : (m, d) int8
        From -127 to 127.
    scales : (m, 1) float32
        The largest absolute value of each row over 127; 0 for a row of zeros, NaN where the row holds
        NaN or infinity.
    """
    largest: FloatArray = np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True))
    scales: FloatArray = np.minimum(largest / np.float32(_STEPS), _LARGEST)
    scales[~np.isfinite(largest)] = np.nan
    with np.errstate(invalid="ignore"):
        steps = x / np.where(scales > 0, scales, np.float32(np.inf))
    steps[np.isnan(scales[:, 0])] = 0
    np.rint(steps, out=steps)
    # Scales below 1e-38 have few digits.
    np.clip(steps, -_STEPS, _STEPS, out=steps)
    return steps.astype(np.int8), scales


class ScaledStore(Store):
    """Rows that lie as int8 and scales in two mapped stores, as float32.

    Parameters
    ----------
    values : MappedStore
        ``(n, d)`` int8.
    scales : MappedStore
        ``(n, 1)`` float32. Both are this store's from now on, which closes them, also when it raises.

    Raises
    ------
    StoreError
        ``store-shape`` or ``store-dtype`` when they are something else.

    Notes
    -----
    It has no ``uri``: the files are opened by whoever knows that they belong together. Rows are always
    decoded copies, never views.
    """

    def __init__(self, values: MappedStore, scales: MappedStore) -> None:
        self._values, self._scales = values, scales
        try:
            if (scales.n, scales.d) != (values.n, 1):
                raise StoreError(
                    f"{scales.describe()} are not the scales of {values.describe()}: "
                    "one number a row is wanted",
                    kind="store-shape",
                )
            for part, dtype in ((values, "int8"), (scales, "float32")):
                if part.dtype.name != dtype:
                    raise StoreError(f"{part.describe()} shall be {dtype}", kind="store-dtype")
        except StoreError:
            self.close()
            raise
        self.uri, self.format = "", "scaled"
        self.n, self.d = values.n, values.d
        self.dtype = np.dtype(np.float32)
        self.mapped = True
        self.chunk_starts, self.chunk_bytes = values.chunk_starts, 0

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop``, decoded."""
        self._check_span(start, stop)
        self.will_need(start, stop)
        return _decoded(self._values.read(start, stop), self._scales.read(start, stop))

    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, ``(len(rows), d)``, decoded, in the order asked for."""
        self.will_take(rows)
        return self.gather(rows)

    def gather(self, rows: IntArray) -> AnyArray:
        """As ``take``, for rows that were asked for with ``will_take`` before."""
        rows = check_rows(rows, self.n)
        return _decoded(self._values.gather(rows), self._scales.gather(rows))

    def will_take(self, rows: IntArray) -> int:
        """Start reading the pages of the given rows and their scales, all at once; how many reads that is."""
        rows = check_rows(rows, self.n)
        return self._values.will_take(rows) + self._scales.will_take(rows)

    def will_need(self, start: int, stop: int) -> None:
        """Start reading rows ``start`` to ``stop``; returns at once."""
        self._values.will_need(start, stop)
        self._scales.will_need(start, stop)

    def forget(self, start: int, stop: int) -> None:
        """Let go of the pages of rows ``start`` to ``stop``, in this process and in the page cache."""
        self._values.forget(start, stop)
        self._scales.forget(start, stop)

    def close(self) -> None:
        """Give the mappings up; may be called twice."""
        self._values.close()
        self._scales.close()

    def describe(self) -> str:
        """One line for people."""
        return f"{self._values.uri} with its scales ({self.n} x {self.d} {self.dtype.name}, mapped)"


def _decoded(values: AnyArray, scales: AnyArray) -> FloatArray:
    return np.multiply(values, scales, dtype=np.float32)
