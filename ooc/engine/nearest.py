"""The centroid nearest to each of many rows, for a small part of what comparing all of them costs.

A sketch of the centroids (``ooc.engine.sketch``) tells the handful that look nearest, which are then
compared exactly, in all dimensions. With many centroids only some groups of them are scanned. The
result is the nearest centroid for nearly all rows, and for the rest one almost as near.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray

from ooc.engine.codec import vectors
from ooc.engine.sketch import QUERY_BLOCKS, ROUNDS, compare, directions, project
from ooc.engine.threads import threads_limited
from ooc.types import FloatArray, IntArray, Metric
from ooc.vectors import pick

__all__ = ["Exact", "Look", "Nearest"]

#: Directions that are kept at most; each pair of them becomes one 4-bit code.
_DIRECTIONS = 160
#: Candidates that are compared exactly.
_CANDIDATES = 24
#: Those that look farther than the nearest by so many times what the sketch is off by are not compared.
_MARGIN = 2.5
#: From this many centroids on they are scanned by groups, of which this many are looked into.
_GROUPS_FROM = 12_288
_GROUPS_PROBED = 24


class Exact:
    """``(k, d)`` centroids, compared with rows in all dimensions. Safe from several threads.

    Attributes
    ----------
    rows : (k, d) float32
        The centroids, as long as this object lives.
    """

    def __init__(self, centroids: FloatArray, metric: Metric) -> None:
        k, self._d = centroids.shape
        self._index = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(self._d)
        self._index.add(np.ascontiguousarray(centroids, dtype=np.float32))  # a copy: the caller's may go
        self.rows: FloatArray = faiss.rev_swig_ptr(self._index.get_xb(), k * self._d).reshape(k, self._d)

    def compare(self, x: FloatArray, numbers: NDArray[np.integer[Any]]) -> FloatArray:
        """Distances of rows ``(m, d)`` to centroids ``numbers`` ``(m, c)``: squared for l2, else products."""
        return compare(self._index, vectors(x, self._d), numbers)


class Look(NamedTuple):
    """How centroids are looked at: in which directions, and by which codes of these."""

    basis: FloatArray
    rest: FloatArray
    scan: Any


class Nearest:
    """Finds the nearest of ``(k, d)`` centroids through a sketch of them.

    Nearest is the largest product for ``ip`` and ``cosine`` (unit centroids), the smallest distance
    for ``l2``. The same centroids give the same sketch, and a row the same answer in any block.
    Safe from several threads; each call uses the calling thread alone if that is its setting. Of
    centroids near to those of another one, ``like`` its ``look``, a sketch is made much sooner.

    Attributes
    ----------
    margin : float
        Centroids that look farther than the nearest one by more than this are not compared.
    basis : (d, m) float32
        The directions of the sketch: orthogonal, each of length 1 or, turned together, less.
    look : Look
        How the centroids are looked at, without them.
    """

    def __init__(self, exact: Exact, metric: Metric, like: Look | None = None) -> None:
        self._exact = exact
        k, self._d = exact.rows.shape
        self._l2 = metric == "l2"
        with threads_limited(1):
            basis, rest = directions(exact.rows, self._l2, _DIRECTIONS) if like is None else like[:2]
            sketch = project(exact.rows, basis, rest, self._l2)
            if like is None:
                self._scan = self._index(sketch)
                self._scan.train(sketch)
            else:
                self._scan = faiss.clone_index(like.scan)
                self._scan.reset()
            self._scan.add(sketch)
            self.basis, self.look = basis, Look(basis, rest, self._scan)
            self._top = min(_CANDIDATES, k)
            self.margin = float(_MARGIN * self._spread())

    def _index(self, sketch: FloatArray) -> Any:
        k, m = sketch.shape
        metric = faiss.METRIC_L2 if self._l2 else faiss.METRIC_INNER_PRODUCT
        if k < _GROUPS_FROM:
            index = faiss.IndexPQFastScan(m, m // 2, 4, metric)
            index.qbs = QUERY_BLOCKS
        else:
            self._groups = (faiss.IndexFlatL2 if self._l2 else faiss.IndexFlatIP)(m)
            groups = 2 ** round(np.log2(2 * np.sqrt(k)))
            index = faiss.IndexIVFPQFastScan(self._groups, m, groups, m // 2, 4, metric)
            index.by_residual = False
            index.nprobe = _GROUPS_PROBED
            index.cp.niter, index.cp.min_points_per_centroid = ROUNDS, 1
        index.pq.cp.niter, index.pq.cp.min_points_per_centroid = ROUNDS, 1
        return index

    def find(self, x: FloatArray, low: FloatArray | None = None) -> IntArray:
        """Numbers ``(m,)`` of the centroids nearest to rows ``(m, d)``; ``low`` is ``x @ basis`` if known."""
        numbers, key = self._looked(vectors(x, self._d), low)
        nearest: IntArray = pick(numbers, key.argmin(axis=1)[:, None])[:, 0]
        return nearest

    def candidates(
        self, x: FloatArray, count: int, *, every: bool = False, low: FloatArray | None = None
    ) -> IntArray:
        """Numbers ``(m, count)`` of the few centroids nearest to each row, nearest first.

        Those that cannot be the nearest follow in the order in which they look near; with ``every`` all are
        compared. A row for which too few look near repeats its first.
        """
        numbers, key = self._looked(vectors(x, self._d), low, every=every)
        order = np.argsort(key, axis=1, kind="stable")[:, :count]
        numbers = pick(numbers, order)
        return np.where(numbers < 0, numbers[:, :1], numbers)

    def _looked(
        self, x: FloatArray, low: FloatArray | None = None, *, every: bool = False
    ) -> tuple[IntArray, FloatArray]:
        """Centroids that look near ``(m, c)``, and distances, less is nearer: infinity where not compared."""
        low = x @ self.basis if low is None else low
        looks, numbers = self._scan.search(np.ascontiguousarray(low), self._top)
        far = numbers < 0
        if not every:
            far |= looks > looks[:, :1] + self.margin if self._l2 else looks < looks[:, :1] - self.margin
        found = self._exact.compare(x, np.where(far, -1, numbers))
        key = found if self._l2 else -found
        key[far] = np.inf
        return numbers, key

    def _spread(self) -> float:
        """How far the sketch's distances are off, as the centroids' own to each other show."""
        some = self._exact.rows[:: max(1, len(self._exact.rows) // 512)]
        looks, numbers = self._scan.search(np.ascontiguousarray(some @ self.basis), self._top)
        off = (looks - self._exact.compare(some, numbers))[numbers >= 0]
        return float(off.std())
