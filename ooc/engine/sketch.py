"""Centroids in few bits: which of them look near to a row.

Centroids are projected to the few directions in which they differ, and kept there as 4-bit
product-quantizer codes that faiss scans 32 at a time in registers (FastScan; André, Kermarrec and Le
Scouarnec, VLDB 2015). A build places rows through one (``ooc.engine.nearest``), and a search finds the
lists to look into.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from ooc.engine.codec import read_index, vectors, write_index
from ooc.engine.handicap import Handicap
from ooc.engine.skeleton import see_sketch
from ooc.engine.threads import threads_limited
from ooc.errors import IndexDirError
from ooc.types import FloatArray, IntArray, Metric

__all__ = ["QUERY_BLOCKS", "ROUNDS", "Sketch", "compare", "directions", "project", "sketch_bytes", "sketched"]

#: Below this many values in all centroids, comparing all is as quick as a sketch of them.
_SKETCH_FROM = 1 << 19
_SKETCH_FROM_NLIST = 512
#: Directions that are kept at most; each pair of them becomes one 4-bit code.
_DIRECTIONS = 256
#: FastScan takes rows in blocks of 2, 2, 2 and 2: measured to be quickest.
QUERY_BLOCKS = 0x2222
#: Rounds of the k-means in the quantizer: a sketch needs no more.
ROUNDS = 4


def sketched(nlist: int, d: int) -> bool:
    """Whether so many centroids are found through a sketch of them."""
    return nlist * d >= _SKETCH_FROM and nlist >= _SKETCH_FROM_NLIST


def sketch_bytes(nlist: int, d: int) -> int:
    """What a sketch of so many centroids takes, on disk and in memory: codes, and the directions."""
    wide = min(_DIRECTIONS, d + d % 2)
    return nlist * wide // 4 + 4 * d * wide


class Sketch:
    """A sketch of all centroids of an index, by which a search finds lists. Safe from several threads.

    Attributes
    ----------
    nlist, d : int
        Centroids and their dimensions.
    """

    def __init__(self, index: Any, flat: Any = None) -> None:
        self._index = index  # owns everything below
        # In one call: between several, other threads of Python would come and go.
        self._both: Any = None if flat is None else faiss.IndexRefine(index, flat)
        # faiss's own products: numpy's BLAS would leave threads spinning, which slows what follows.
        self._turn = faiss.downcast_VectorTransform(index.chain.at(0))
        self._scan = faiss.downcast_index(index.index)
        self._scan.qbs = QUERY_BLOCKS
        self.nlist, self.d = int(self._scan.ntotal), int(self._turn.d_in)

    @classmethod
    def make(cls, centroids: FloatArray, metric: Metric, handicap: Handicap | None = None) -> Self:
        """The sketch of ``(k, d)`` centroids, unit ones for ``cosine``; the same for the same centroids.

        With a handicap those are the nearest that are the first in its order.
        """
        l2 = metric == "l2"
        with threads_limited(1):
            centroids = np.ascontiguousarray(centroids, dtype=np.float32)
            basis, rest = directions(centroids, l2, _DIRECTIONS)
            low = project(centroids, basis, rest, l2, handicap)
            m = low.shape[1]
            scan = faiss.IndexPQFastScan(m, m // 2, 4, faiss.METRIC_L2 if l2 else faiss.METRIC_INNER_PRODUCT)
            scan.pq.cp.niter, scan.pq.cp.min_points_per_centroid = ROUNDS, 1
            scan.train(low)
            scan.add(low)
        turn = faiss.LinearTransform(*basis.shape, False)
        faiss.copy_array_to_vector(np.ascontiguousarray(basis.T).reshape(-1), turn.A)
        turn.is_trained = True
        return cls(faiss.IndexPreTransform(turn, scan))

    @classmethod
    def load(cls, path: Path, nlist: int, d: int, flat: Any = None) -> Self:
        """The sketch that ``save`` wrote, of ``nlist`` centroids of ``d`` dimensions.

        ``flat`` is the index of these, where ``compared`` will be asked for; it must live as long.

        Raises
        ------
        IndexDirError
            The file is damaged, or of other centroids.
        """
        see_sketch(path, nlist, d)
        index = read_index(path, 0)
        inner = faiss.downcast_index(index.index) if hasattr(index, "index") else index
        if type(inner).__name__ != "IndexPQFastScan" or (inner.ntotal, index.d) != (nlist, d):
            raise IndexDirError(
                f"{path} is no sketch of {nlist} centroids of {d} dimensions",
                kind="index-damaged",
                hint="Copy the directory anew, or remove it and build.",
            )
        return cls(index, flat)

    def save(self, path: Path) -> list[str]:
        """Write it durably; its checksums."""
        return write_index(self._index, path)

    def candidates(self, x: FloatArray, count: int) -> IntArray:
        """Numbers ``(m, count)`` of the centroids that look nearest to rows ``(m, d)``, in no order."""
        x = vectors(x, self.d)
        numbers: IntArray = self._scan.search(self._turn.apply(x), count)[1]
        return numbers

    def compared(self, x: FloatArray, count: int) -> tuple[FloatArray, IntArray]:
        """How near the ``count`` centroids are that look nearest to rows ``(m, d)``, and their numbers."""
        x = vectors(x, self.d)
        found, numbers = np.empty((len(x), count), np.float32), np.empty((len(x), count), np.int64)
        self._both.search_c(len(x), faiss.swig_ptr(x), count, faiss.swig_ptr(found), faiss.swig_ptr(numbers))
        return found, numbers


def compare(flat: Any, x: FloatArray, numbers: NDArray[np.integer[Any]]) -> FloatArray:
    """Distances of rows ``(m, d)`` to rows ``numbers`` ``(m, c)`` of a flat index; the worst at -1."""
    numbers = np.ascontiguousarray(numbers, dtype=np.int64)
    found = np.empty(numbers.shape, np.float32)
    flat.compute_distance_subset(
        len(x), faiss.swig_ptr(x), numbers.shape[1], faiss.swig_ptr(found), faiss.swig_ptr(numbers)
    )
    return found


def directions(centroids: FloatArray, l2: bool, most: int) -> tuple[FloatArray, FloatArray]:
    """``(basis (d, m), rest (m,))``: the directions of most energy, turned so that all matter alike.

    Found by subspace iteration from random directions (Halko, Martinsson and Tropp 2011, 4.4). ``rest`` is
    a direction of the low space for what the basis leaves of a vector, used for ``l2``.
    """
    k, d = centroids.shape
    rng = np.random.default_rng(d)
    wide = min(most, d + d % 2)
    kept = min(wide - l2, d, k)
    basis = rng.standard_normal((d, kept)).astype(np.float32)
    for _ in range(3):
        basis = np.linalg.qr(centroids.T @ (centroids @ basis))[0].astype(np.float32)
    padded = np.zeros((d, wide), np.float32)
    padded[:, :kept] = basis
    turn = np.linalg.qr(rng.standard_normal((wide, wide)))[0].astype(np.float32)
    return np.ascontiguousarray(padded @ turn), turn[-1]


def project(
    centroids: FloatArray, basis: FloatArray, rest: FloatArray, l2: bool, handicap: Handicap | None = None
) -> FloatArray:
    """Centroids ``(k, m)`` in few directions; for ``l2`` with what is left of their lengths.

    That is 0 in every row, so it adds to all distances what the row lacks in few directions. So does a
    handicap.
    """
    low = centroids @ basis
    left = np.zeros(len(low), np.float32)
    if l2:
        left = np.einsum("ij,ij->i", centroids, centroids) - np.einsum("ij,ij->i", low, low)
    if handicap is not None:
        low, left = handicap.folded(low, np.maximum(left, 0))
    if l2:
        low += np.sqrt(np.maximum(left, 0))[:, None] * rest
    return np.ascontiguousarray(low, dtype=np.float32)
