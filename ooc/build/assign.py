"""To which list a row belongs: the centroid nearest to it."""

from __future__ import annotations

import numpy as np

from ooc.types import FloatArray, IntArray, Metric

__all__ = ["Assigner"]

#: Scores are computed against this many centroids at a time, which bounds their memory.
_TILE = 4096


class Assigner:
    """Finds the nearest of ``(nlist, d)`` centroids. Safe from several threads.

    For ``l2`` the nearest is the one with the largest ``x·c - |c|²/2``; for ``ip`` and ``cosine``
    (unit centroids) with the largest ``x·c``. Ties go to the lower number.
    """

    def __init__(self, centroids: FloatArray, metric: Metric) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._half: FloatArray | None = None
        if metric == "l2":
            self._half = np.einsum("ij,ij->i", self.centroids, self.centroids) / np.float32(2)

    def assign(self, x: FloatArray) -> IntArray:
        """List numbers ``(m,)`` of rows ``(m, d)``."""
        best = np.zeros(len(x), np.int64)
        highest: FloatArray | None = None
        for first in range(0, len(self.centroids), _TILE):
            scores = x @ self.centroids[first : first + _TILE].T
            if self._half is not None:
                scores -= self._half[first : first + _TILE]
            place: IntArray = scores.argmax(axis=1)
            if len(self.centroids) <= _TILE:
                return place
            score = np.take_along_axis(scores, place[:, None], axis=1)[:, 0]
            if highest is None:
                best[:], highest = place, score
                continue
            better = score > highest
            best[better] = place[better] + first
            highest = np.where(better, score, highest)
        return best
