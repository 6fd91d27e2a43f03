"""Lengths of vectors, right for every finite float32."""

from __future__ import annotations

import numpy as np

from ooc.types import FloatArray

__all__ = ["normalise"]


def normalise(x: FloatArray) -> tuple[FloatArray, int]:
    """Rows ``(m, d)`` divided by their length, in an array of their own; how many are zero.

    Zero rows stay zero: their cosine with anything is taken as 0.
    """
    with np.errstate(over="ignore"):
        norms: FloatArray = np.sqrt(np.einsum("ij,ij->i", x, x))
    # Squares over- and underflow where the values do not: those few rows are measured in float64,
    # and brought near 1 before they are divided.
    odd = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-15))
    if not len(odd):
        return x / norms[:, None], 0
    wide = x[odd].astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    zero = lengths == 0
    norms[odd] = 1
    unit = x / norms[:, None]
    unit[odd] = wide / np.where(zero, 1, lengths)[:, None]
    return unit, int(zero.sum())
