"""Which lists a query looks into: those whose centroids are nearest, less a handicap.

Of many centroids a sketch proposes some (``ooc.engine.sketch``), which are compared exactly; of few, and
where most lists are wanted, all are compared. A plan may ask for a graph instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from ooc.engine.codec import Codec
from ooc.engine.handicap import Handicap
from ooc.engine.sketch import Sketch, compare
from ooc.errors import IndexDirError
from ooc.mapping import advise_random, advise_soon
from ooc.types import FloatArray, IntArray
from ooc.vectors import distinct, first_places, pick

__all__ = ["Coarse"]

#: Centroids that a sketch proposes for each list that is probed, and so many more. Of 1M x 1024 rows in
#: 4096 lists, .995 to .999 of the nearest 16 to 256 are among them (twice as many: .98 to .99).
_SKETCH_TIMES = 3
_SKETCH_MORE = 16
#: Queries whose lists are found together: bounds the memory of what a sketch proposes.
_COARSE_QUERIES = 1024
#: Distances to all centroids that are held together, and queries that are too few for a matrix product.
_LOOKS = 1 << 21
_FEW = 8

_ZERO, _TINY, _FARTHEST = np.float32(0), np.finfo(np.float32).tiny, np.float32(np.inf)

#: Where more than one in so many centroids is wanted, all are asked for: it takes less advice.
_MOST_OF_ALL = 4


class Coarse:
    """The order of the lists of an index for each query. Safe from several threads.

    Parameters
    ----------
    codec : Codec
        The index, which has the centroids; they may be mapped.
    sketch : Path, optional
        What ``Sketch.save`` wrote, of the centroids in transformed space; without, all are compared.
    handicap : Handicap, optional
        How far lists are put back, in the sketch too; without, the nearest comes first.
    """

    def __init__(self, codec: Codec, sketch: Path | None, handicap: Handicap | None) -> None:
        self._codec = codec  # owns everything below
        self._quantizer = faiss.downcast_index(codec._ivf.quantizer)
        self._graph = codec.has_graph
        self._flat = faiss.downcast_index(self._quantizer.storage) if self._graph else self._quantizer
        self._nlist, self._d, self._l2 = codec.nlist, codec.d_code, codec._ivf.metric_type == faiss.METRIC_L2
        self._sketch = None if sketch is None else Sketch.load(sketch, self._nlist, self._d, self._flat)
        if handicap is not None and len(handicap) != self._nlist:
            raise IndexDirError(
                f"there are {self._nlist} lists, and the template knows how far {len(handicap)} spread",
                kind="index-damaged",
                hint="Copy the directory anew, or remove it and build.",
            )
        self._handicap = handicap
        self._roots = np.sqrt(np.arange(1, self._nlist + 1, dtype=np.float32))
        self._centroids = codec.centroids()
        self._centroids_at = self._centroids.ctypes.data
        # What was not asked for ahead costs its own pages and no more.
        advise_random(self._centroids_at, 4 * self._nlist * self._d)

    def find(self, y: FloatArray, nprobe: int, *, ahead: bool = False) -> tuple[FloatArray, IntArray]:
        """The ``nprobe`` lists that come first.

        Parameters
        ----------
        y : (nq, d) float32
            Transformed queries.
        nprobe : int
            At nlist all lists are found.
        ahead : bool
            Whether centroids are asked of the disk before they are compared.

        Returns
        -------
        distances, numbers : (nq, nprobe) float32, (nq, nprobe) int64
            Squared distances to the centroids, or products with them, without a handicap. Where a graph
            finds fewer, the rest are -1.
        """
        some: Callable[[FloatArray], tuple[FloatArray, IntArray]]
        among = _SKETCH_TIMES * nprobe + _SKETCH_MORE
        if self._sketch is not None and 2 * among <= self._nlist:
            step, some = _COARSE_QUERIES, partial(self._sketched, self._sketch, nprobe, among, ahead)
        else:
            if ahead:
                self._ask_for_centroids(None)
            if self._graph and nprobe < self._nlist:
                return self._by_graph(y, nprobe, min(among, self._nlist))
            if self._handicap is None:
                distances, numbers = self._flat.search(y, nprobe)
                return distances, numbers
            step, some = max(1, _LOOKS // self._nlist), partial(self._all_compared, nprobe)
        parts = [some(y[first : first + step]) for first in range(0, max(len(y), 1), step)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def order(self, y: FloatArray) -> tuple[IntArray, FloatArray]:
        """All lists of each transformed query ``(nq, d)`` in the order of ``find``.

        Numbers and distances ``(nq, nlist)``. Of lists that are equally near any may come first.
        """
        looks = self.looks(y)
        if self._l2:
            looks += np.einsum("ij,ij->i", y, y)[:, None]
        order = np.argsort(self._key(looks), axis=1)
        return order, pick(looks, order)

    def reaches(self, y: FloatArray, found: FloatArray, numbers: IntArray) -> FloatArray:
        """How far a search must reach for each list ``(nq, p)``: from 0 for the first on, ascending.

        That is how much farther than the first one it lies, times the root of its place: of queries that lie
        between many lists some nearest are as good as others, and the neighbours of queries in the middle
        of a list are there. Of the same mean number of lists, those that are nearer than a reach hold more
        neighbours than as many of each query; the power of the place was tried from 0 to 1.5.

        Parameters
        ----------
        y, found, numbers : (nq, d) float32, (nq, p) float32, (nq, p) int64
            Transformed queries, and lists as ``find`` gives them.

        Returns
        -------
        reaches : (nq, p) float32
            Of distances for ``l2``, else of products with queries of unit length; infinity where there is no
            list.
        """
        key = self._key(found, numbers)
        if self._l2:
            # Not of their squares: far from all centroids these would differ by much.
            key = np.sqrt(np.maximum(key, _ZERO))
        else:
            lengths: FloatArray = np.sqrt(np.einsum("ij,ij->i", y, y))
            key = np.divide(key, np.maximum(lengths, _TINY)[:, None])
        reaches: FloatArray = np.subtract(key, key[:, :1])
        np.maximum(reaches, _ZERO, out=reaches)
        reaches *= self._roots[: key.shape[1]]
        reaches[numbers < 0] = np.inf
        return reaches

    def looks(self, y: FloatArray) -> FloatArray:
        """Products of transformed queries ``(nq, d)`` with all centroids, ``(nq, nlist)``.

        For l2 squared distances, without the squared length of the query.
        """
        self._ask_for_centroids(None)
        looks = y @ self._centroids.T
        if self._l2:
            looks *= -2
            looks += np.einsum("ij,ij->i", self._centroids, self._centroids)
        return looks

    def _sketched(
        self, sketch: Sketch, nprobe: int, among: int, ahead: bool, y: FloatArray
    ) -> tuple[FloatArray, IntArray]:
        if not ahead:
            return self._first(*sketch.compared(y, among), nprobe)
        numbers = sketch.candidates(y, among)
        self._ask_for_centroids(distinct(numbers, self._nlist))
        return self._first_of(y, numbers, nprobe)

    def _by_graph(self, y: FloatArray, nprobe: int, among: int) -> tuple[FloatArray, IntArray]:
        """What a graph finds; with a handicap it finds some more, which are put in order."""
        count = nprobe if self._handicap is None else among
        params = faiss.SearchParametersHNSW(efSearch=max(64, 2 * nprobe, count))
        distances, numbers = self._quantizer.search(y, count, params=params)
        return (distances, numbers) if self._handicap is None else self._first_of(y, numbers, nprobe)

    def _all_compared(self, nprobe: int, y: FloatArray) -> tuple[FloatArray, IntArray]:
        numbers = np.broadcast_to(np.arange(self._nlist), (len(y), self._nlist))
        if len(y) <= _FEW:
            # Threads of BLAS would be left spinning, which slows what follows.
            return self._first_of(y, numbers, nprobe)
        key = self._key(self.looks(y))
        if nprobe < self._nlist:
            numbers = np.argpartition(key, nprobe - 1, axis=1)[:, :nprobe]
        return self._first_of(y, numbers, nprobe)

    def _first_of(self, y: FloatArray, numbers: IntArray, nprobe: int) -> tuple[FloatArray, IntArray]:
        """The first ``nprobe`` of the lists ``numbers`` ``(nq, c)``, compared exactly; -1 comes last."""
        return self._first(compare(self._flat, y, numbers), numbers, nprobe)

    def _first(self, found: FloatArray, numbers: IntArray, nprobe: int) -> tuple[FloatArray, IntArray]:
        """The first ``nprobe`` of the lists ``numbers`` ``(nq, c)``, -1 last, by how near they are."""
        key = self._key(found, numbers)
        key = np.where(numbers < 0, _FARTHEST, key)
        near = first_places(key, nprobe)
        return pick(found, near), pick(numbers, near)

    def _key(self, found: FloatArray, numbers: IntArray | None = None) -> FloatArray:
        """What orders lists, the least first, by distances or products."""
        if self._handicap is not None:
            return self._handicap.key(found, numbers)
        return found if self._l2 else -found

    def _ask_for_centroids(self, numbers: IntArray | None) -> None:
        """Start reading centroids; where they are many, or None is given, all of them."""
        row = 4 * self._d
        if numbers is None or len(numbers) * _MOST_OF_ALL > self._nlist:
            advise_soon(self._centroids_at, np.zeros(1, np.int64), self._nlist * row)
        else:
            advise_soon(self._centroids_at, numbers[numbers >= 0] * row, row)
