"""Which rows of a store are drawn: by the number of rows, a seed and the store's chunks alone."""

from __future__ import annotations

import numpy as np

from ooc.stores import Store
from ooc.types import IntArray

__all__ = ["draw", "draw_few", "draw_sample", "draw_witnesses"]

#: A few rows of a store in chunks are drawn from so many of these, and so many bytes of them, decoded.
_CHUNKS, _CHUNK_BYTES = 32, 128 << 20


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


def draw_witnesses(n: int, count: int, seed: int) -> IntArray:
    """``count`` different row numbers, in no order: rows that recall is measured by."""
    return np.random.default_rng([seed, n, 1]).choice(n, count, replace=False)


def draw_sample(n: int, m: int, seed: int, held_out: int) -> IntArray:
    """As ``draw``, of all rows but the first ``held_out`` that are drawn as witnesses.

    A row that was trained on is nearer to a centroid than a query that was not, by the more the fewer rows
    its list has; at the end it is a list of its own. Where fewer than ``m`` others are there, all rows count.
    """
    if m > n - held_out:
        return draw(n, m, seed)
    out = np.sort(draw_witnesses(n, held_out, seed))
    rows = draw(n - held_out, m, seed)
    # Numbers among the others, as numbers among all.
    return rows + np.searchsorted(out - np.arange(held_out), rows, side="right")


def draw_few(store: Store, n: int, m: int, seed: int) -> IntArray:
    """About ``m`` of the first ``n`` rows of a store, as ``draw``: of one in chunks, rows of few of these."""
    if store.mapped or not store.uri:
        return draw(n, m, seed)
    starts = np.append(store.chunk_starts[store.chunk_starts < n], n)
    most = max(2, min(_CHUNKS, _CHUNK_BYTES // max(store.chunk_bytes, 1)))
    chunks = draw(len(starts) - 1, most, seed)
    each = -(-m // len(chunks))
    return np.concatenate(
        [starts[c] + draw(int(starts[c + 1] - starts[c]), each, seed) for c in chunks.tolist()]
    )


def _distinct(rows: IntArray) -> IntArray:
    """As ``numpy.unique``, many times faster."""
    rows = np.sort(rows)
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]
