"""Rows on their way in: to float32, checked, and normalised where the metric is cosine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ooc.stores.base import as_float32
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.vectors import normalise

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Rows ready to be assigned and encoded.

    Attributes
    ----------
    x : (m, d) float32
        The rows; with ``cosine``, of unit length (zero rows stay zero). Bad rows are set to zero.
    bad : (b,) int64
        Places of rows that hold NaN or infinity.
    zeros : int
        How many rows are zero, where the metric is cosine.
    """

    x: FloatArray
    bad: IntArray
    zeros: int

    def comparable(self, metric: Metric) -> NDArray[np.bool_]:
        """Which rows ``(m,)`` others can be near to: not bad ones, nor zero ones by cosine."""
        which = np.ones(len(self.x), np.bool_)
        which[self.bad] = False
        if metric == "cosine":  # everything is as near to a row of zeros
            which &= self.x.any(axis=1)
        return which


def prepare(rows: AnyArray, metric: Metric) -> Prepared:
    """Rows ``(m, d)`` of any store dtype as the build uses them. ``rows`` is not changed."""
    x = as_float32(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", x, x)
    # A sum of squares is finite only where every value is: one pass finds the suspects, and only
    # those are looked at value by value (large finite values overflow the sum as well).
    suspects = np.flatnonzero(~np.isfinite(squares))
    bad = suspects[~np.isfinite(x[suspects]).all(axis=1)]
    if len(bad):
        if np.shares_memory(x, rows):
            x = x.copy()
        x[bad], squares[bad] = 0, 0
    if metric != "cosine":
        return Prepared(x=x, bad=bad, zeros=0)
    x, zeros = normalise(x, squares)
    return Prepared(x=x, bad=bad, zeros=zeros - len(bad))
