"""To which list a row belongs: the centroid nearest to it."""

from __future__ import annotations

import numpy as np

from ooc.engine import Nearest
from ooc.types import FloatArray, IntArray, Metric

__all__ = ["Assigner", "scores_bytes"]

#: Scores are computed against this many centroids at a time, which bounds their memory.
_TILE = 4096

#: Below this many values in all centroids, comparing all is as quick as a sketch of them.
_SKETCH_FROM = 1 << 19
_SKETCH_FROM_NLIST = 512


def sketched(nlist: int, d: int) -> bool:
    """Whether so many centroids are found through a sketch of them."""
    return nlist * d >= _SKETCH_FROM and nlist >= _SKETCH_FROM_NLIST


def scores_bytes(nlist: int, d: int) -> int:
    """What assigning takes for each row of a block besides the row."""
    return 4 * 512 if sketched(nlist, d) else 4 * min(nlist, _TILE)


class Assigner:
    """Finds the nearest of ``(nlist, d)`` centroids. Safe from several threads.

    For ``l2`` the nearest is the one with the largest ``x·c - |c|²/2``; for ``ip`` and ``cosine``
    (unit centroids) with the largest ``x·c``. Few centroids are all compared, and ties go to the
    lower number; many are found through a sketch (``ooc.engine.Nearest``), which misses the nearest
    for some rows in a hundred and then gives one almost as near.
    """

    def __init__(self, centroids: FloatArray, metric: Metric) -> None:
        self.nlist, d = centroids.shape
        self._half: FloatArray | None = None
        self._nearest: Nearest | None = None
        if sketched(self.nlist, d):
            self._nearest = Nearest(centroids, metric)
            return
        self._centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        if metric == "l2":
            self._half = np.einsum("ij,ij->i", self._centroids, self._centroids) / np.float32(2)

    def assign(self, x: FloatArray) -> IntArray:
        """List numbers ``(m,)`` of rows ``(m, d)``."""
        if self._nearest is not None:
            return self._nearest.find(x)
        best = np.zeros(len(x), np.int64)
        highest: FloatArray | None = None
        for first in range(0, self.nlist, _TILE):
            scores = x @ self._centroids[first : first + _TILE].T
            if self._half is not None:
                scores -= self._half[first : first + _TILE]
            place: IntArray = scores.argmax(axis=1)
            if self.nlist <= _TILE:
                return place
            score = np.take_along_axis(scores, place[:, None], axis=1)[:, 0]
            if highest is None:
                best[:], highest = place, score
                continue
            better = score > highest
            best[better] = place[better] + first
            highest = np.where(better, score, highest)
        return best
