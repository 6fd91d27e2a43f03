"""k-means on a sample that lies on disk, the same bits at any number of threads.

Lloyd's algorithm from rows drawn at random, a block of rows at a time: only the centroids and their
sums are in memory, and with many centroids each pass is cheap, because rows are assigned through a
sketch of them (``ooc.engine.Nearest``). The first passes look at half of the sample each; so few
rows leave some lists empty, and each of those takes half of the largest list, which evens them out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

import numpy as np

from ooc.build.assign import Assigner
from ooc.build.workers import Pool, in_order
from ooc.types import FloatArray, IntArray, Metric

__all__ = ["Rows", "kmeans", "rows_looked_at"]

_BLOCK = 1024
#: Passes over the sample: every how-manieth block, from which on.
_PASSES = ((2, 0), (2, 1), (2, 0), (2, 1), (1, 0), (1, 0), (1, 0), (1, 0))
#: A pass over a part needs this many rows a centroid and this many blocks, or else looks at all.
_PART_ROWS = 8
_PART_BLOCKS = 8
#: Up to this many centroids a matrix product sums their rows faster than sorting them does.
_DENSE_UP_TO = 256


class Rows(Protocol):
    """A sample: ``n`` rows of ``d`` float32, read by number or front to back."""

    n: int
    d: int

    def take(self, rows: IntArray) -> FloatArray: ...
    def iterate(self, rows: int, *, every: int = 1, first: int = 0) -> Iterator[FloatArray]: ...


def kmeans(
    sample: Rows,
    k: int,
    metric: Metric,
    seed: int,
    pool: Pool,
    *,
    progress: Callable[[int], None],
    threads: int,
) -> FloatArray:
    """``k`` centroids of a sample on disk.

    Parameters
    ----------
    sample : Rows
        ``(m, d)`` float32, prepared for the metric.
    seed : int
        The same sample, ``k`` and seed give the same centroids.
    progress : callable
        Is told the number of rows looked at so far, of ``rows_looked_at(m, k)``.

    Returns
    -------
    (k, d) float32
        Of unit length where the metric is ``ip`` or ``cosine``. Where there are fewer rows than
        centroids, rows repeat.
    """
    rng = np.random.default_rng([seed, k])
    if sample.n <= k:
        return _finish(sample.take(np.arange(k) % sample.n), metric)
    centroids = _finish(sample.take(np.sort(rng.choice(sample.n, k, replace=False))), metric)
    done = 0
    for every, first in _passes(sample.n, k):
        assigner = Assigner(centroids, metric)
        blocks = sample.iterate(_BLOCK, every=every, first=first)
        parts = in_order(pool, partial(_partial, assigner=assigner), blocks, threads)

        def counted(
            parts: Iterator[tuple[IntArray, FloatArray, IntArray]] = parts,
        ) -> Iterator[tuple[IntArray, FloatArray, IntArray]]:
            nonlocal done
            for part in parts:
                yield part
                done += int(part[2].sum())
                progress(done)

        centroids = _update(centroids, counted(), metric)
    return centroids


def rows_looked_at(n: int, k: int) -> int:
    """How many rows ``progress`` counts in all."""
    return 0 if n <= k else sum(_part(n, every, first) for every, first in _passes(n, k))


def _part(n: int, every: int, first: int) -> int:
    """Rows of a pass over every how-manieth block from ``first`` on."""
    starts = range(first * _BLOCK, n, every * _BLOCK)
    return sum(min(_BLOCK, n - start) for start in starts)


def _passes(n: int, k: int) -> list[tuple[int, int]]:
    """The passes that look at enough rows; the others look at all."""
    least = max(k * _PART_ROWS, _PART_BLOCKS * _BLOCK)
    return [p if _part(n, *p) >= least else (1, 0) for p in _PASSES]


def _partial(x: FloatArray, assigner: Assigner) -> tuple[IntArray, FloatArray, IntArray]:
    """``(centroids that got rows, sum of the rows of each, how many)`` for one block."""
    labels = assigner.assign(x)
    k = assigner.nlist
    if k <= _DENSE_UP_TO:
        members = np.zeros((k, len(x)), np.float32)
        members[labels, np.arange(len(x))] = 1
        return np.arange(k), members @ x, np.bincount(labels, minlength=k)
    order = np.argsort(labels, kind="stable")
    numbers, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return numbers, np.add.reduceat(x[order], first, axis=0), counts


def _update(
    centroids: FloatArray, partials: Iterable[tuple[IntArray, FloatArray, IntArray]], metric: Metric
) -> FloatArray:
    """Centroids moved to the mean of their rows; each one without rows takes half of the largest."""
    sums = np.zeros_like(centroids)
    counts = np.zeros(len(centroids), np.int64)
    for numbers, part, rows in partials:
        sums[numbers] += part
        counts[numbers] += rows
    filled = counts > 0
    sums[filled] /= counts[filled, None].astype(np.float32)
    # Repair as faiss does: both halves of a split list start beside its centroid, a little apart.
    tilt = np.where(np.arange(centroids.shape[1]) % 2 == 0, 1 + 1 / 1024, 1 - 1 / 1024).astype(np.float32)
    for empty in np.flatnonzero(~filled):
        largest = int(counts.argmax())
        sums[empty] = sums[largest] * tilt
        sums[largest] *= 2 - tilt
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
    return _finish(sums, metric)


def _finish(centroids: FloatArray, metric: Metric) -> FloatArray:
    if metric == "l2":
        return np.ascontiguousarray(centroids)
    norms = np.linalg.norm(centroids, axis=1, keepdims=True)
    return np.ascontiguousarray(centroids / np.where(norms > 0, norms, 1))
