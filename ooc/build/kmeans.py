"""k-means on a sample that lies on disk, the same bits at any number of threads.

Lloyd's algorithm from rows drawn at random, a block of rows at a time: only the centroids, their sums
and a few numbers for each row are in memory. It begins with three tenths more centroids than are wanted, and
after two passes those go whose rows lose least by moving to the next one: so what the draw left out is
found, and what it took twice goes. Centroids find their regions on few rows and their places on many: the
first passes go over a quarter of the sample, the last over all. With many centroids
a pass is cheap besides: one finds the few centroids that look near to each row through a sketch
(``ooc.engine.Nearest``) and keeps their numbers, and the next ones compare the row with the same few where
they have moved to. Few rows leave that few, and only rows that change their list change the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ooc.build.assign import Assigner
from ooc.build.workers import Pool, in_order
from ooc.engine import Look
from ooc.types import FloatArray, IntArray, Metric

__all__ = ["KEPT", "MORE", "Pass", "Rows", "kept_bytes", "kmeans", "passes", "rows_looked_at"]

#: Numbers of centroids, in few bytes.
NumberArray = NDArray[np.integer[Any]]

_BLOCK = 1024
#: Passes over the sample: whether each looks for near centroids anew, or only of rows that come into it; and
#: which part of the rows it takes: the first quarter, or all.
_PASSES = (
    *((True, 4) for _ in range(3)),
    *((False, 4) for _ in range(5)),
    *((False, 1) for _ in range(7)),
)
#: So many passes are made with more centroids than are wanted, by this share.
_PASSES_WITH_MORE = 2
MORE = 0.3
#: Fewer rows of a list than this, at the mean, are too few for a pass.
_LEAST_PER_LIST = 16
#: Centroids that are kept of each row of the sample between passes, where there are many.
KEPT = 8
#: Up to this many centroids a matrix product sums their rows faster than going through them does.
_DENSE_UP_TO = 256
#: Rows of one list in a block that are added one by one; further ones are summed first.
_ONE_BY_ONE = 3


class Rows(Protocol):
    """A sample: ``n`` rows of ``d`` float32, read by number or in order; its first rows are a sample too.

    In order they come as blocks that are read when they are called, by the threads that compare them.
    """

    n: int
    d: int

    def take(self, rows: IntArray) -> FloatArray: ...
    def iterate(self, rows: int, *, first: int, backwards: bool) -> Iterator[Callable[[], FloatArray]]: ...


def kmeans(
    sample: Rows,
    k: int,
    metric: Metric,
    seed: int,
    pool: Pool,
    *,
    progress: Callable[[int], None],
    threads: int,
    over: Sequence[Pass] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """``k`` centroids of a sample on disk, and how far the rows of each spread.

    Parameters
    ----------
    sample : Rows
        ``(m, d)`` float32, prepared for the metric.
    seed : int
        The same sample, ``k`` and seed give the same centroids.
    progress : callable
        Is told the number of rows looked at so far, of ``rows_looked_at(m, k)``.
    over : sequence of Pass, optional
        The passes that are made, with as many centroids as are wanted from the first on; default:
        ``passes(m, k)``, and more centroids at first.

    Returns
    -------
    centroids : (k, d) float32
        Of unit length where the metric is ``ip`` or ``cosine``. Where there are fewer rows than
        centroids, rows repeat.
    spread : (k,) float32
        For ``l2`` the mean squared distance of the rows of a list to their mean, else the length of
        their mean; as further rows of their kind would have it. All alike where there are too few rows.
    """
    rng = np.random.default_rng([seed, k])
    if sample.n <= k:
        return _finish(sample.take(np.arange(k) % sample.n), metric), np.ones(k, np.float32)
    each = passes(sample.n, k) if over is None else over
    # Of the rows of the first pass: further ones may not have been read yet.
    drawn = each[0].rows
    begin = min(k + int(MORE * k), drawn) if over is None else k
    centroids = _finish(sample.take(np.sort(rng.choice(drawn, begin, replace=False))), metric)
    sums: _Sums | None = None
    look: Look | None = None
    kept: dict[int, _Kept] = {}
    done = 0
    for number, one in enumerate(each):
        # To and fro: what the page cache holds of a sample that is too large for it is read first.
        backwards = number % 2 == 1
        order = range(-(-one.rows // _BLOCK))[:: -1 if backwards else 1]
        assigner = Assigner(centroids, metric, sketch=one.searched > 0, like=look)
        look = assigner.look or look
        last_with_more = number == _PASSES_WITH_MORE - 1 and begin > k
        loads = sample.iterate(_BLOCK, first=one.rows, backwards=backwards)
        if one.anew or sums is None:
            sums = None  # before there are new ones
            sums = _Sums(centroids.shape, unit=metric == "cosine")
            kept.clear()
        blocks = ((load, kept.get(at)) for at, load in zip(order, loads, strict=True))
        losses = np.zeros(len(centroids))
        place = partial(_place, assigner=assigner, losing=last_with_more)
        for at, placed in zip(order, in_order(pool, place, blocks, threads), strict=True):
            if number + 1 < len(each) and not each[number + 1].anew:
                kept[at] = placed.kept
            sums.add(placed.x, placed.to)
            left = np.flatnonzero(placed.away >= 0)
            if len(left):
                sums.take(placed.x[left], placed.away[left])
            if placed.lost is not None:
                losses += np.bincount(placed.to, placed.lost, len(losses))
            done += placed.rows
            progress(done)
        # Centroids may be what takes most of the memory: the old ones go before there are new ones.
        del centroids, assigner, place
        if last_with_more:
            sums.keep(np.sort(np.argsort(-losses, kind="stable")[:k]))
        centroids = _moved(sums.rows.copy(), sums.counts.copy(), metric)
    assert sums is not None  # there is a pass at least
    return centroids, sums.spread(metric)


def rows_looked_at(n: int, k: int) -> int:
    """How many rows ``progress`` counts in all."""
    return sum(one.rows for one in passes(n, k))


def kept_bytes(n: int, k: int) -> int:
    """What is kept of the rows of the sample between passes takes so much memory at most."""
    return _number(k).itemsize * (KEPT + 1) * max((one.rows for one in passes(n, k)), default=0)


def _number(k: int) -> np.dtype[Any]:
    """What holds the numbers of ``k`` centroids."""
    return np.dtype(np.uint16 if k <= 1 << 16 else np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over the sample.

    Attributes
    ----------
    rows : int
        How many rows it looks at, the first ones.
    anew : bool
        Whether nothing is known of them from the pass before.
    searched : int
        How many of them are compared with all centroids, for which a sketch is made where these are many; the
        others with those that were near.
    """

    rows: int
    anew: bool
    searched: int


def passes(n: int, k: int) -> list[Pass]:
    """The passes over ``n`` rows for ``k`` centroids; none where there are no more rows than these."""
    most = max(1, n // (_LEAST_PER_LIST * k))
    found: list[Pass] = []
    for anew, every in _PASSES if n > k else ():
        rows = -(-n // min(every, most))
        known = 0 if anew or not found else min(found[-1].rows, rows)
        found.append(Pass(rows=rows, anew=anew, searched=rows - known))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """Of a block's rows, the lists they are in, and the few that were near; None where all are compared."""

    labels: NumberArray
    near: NumberArray | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """A block's rows ``x`` that come to lists ``to``, from ``away``: -1 where they were in none before.

    And what is kept of the block; and where it is asked what the rows would lose, how much farther the next
    centroid is.
    """

    rows: int
    x: FloatArray
    to: IntArray
    away: IntArray
    kept: _Kept
    lost: FloatArray | None = None


def _place(
    block: tuple[Callable[[], FloatArray], _Kept | None], assigner: Assigner, *, losing: bool
) -> _Placed:
    """Find the lists of a block's rows: among all, or among those that were near before."""
    load, before = block
    x = load()
    near, lost = None, None
    if losing:
        labels, lost = assigner.assign_and_next(x)
    elif before is None or len(before.labels) < len(x):  # of a part that ended within the block
        found = assigner.nearest(x, KEPT)
        labels = assigner.assign(x) if found is None else found[:, 0]
        near = None if found is None else found.astype(_number(assigner.nlist))
    else:
        near = before.near
        labels = assigner.assign(x) if near is None else assigner.among(x, near)
    away = np.full(len(x), -1, np.int64)
    if before is not None:
        away[: len(before.labels)] = before.labels
    changed = np.flatnonzero(labels != away)
    return _Placed(
        rows=len(x),
        x=x if len(changed) == len(x) else x[changed],
        to=labels[changed],
        away=away[changed],
        kept=_Kept(labels=labels.astype(_number(assigner.nlist)), near=near),
        lost=lost,
    )


class _Sums:
    """Of each list the sum of its rows, of their squared lengths, and how many there are."""

    def __init__(self, shape: tuple[int, ...], *, unit: bool) -> None:
        self.rows: FloatArray = np.zeros(shape, np.float32)
        self.counts = np.zeros(shape[0], np.int64)
        #: None of unit rows: each is 1.
        self._squares = None if unit else np.zeros(shape[0])

    def add(self, x: FloatArray, labels: IntArray) -> None:
        """Add the rows of a block."""
        self._number(x, labels, 1)
        self._add(x, labels)

    def take(self, x: FloatArray, labels: IntArray) -> None:
        """Take rows away that were added before."""
        self._number(x, labels, -1)
        self._add(-x, labels)

    def keep(self, lists: IntArray) -> None:
        """Keep only these lists."""
        self.rows, self.counts = self.rows[lists], self.counts[lists]
        self._squares = None if self._squares is None else self._squares[lists]

    def spread(self, metric: Metric) -> FloatArray:
        """How far the rows of each list spread, see ``kmeans``; the usual where a list has too few to say."""
        n = self.counts.astype(np.float64)
        squares = (n if self._squares is None else self._squares) / np.maximum(n, 1)
        mean = np.einsum("ij,ij->i", self.rows, self.rows, dtype=np.float64) / np.maximum(n, 1) ** 2
        # A mean lies nearer to its own rows than to others: so much of its square is chance.
        around = np.maximum(squares - mean, 0) * n / np.maximum(n - 1, 1)
        spread = around if metric == "l2" else np.sqrt(np.maximum(squares - around, 0))
        known = n > 1
        return np.where(known, spread, spread[known].mean() if known.any() else 1).astype(np.float32)

    def _number(self, x: FloatArray, labels: IntArray, sign: int) -> None:
        self.counts += sign * np.bincount(labels, minlength=len(self.counts))
        if self._squares is not None:
            squares = np.einsum("ij,ij->i", x, x)
            self._squares += sign * np.bincount(labels, squares, len(self._squares))

    def _add(self, x: FloatArray, labels: IntArray) -> None:
        k = len(self.rows)
        if k <= _DENSE_UP_TO:
            members = np.zeros((k, len(x)), np.float32)
            members[labels, np.arange(len(x))] = 1
            self.rows += members @ x
            return
        # In a block most lists have one row or few: the first of each are added at once, then the second.
        order = np.argsort(labels, kind="stable")
        numbers, first, size = np.unique(labels[order], return_index=True, return_counts=True)
        for i in range(_ONE_BY_ONE):
            some = size > i
            self.rows[numbers[some]] += x[order[first[some] + i]]
        for number, begin, count in zip(numbers, first, size, strict=True):
            if count > _ONE_BY_ONE:
                self.rows[number] += x[order[begin + _ONE_BY_ONE : begin + count]].sum(axis=0)


def _moved(sums: FloatArray, counts: IntArray, metric: Metric) -> FloatArray:
    """Centroids at the mean of their rows; each one without rows takes half of the largest. In place."""
    filled = counts > 0
    sums /= np.maximum(counts, 1).astype(np.float32)[:, None]
    # Repair as faiss does: both halves of a split list start beside its centroid, a little apart.
    tilt = np.where(np.arange(sums.shape[1]) % 2 == 0, 1 + 1 / 1024, 1 - 1 / 1024).astype(np.float32)
    for empty in np.flatnonzero(~filled):
        largest = int(counts.argmax())
        sums[empty] = sums[largest] * tilt
        sums[largest] *= 2 - tilt
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
    return _finish(sums, metric)


def _finish(centroids: FloatArray, metric: Metric) -> FloatArray:
    """Centroids of an array of their own, of unit length where products are compared; in place."""
    if metric != "l2":
        norms = np.sqrt(np.einsum("ij,ij->i", centroids, centroids))
        centroids /= np.where(norms > 0, norms, 1)[:, None]
    return np.ascontiguousarray(centroids)
