"""Which code an index gets where its maker names none: the one by which a search would read least.

A few thousand rows of the store stand for all, and some of them for queries. What the code of a row misses
grows with how far it is from its centroid, and which rows it takes for nearer ones depends on how many there
are. Both are known of the few rows at several depths and follow powers, by which they are carried to the
whole store:

- the j nearest of m rows lie as far away as the j·n/m nearest of n. So the candidates that hold nearly all
  of the j nearest, for several j, tell of the ten nearest of all rows;
- lists of fewer rows have rows nearer to their centroids, and more of them must be probed.

Nothing of this is timed: the same rows, metric and seed give the same code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ooc.build.assign import Assigner
from ooc.build.factory import CODES, parse_factory
from ooc.build.glance import QUERIES
from ooc.build.kmeans import kmeans
from ooc.build.workers import Pool, in_order, workers
from ooc.engine import ID_BYTES, code_distances
from ooc.errors import PlanError, Stopped
from ooc.search.promise import PAGE_BYTES
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.vectors import evenly, places

__all__ = ["Compared", "choose_code"]

#: Fewer rows than this tell nothing.
_FEW = 64
#: Rows of a list.
_ROWS_PER_LIST = 32

#: The search that is thought of: this many neighbours, of which lists and code may miss so much each.
_K = 10
_OUTSIDE, _LOST = 0.02, 0.02
#: How many neighbours of the few rows are looked at: for candidates, and for lists.
_DEPTHS, _LIST_DEPTHS = (4, 8, 16, 32), (1, 2, 4, 8, 16)
#: A larger code has to save this much of what is read: it takes more disk, and longer to write and to scan.
_WORTH = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What a search would read with a code, for a recall@10 of about .95.

    Attributes
    ----------
    code : str
        Transforms and code, as in a factory string.
    code_size : int
        Bytes of a code.
    nprobe, candidates : int
        Lists probed and candidates compared exactly.
    list_bytes, row_bytes : int
        What a query reads of lists and of rows.
    chosen : bool
        Whether this is the one.
    """

    code: str
    code_size: int
    nprobe: int
    candidates: int
    list_bytes: int
    row_bytes: int
    chosen: bool = False

    @property
    def read_bytes(self) -> int:
        """What a query reads."""
        return self.list_bytes + self.row_bytes


def choose_code(
    rows: FloatArray,
    metric: Metric,
    seed: int,
    threads: int,
    *,
    n: int,
    row_bytes: int,
    queries: FloatArray | None = None,
    stop: threading.Event | None = None,
) -> tuple[Compared, ...]:
    """The codes that were compared, from the smallest on; one of them is chosen.

    Codes that could not read less than the best one so far, were they exact, are not tried.

    Parameters
    ----------
    rows : (m, d) float32
        Some of the ``n`` rows, as a glance has them.
    seed : int
        Of the rotation and k-means.
    threads : int
        Make it faster and change nothing.
    row_bytes : int
        Bytes of a row where a search reads it.
    queries : (q, d) float32, optional
        Those that will be asked, prepared for the metric; default: rows.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.
    """
    codes = _codes(n, rows.shape[1], metric)
    x = rows
    if queries is None:
        asked = max(1, min(QUERIES, len(x) // 4))
        # Spread over those drawn, which are in the order of the store.
        at = evenly(len(x), asked)
        xq, x = x[at], np.delete(x, at, axis=0)
    else:
        xq = queries[evenly(len(queries), QUERIES)]
    if len(x) < _FEW:
        text, size, _ = codes[-1]
        none = Compared(code=text, code_size=size, nprobe=1, candidates=_K, list_bytes=0, row_bytes=0)
        return (replace(none, chosen=True),)
    with workers(threads) as pool:
        return _compared(codes, _Few(x, xq, metric, seed, n, threads, pool, stop), row_bytes)


def _codes(n: int, d: int, metric: Metric) -> list[tuple[str, int, int]]:
    """Code, its bytes, and lists that are planned; from the smallest on, the most exact of equal size."""
    made = []
    for text in CODES:
        try:
            factory = parse_factory(text, n=n, d=d, metric=metric)
        except PlanError:  # of so few dimensions faiss makes no such code
            continue
        made.append((text, factory.code_size, factory.nlist))
    best = {size: (text, size, nlist) for text, size, nlist in made}
    return [best[size] for size in sorted(best)]


def _compared(codes: list[tuple[str, int, int]], few: _Few, row_bytes: int) -> tuple[Compared, ...]:
    """Each code in turn, while it could still be the best."""
    each = row_bytes + PAGE_BYTES - 1
    tried: list[Compared] = []
    best: Compared | None = None
    for text, size, nlist in codes:
        nprobe = few.nprobe(nlist)
        entry = round(nprobe * few.n / nlist) * (size + ID_BYTES)
        if best is not None and entry + _K * each >= (1 - _WORTH) * best.read_bytes:
            break
        candidates = few.candidates(text, nlist)
        one = Compared(
            code=text,
            code_size=size,
            nprobe=nprobe,
            candidates=candidates,
            list_bytes=entry,
            row_bytes=candidates * each,
        )
        tried.append(one)
        if best is None or one.read_bytes < (1 - _WORTH) * best.read_bytes:
            best = one
    return tuple(replace(one, chosen=one is best) for one in tried)


class _InMemory:
    """Rows as k-means reads them."""

    def __init__(self, x: FloatArray) -> None:
        self._x = x
        self.n, self.d = x.shape

    def take(self, rows: IntArray) -> FloatArray:
        return self._x[rows]

    def iterate(self, rows: int, *, first: int, backwards: bool) -> Iterator[Callable[[], FloatArray]]:
        for start in range(0, first, rows)[:: -1 if backwards else 1]:
            yield partial(self._x.__getitem__, slice(start, min(start + rows, first)))


class _Few:
    """The few rows, in lists; how many lists and candidates their neighbours take, carried to ``n`` rows."""

    def __init__(
        self,
        x: FloatArray,
        xq: FloatArray,
        metric: Metric,
        seed: int,
        n: int,
        threads: int,
        pool: Pool,
        stop: threading.Event | None,
    ) -> None:
        self.n, self._x, self._xq, self._metric, self._seed = n, x, xq, metric, seed
        self._threads, self._pool, self._stop = threads, pool, stop
        #: How far rows are, the nearest with the least; and which they are.
        self._far = _far(xq, x, metric)
        depth = min(max(_DEPTHS), len(x) - 1)
        near = np.argpartition(self._far, depth, axis=1)[:, :depth]
        order = np.argsort(np.take_along_axis(self._far, near, axis=1), axis=1, kind="stable")
        self._near: IntArray = np.take_along_axis(near, order, axis=1)
        self._depths = [j for j in _DEPTHS if j <= depth]
        #: As many of the few rows are as far away as the neighbours among all.
        self._deep = _K * len(x) / n
        lists = max(2, len(x) // _ROWS_PER_LIST)
        self._coarse, self._fine = (self._in_lists(count) for count in (max(1, lists // 4), lists))

    def _in_lists(self, count: int) -> _InLists:
        rows = _InMemory(self._x)
        centroids, _ = kmeans(
            rows,
            count,
            self._metric,
            self._seed,
            self._pool,
            progress=lambda done: Stopped.raise_if(self._stop),
            threads=self._threads,
        )
        return _InLists.of(centroids, self._x, self._xq, self._near, self._metric)

    def nprobe(self, nlist: int) -> int:
        """How many of ``nlist`` lists hold nearly all neighbours."""
        coarse, fine = self._coarse, self._fine
        power = _power(coarse.count, coarse.probed, fine.count, fine.probed)
        probed = _at_depth(_LIST_DEPTHS, fine.probed, self._deep, (0, 1))
        return max(1, min(nlist, round(probed * float((nlist / fine.count) ** min(max(power, 0.0), 1.0)))))

    def candidates(self, code: str, nlist: int) -> int:
        """Of how many candidates nearly all neighbours are, that lie in the lists."""
        fine, metric = self._fine, self._metric
        factory = parse_factory(code, n=self.n, d=self._x.shape[1], metric=metric, nlist=fine.count)

        def by_code(some: slice) -> FloatArray:
            Stopped.raise_if(self._stop)
            found = code_distances(
                factory.text, metric, self._seed, fine.centroids, self._x, fine.list_nos, self._xq[some]
            )
            return found if metric == "l2" else -found

        size = -(-len(self._xq) // self._threads)
        parts = (slice(first, first + size) for first in range(0, len(self._xq), size))
        by = np.concatenate(list(in_order(self._pool, by_code, parts, self._threads)))
        # What the code errs by is as large as the rows are far from their centroids, and the query.
        power = _power(self._coarse.count, self._coarse.square, fine.count, fine.square)
        by = self._far + (by - self._far) * (nlist / fine.count) ** min(power, 0)
        rank = np.take_along_axis(_ranked(by), self._near, axis=1)
        times = np.array([_nearly(rank[:, :j], _LOST) / j for j in self._depths])
        found = _K * _at_depth(self._depths, times, self._deep, (-1, 0))
        return int(min(max(_K, round(found)), self.n))


@dataclass(frozen=True, slots=True, kw_only=True)
class _InLists:
    """The few rows in ``count`` lists.

    ``square`` is how far rows are from their centroids, squared, at the mean; ``probed`` how many lists
    hold nearly all of the nearest rows, at each of the depths.
    """

    count: int
    centroids: FloatArray
    list_nos: IntArray
    square: float
    probed: AnyArray

    @classmethod
    def of(
        cls, centroids: FloatArray, x: FloatArray, xq: FloatArray, near: IntArray, metric: Metric
    ) -> _InLists:
        count, list_nos = len(centroids), Assigner(centroids, metric).assign(x)
        around = x - centroids[list_nos]
        # Centroids are nearer to their own rows than to others.
        chance = len(x) / max(len(x) - count, 1)
        rank = _ranked(_far(xq, centroids, metric))
        met = np.take_along_axis(rank, list_nos[near], axis=1)
        return cls(
            count=count,
            centroids=centroids,
            list_nos=list_nos,
            square=float(np.einsum("ij,ij->", around, around, dtype=np.float64)) / len(x) * chance,
            probed=np.array([_nearly(met[:, :j], _OUTSIDE) for j in _LIST_DEPTHS]),
        )


def _far(xq: FloatArray, x: FloatArray, metric: Metric) -> FloatArray:
    """How far rows ``(m, d)`` are from queries ``(nq, d)``, ``(nq, m)``: the nearest has the least."""
    products: FloatArray = xq @ x.T
    if metric != "l2":
        return -products
    squares: FloatArray = np.einsum("ij,ij->i", xq, xq)[:, None] + np.einsum("ij,ij->i", x, x)
    squares -= 2 * products
    return squares


def _ranked(far: FloatArray) -> IntArray:
    """The place of each entry in its line ``(nq, m)``, from 0 for the least on."""
    return places(np.argsort(far, axis=1, kind="stable"))


def _nearly(rank: IntArray, but: float) -> int:
    """How many places hold all but a share of what has these, from 0."""
    return int(np.sort(rank, axis=None)[int(np.ceil((1 - but) * rank.size)) - 1]) + 1


def _at_depth(depths: Sequence[int], found: AnyArray, deep: float, slopes: tuple[float, float]) -> float:
    """What ``found`` at some depths makes at another, by a power within bounds."""
    x, y = np.log(depths[: len(found)]), np.log(found)
    slope = float(np.clip(np.polyfit(x, y, 1)[0], *slopes))
    return float(np.exp(y.mean() + slope * (np.log(deep) - x.mean())))


def _power(first: int, low: AnyArray | float, second: int, high: AnyArray | float) -> float:
    """The power of ``second / first`` by which numbers grow from ``low`` to ``high``, at the mean."""
    if first == second or np.min(low) <= 0 or np.min(high) <= 0:
        return 0.0
    return float(np.mean(np.log(np.divide(high, low))) / np.log(second / first))
