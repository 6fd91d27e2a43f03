"""Which rows of a store are drawn: by the number of rows and a seed alone."""

from __future__ import annotations

import numpy as np

from ooc.types import IntArray

__all__ = ["draw"]


def draw(n: int, m: int, seed: int) -> IntArray:
    """``m`` different row numbers of ``0 .. n - 1``, each set as likely as any other, ascending."""
    rng = np.random.default_rng([seed, n])
    if m >= n:
        return np.arange(n, dtype=np.int64)
    if m > n // 2:
        return np.sort(rng.choice(n, m, replace=False))
    # Far fewer than all: drawing again what was drawn twice takes memory for m, not for n.
    rows = _distinct(rng.integers(0, n, m, dtype=np.int64))
    while len(rows) < m:
        rows = _distinct(np.concatenate((rows, rng.integers(0, n, m - len(rows), dtype=np.int64))))
    return rows


def _distinct(rows: IntArray) -> IntArray:
    """As ``numpy.unique``, many times faster."""
    rows = np.sort(rows)
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]
