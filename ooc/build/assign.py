"""To which lists a row belongs: that of the nearest centroid, and perhaps a second one.

The second list follows SOAR (Sun, Simcha, Dopson, Guo and Kumar, arXiv 2404.00774). A query misses a
row when the row's residual hides it: when it points along the query, away from the centroid. A second
centroid helps only where its residual points elsewhere, so of the centroids near to a row the one is
taken that makes ``|r'|² + λ (r'·r / |r|)²`` smallest, where ``r`` and ``r'`` are the residuals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ooc.engine import Exact, Look, Nearest, sketched
from ooc.types import FloatArray, IntArray, Metric
from ooc.vectors import pick

__all__ = ["Assigner", "scores_bytes"]

#: Scores are computed against this many centroids at a time, which bounds their memory.
_TILE = 4096

#: The second list is one of so many nearest centroids. More bring nothing: measured up to 24.
_SPILL_AMONG = 8
#: λ: how much a residual along the first one counts. Flat from 1 to 2 on real embeddings.
_SPILL_ALONG = np.float32(1.5)

#: Stands for a length or a distance of 0 where it is divided by.
_TINY = np.finfo(np.float32).tiny


def scores_bytes(nlist: int, d: int, *, spill: bool) -> int:
    """What assigning takes for each row of a block besides the row."""
    one = 4 * 512 if sketched(nlist, d) else 4 * min(nlist, _TILE) * (3 if spill else 1)
    return one + (4 * d + 12 * 8 * _SPILL_AMONG if spill else 0)


class Assigner:
    """Finds the nearest of ``(nlist, d)`` centroids. Safe from several threads.

    For ``l2`` the nearest is the one with the largest ``x·c - |c|²/2``; for ``ip`` and ``cosine``
    (unit centroids) with the largest ``x·c``. Few centroids are all compared, and ties go to the
    lower number; many are found through a sketch (``ooc.engine.Nearest``), which misses the nearest
    for a row in a thousand and then gives one almost as near. Without ``sketch`` none is made, for those
    who ask ``among`` alone; of centroids that moved a little from those of another assigner, ``like`` its
    ``look``, one is made soon.
    """

    def __init__(
        self, centroids: FloatArray, metric: Metric, *, sketch: bool = True, like: Look | None = None
    ) -> None:
        self.nlist, d = centroids.shape
        self._l2 = metric == "l2"
        self._exact = Exact(centroids, metric)
        self._nearest: Nearest | None = None
        if sketched(self.nlist, d) and sketch:
            self._nearest = Nearest(self._exact, metric, like)
        self._half: FloatArray | None = None
        if self._l2 and self._nearest is None:
            self._half = np.einsum("ij,ij->i", self._exact.rows, self._exact.rows) / np.float32(2)

    def nearest(self, x: FloatArray, count: int) -> IntArray | None:
        """The ``count`` lists nearest to rows ``(m, d)``, nearest first; None without a sketch."""
        return None if self._nearest is None else self._nearest.candidates(x, count)

    def among(self, x: FloatArray, numbers: NDArray[np.integer[Any]]) -> IntArray:
        """List numbers ``(m,)`` of rows ``(m, d)``: the nearest of centroids ``numbers`` ``(m, c)``."""
        found = self._exact.compare(x, numbers)
        best = found.argmin(axis=1) if self._l2 else found.argmax(axis=1)
        return pick(numbers, best[:, None])[:, 0].astype(np.int64)

    @property
    def look(self) -> Look | None:
        """How the sketch looks at centroids; None without one."""
        return None if self._nearest is None else self._nearest.look

    @property
    def basis(self) -> FloatArray | None:
        """The few directions ``(d, m)`` in which rows are looked at first; None where they are not."""
        return None if self._nearest is None else self._nearest.basis

    def assign(self, x: FloatArray, low: FloatArray | None = None) -> IntArray:
        """List numbers ``(m,)`` of rows ``(m, d)``; ``low`` is ``x @ basis`` where the caller has it."""
        if self._nearest is not None:
            return self._nearest.find(x, low)
        best = np.zeros(len(x), np.int64)
        highest: FloatArray | None = None
        for first in range(0, self.nlist, _TILE):
            scores = self._scores(x, first)
            place: IntArray = scores.argmax(axis=1)
            if self.nlist <= _TILE:
                return place
            score = pick(scores, place[:, None])[:, 0]
            if highest is None:
                best[:], highest = place, score
                continue
            better = score > highest
            best[better] = place[better] + first
            highest = np.where(better, score, highest)
        return best

    def assign_and_next(self, x: FloatArray) -> tuple[IntArray, FloatArray]:
        """List numbers ``(m,)`` of rows ``(m, d)``, and how much farther the next centroid is, ``(m,)``.

        In squared distances for ``l2``, else in products; infinity where no other is known.
        """
        numbers = self._two(x) if self._nearest is None else self._nearest.candidates(x, 4)
        found = self._exact.compare(x, numbers)
        far = found if self._l2 else -found
        gaps = np.where(numbers[:, 1:] != numbers[:, :1], far[:, 1:] - far[:, :1], np.inf)
        return numbers[:, 0], gaps.min(axis=1)

    def assign_two(self, x: FloatArray, low: FloatArray | None = None) -> IntArray:
        """List numbers ``(m, 2)`` of rows ``(m, d)``: of the nearest centroid, and the second list.

        The two differ; there must be at least two lists.
        """
        numbers = self._few(x, low)
        near = self.squared(x, numbers)
        between = self.squared(self._exact.rows[numbers[:, 0]], numbers)
        to_first = near[:, :1]
        # r·r' from the three squared distances of the triangle: no residual is ever made.
        along = (to_first + near - between) / 2
        loss = near + _SPILL_ALONG * along * along / np.maximum(to_first, _TINY)
        first = numbers[:, 0]
        other = numbers != first[:, None]
        second = np.where(other, loss, np.inf).argmin(axis=1)
        chosen = pick(numbers, second[:, None])[:, 0]
        # Where a sketch gave one and the same centroid only, any other list is a list.
        chosen = np.where(other.any(axis=1), chosen, (first + 1) % self.nlist)
        return np.stack((first, chosen), axis=1)

    def as_near(self, x: FloatArray, best: IntArray, others: IntArray, part: float) -> NDArray[np.bool_]:
        """Whether lists ``others`` ``(m,)`` are as near to rows ``(m, d)`` as lists ``best``, or nearly.

        By up to a ``part`` of the squared distance; for products of the length of the row.
        """
        found = self._exact.compare(x, np.stack((best, others), axis=1))
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x))
        if self._l2:
            return np.asarray(found[:, 1] <= found[:, 0] * (1 + part) + part * _TINY)
        return np.asarray(found[:, 1] >= found[:, 0] - part * lengths)

    def _scores(self, x: FloatArray, first: int) -> FloatArray:
        """How near the centroids from ``first`` on are, as many as are compared at a time."""
        scores = x @ self._exact.rows[first : first + _TILE].T
        if self._half is not None:
            scores -= self._half[first : first + _TILE]
        return scores

    def _two(self, x: FloatArray) -> IntArray:
        """As the first two of ``_few``, of several centroids that are all compared, in less memory."""
        found, scores = np.empty((len(x), 0), np.int64), np.empty((len(x), 0), np.float32)
        for first in range(0, self.nlist, _TILE):
            some = self._scores(x, first)
            for _ in range(min(2, some.shape[1])):
                best = some.argmax(axis=1)[:, None]
                found = np.concatenate((found, best + first), axis=1)
                scores = np.concatenate((scores, pick(some, best)), axis=1)
                np.put_along_axis(some, best, -np.inf, axis=1)
        return pick(found, np.lexsort((found, -scores), axis=1)[:, :2])

    def _few(self, x: FloatArray, low: FloatArray | None = None) -> IntArray:
        """The few nearest centroids of each row, nearest first: the first is what ``assign`` gives."""
        if self._nearest is not None:
            return self._nearest.candidates(x, _SPILL_AMONG, every=True, low=low)
        found, scores = np.empty((len(x), 0), np.int64), np.empty((len(x), 0), np.float32)
        for first in range(0, self.nlist, _TILE):
            some = self._scores(x, first)
            few = min(_SPILL_AMONG, some.shape[1])
            near = np.argpartition(some, -few, axis=1)[:, -few:]
            found = np.concatenate((found, near + first), axis=1)
            scores = np.concatenate((scores, pick(some, near)), axis=1)
        order = np.lexsort((found, -scores), axis=1)[:, :_SPILL_AMONG]
        return pick(found, order)

    def squared(self, x: FloatArray, numbers: IntArray) -> FloatArray:
        """Squared distances of rows ``(m, d)`` to centroids ``numbers`` ``(m, c)``.

        With unit centroids, of the rows scaled to unit length.
        """
        found = self._exact.compare(x, numbers)
        if self._l2:
            return found
        lengths = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
        found /= np.maximum(lengths, _TINY)
        found *= -2
        found += 2
        return found
