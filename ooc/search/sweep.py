"""The exact nearest of many queries among rows that come by once, block by block.

A matrix product gives every row a score for every query. Its rounding error has a bound, and a row is
passed over only where its score is worse than the k-th best distance so far by more than that bound; what is
left is compared exactly at once, while the block is in memory. So nothing is read twice, and what comes
out does not depend on the order of the additions in a product, nor on threads or block sizes.

The bound is that of a dot product of d float32 numbers, d·2⁻²⁴ of the product of the lengths (Higham,
Accuracy and Stability of Numerical Algorithms, section 3.1), with room for what else is rounded.

Products may first be taken in few directions in which vectors differ much; what is left of a query and of a
row can add no more than the product of its lengths (Cauchy and Schwarz). Only pairs that this bound does not
rule out are then compared, so the result is the same.

Of rows as near the one with the lower number is better. Where very many are as near as the k-th, they are as
a rule equal: of equal rows of a block the first k are enough for any query, and the rest is passed over.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from ooc.engine import pairs
from ooc.errors import Stopped
from ooc.search.best import worst
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.vectors import LEAST_SQUARE, MOST_SQUARE, normalise

__all__ = ["TILE", "Found", "Short", "Sweep", "ordered", "place_of_each"]

#: Queries that are multiplied together with a block of rows.
TILE = 512
#: Pairs that are compared exactly at once: some 60 bytes each.
_PAIRS = 1 << 16
#: float32 numbers are rounded by at most this part of their size.
_ROUNDED = 2.0**-24
#: Of a block, the share of pairs that few directions may leave before all dimensions are multiplied instead;
#: and in how many further blocks few directions are then not tried.
_LEFT, _WITHOUT = 1 / 16, 6
#: Vectors must not grow when they are projected, however directions were rounded.
_SHORT = np.float32(1 - 1e-5)


#: Queries, rows and keys.
_Pairs: TypeAlias = tuple[AnyArray, AnyArray, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a block of rows has for the queries.

    Attributes
    ----------
    start : int
        The number of the first row.
    tiles : list of (queries, rows, keys)
        For each tile of queries, pairs that may be among the best: the query's number in its tile and the
        row's in the block (int32), and their distance, negated for similarities so that less is better.
    bad : (b,) int64
        Numbers of rows with NaN or infinity, which are passed over.
    every : int
        How far apart the rows of the block are.
    """

    start: int
    tiles: list[_Pairs]
    bad: IntArray
    every: int = 1


@dataclass(frozen=True, slots=True)
class Short:
    """Rows in few directions, with the length of what is left ``(m, ..)``, and their squares ``(m,)``."""

    y: FloatArray
    squares: FloatArray


class Sweep:
    """The ``k`` nearest rows of each query, of all the blocks that are looked at.

    ``look_at`` is safe from several threads at once; ``take`` is for one. Blocks may come in any order.

    Parameters
    ----------
    xq : (nq, d) float32
        C-contiguous and finite; of unit length where the metric is cosine.
    k : int
        Neighbours wanted.
    metric : {"l2", "ip", "cosine"}
    own : (nq,) int64, optional
        The row that each query is, which is left out of its answer; -1 for none.
    basis : (d, m) float32, optional
        Orthogonal directions, each of length 1 or 0, that are looked at first: a few times quicker where
        vectors differ in these more than in others. Not for cosine: take rows of unit length and ``ip``.
    stop : threading.Event, optional
        When set, looking raises ``Stopped``: many queries take long.
    """

    def __init__(
        self,
        xq: FloatArray,
        k: int,
        metric: Metric,
        own: IntArray | None = None,
        *,
        basis: FloatArray | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._stop = stop
        nq, d = xq.shape
        self._xq, self._k, self._metric, self._own = xq, k, metric, own
        #: Rows of which k are no query itself; and how many a query of a block are worth to be made fewer.
        self._least = k + (own is not None)
        self._many = 4 * self._least + 64
        # Distances do not change where everything is moved; near the origin they lose fewer digits.
        self._centre = xq.mean(axis=0, dtype=np.float64).astype(np.float32) if metric == "l2" and nq else None
        # Scores are products of these and the rows, less is better: -q·x, or |x|² - 2 q·x with |x|² as
        # one more dimension of x.
        if self._centre is None:
            self._factors = -xq
            squares = np.einsum("ij,ij->i", xq, xq, dtype=np.float64)
            self._offset = np.zeros(nq)
        else:
            self._factors = np.empty((nq, d + 1), np.float32)
            moved = np.subtract(xq, self._centre, out=self._factors[:, :d])
            squares = np.einsum("ij,ij->i", moved, moved, dtype=np.float64)
            moved *= -2
            self._factors[:, d] = 1
            self._offset = squares
        self._length = np.sqrt(squares)
        self._bound = None if basis is None else _Bound(xq, basis, l2=metric == "l2")
        #: Blocks in which few directions are not tried, by tile. Two threads may count one as two or none.
        self._without = [0] * -(-nq // TILE)
        # Of the score and of the distance; a cosine has the rounding of both lengths besides.
        self._error = (4 if metric == "cosine" else 2) * (d + 8) * _ROUNDED
        self._tiles = [slice(first, min(first + TILE, nq)) for first in range(0, nq, TILE)]
        # The k-th best so far, by tile: replaced as a whole, so that other threads see one or the other.
        self._worst = [_Worst.unknown(tile.stop - tile.start) for tile in self._tiles]
        self._keys = np.full((nq, k), np.inf, np.float32)
        self._ids = np.full((nq, k), -1, np.int64)
        #: Pairs to be put in order, with the first row's number and the step to the next; and how many.
        self._waiting: list[list[tuple[int, int, _Pairs]]] = [[] for _ in self._tiles]
        self._waiting_count = [0] * len(self._tiles)

    @staticmethod
    def query_bytes(d: int, k: int) -> int:
        """Private memory for each query, its own vector not counted."""
        # What is multiplied; the k best; and pairs of 12 bytes: half of k wait, some k are found by the
        # threads at any time, where bounds were set by a few blocks before.
        return 4 * (d + 1) + 12 * k + 12 * 3 * k

    @staticmethod
    def look_bytes(d: int, rows: int) -> int:
        """Private memory for looking at so many rows together."""
        # The rows moved, or in few directions; of a tile scores, whether they are near, and exact keys.
        return 4 * rows * (d + 2) + 5 * TILE * rows + TILE * rows // 4 * 20

    @staticmethod
    def merge_bytes(k: int) -> int:
        """Private memory for putting in order."""
        return TILE * 3 * k * 48

    def short(self, x: FloatArray, low: FloatArray | None = None) -> Short | None:
        """What few directions tell of rows ``(m, d)``, where there are some: ``low`` is ``x @ basis``.

        The same for all sweeps of this basis and metric.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return None if self._bound is None else self._bound.rows(x, low)

    def look_at(
        self,
        start: int,
        x: FloatArray,
        bad: IntArray,
        short: Short | None = None,
        *,
        every: int = 1,
        rest: int = 0,
    ) -> Found:
        """What may be among the nearest of some rows ``(m, d)`` float32: of every so many, from ``rest`` on.

        ``bad`` ones, by place among all, are set to 0. Row i has the number ``start + i``. ``short`` is what
        ``short`` gives, where the caller has it.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            at = np.arange(rest, len(x), every)
            some, bad = x[rest::every], bad[bad % every == rest] // every
            short = short or self.short(x)
            bound = None if self._bound is None or short is None else self._bound.of(short, rest, every)
            squares = pairs(x, at, x, at, "ip") if self._metric == "cosine" else None
            rows = _Rows(x=x, at=at, squares=squares, bad=bad, start=start + rest, every=every)
            operand: tuple[FloatArray, float] | None = None
            spare = functools.cache(partial(_spare, some, bad, self._least))
            tiles = []
            for i, tile in enumerate(self._tiles):
                Stopped.raise_if(self._stop)
                known = self._worst[i]
                kth, near = known.keys, None
                if bound is not None and not self._without[i]:
                    near = bound(tile, kth, self._error)
                    if np.count_nonzero(near) > _LEFT * near.size:
                        near, self._without[i] = None, _WITHOUT
                elif self._without[i]:
                    self._without[i] -= 1
                if near is None:
                    operand = operand or self._operand(some)
                    near = self._near(tile, kth, *operand, bad, spare)
                tiles.append(self._pairs(tile, known, near, rows))
        return Found(start=start + rest, tiles=tiles, bad=at[bad] + start, every=every)

    def _operand(self, x: FloatArray) -> tuple[FloatArray, float]:
        """Rows as the scores are made of them, and the length of the longest."""
        if self._metric == "cosine":
            return normalise(x)[0], 1.0
        if self._centre is None:
            return x, float(np.sqrt(np.einsum("ij,ij->i", x, x).max()))
        y = np.empty((len(x), x.shape[1] + 1), np.float32)
        moved = np.subtract(x, self._centre, out=y[:, :-1])
        np.einsum("ij,ij->i", moved, moved, out=y[:, -1])
        return y, float(np.sqrt(y[:, -1].max()))

    def _near(
        self,
        tile: slice,
        kth: AnyArray,
        y: FloatArray,
        longest: float,
        bad: IntArray,
        spare: Callable[[], IntArray],
    ) -> NDArray[np.bool_]:
        """Which rows may be among the nearest of which query of a tile, by all dimensions."""
        length = self._length[tile]
        # l2: of what is squared; else of what is multiplied.
        error = self._error * ((length + longest) ** 2 if self._centre is not None else length * longest)
        scores = self._factors[tile] @ y.T
        if len(bad):
            scores[:, bad] = np.inf
        # Written so that scores which overflowed to NaN are looked at.
        near = ~(scores > _up(kth - self._offset[tile] + error)[:, None])
        if self._least < len(y) and np.count_nonzero(near) > self._many * len(near):
            near[:, spare()] = False
        if self._least < len(y) and np.count_nonzero(near) > self._many * len(near):
            # The k best of this block alone bound the k-th best, too.
            within = np.partition(scores, self._least - 1, axis=1)[:, self._least - 1]
            near &= ~(scores > _up(within + 2 * error)[:, None])
        return near

    def _pairs(self, tile: slice, known: _Worst, near: NDArray[np.bool_], rows: _Rows) -> _Pairs:
        """Those of the near pairs that are among the nearest: at most 2 k a query, in the mean."""
        if len(rows.bad):
            near[:, rows.bad] = False
        found: list[_Pairs] = []
        for some in _pieces(near):
            # As np.nonzero, several times as fast.
            query, row = np.divmod(np.flatnonzero(near[some]), near.shape[1])
            query += some.start
            if self._own is not None:
                other = self._own[tile][query] != row * rows.every + rows.start
                query, row = query[other], row[other]
            keys = self._exact(query + tile.start, row, rows)
            better = known.beaten(query, keys, row, rows.start, rows.every)
            query, row, keys = query[better], row[better], keys[better]
            if len(query) > 2 * self._k * (some.stop - some.start):  # putting in order takes long
                order = ordered(query, keys, row)
                rank = place_of_each(query[order])
                order = order[rank < self._k]
                query, row, keys = query[order], row[order], keys[order]
            found.append((query.astype(np.int32), row.astype(np.int32), keys))
        if len(found) == 1:
            return found[0]
        query, row, keys = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return query, row, keys

    def _exact(self, query: IntArray, row: IntArray, rows: _Rows) -> FloatArray:
        """Distances of pairs, computed as a search computes them; less is better."""
        at = rows.at[row]
        found = pairs(self._xq, query, rows.x, at, self._metric)
        if rows.squares is not None:
            of = rows.squares[row]
            odd = np.flatnonzero((of < LEAST_SQUARE) | ~(of < MOST_SQUARE))
            found /= np.sqrt(np.where(of == 0, 1, of))
            if len(odd):
                unit = normalise(rows.x[at[odd]])[0]
                found[odd] = pairs(self._xq, query[odd], unit, _count(unit), self._metric)
        return found if self._metric == "l2" else -found

    def take(self, found: Found) -> None:
        """Add what ``look`` found."""
        for i, found_pairs in enumerate(found.tiles):
            if not len(found_pairs[0]):
                continue
            self._waiting[i].append((found.start, found.every, found_pairs))
            self._waiting_count[i] += len(found_pairs[0])
            # Seldom, since putting in order takes long; before the first k are there, at once.
            known = self._worst[i]
            if self._waiting_count[i] > len(known.keys) * self._k // 2 or known.some_unknown:
                self._merge(i)

    def _merge(self, i: int) -> None:
        tile, waiting = self._tiles[i], self._waiting[i]
        self._waiting[i], self._waiting_count[i] = [], 0
        if not waiting:
            return
        k, ids, keys = self._k, self._ids[tile], self._keys[tile]
        there = ids >= 0
        query = np.concatenate([np.nonzero(there)[0], *(pair[0] for _, _, pair in waiting)])
        all_ids = np.concatenate(
            [ids[there], *(pair[1] * np.int64(every) + np.int64(start) for start, every, pair in waiting)]
        )
        all_keys = np.concatenate([keys[there], *(pair[2] for _, _, pair in waiting)])
        order = ordered(query, all_keys, all_ids)
        query = query[order]
        rank = place_of_each(query)
        order, query, rank = order[rank < k], query[rank < k], rank[rank < k]
        ids[query, rank], keys[query, rank] = all_ids[order], all_keys[order]
        self._worst[i] = _Worst.of(keys[:, k - 1], ids[:, k - 1])

    def add(self, query: IntArray, ids: IntArray, keys: FloatArray) -> None:
        """Add pairs that were found elsewhere: queries and rows ``(p,)`` by number, and keys."""
        for i, tile in enumerate(self._tiles):
            here = np.flatnonzero((query >= tile.start) & (query < tile.stop))
            self._waiting[i].append((0, 1, (query[here] - tile.start, ids[here], keys[here])))
            self._merge(i)

    def so_far(self) -> tuple[FloatArray, IntArray]:
        """Keys and ids ``(nq, k)`` of all that was taken: distances, negated for similarities; views."""
        for i in range(len(self._tiles)):
            Stopped.raise_if(self._stop)
            self._merge(i)
        return self._keys, self._ids

    def result(self) -> tuple[FloatArray, IntArray]:
        """Distances and ids ``(nq, k)``, best first, ties by id; ids -1 where there are fewer rows."""
        self.so_far()
        found = self._keys if self._metric == "l2" else -self._keys
        found[self._ids < 0] = worst(self._metric)
        return found, self._ids


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Rows of a block that are looked at.

    They are ``x[at]``, ``bad`` ones among them by place, and ``squares`` of their lengths. Row i of them has
    the number ``start + i * every``.
    """

    x: FloatArray
    at: IntArray
    squares: FloatArray | None
    bad: IntArray
    start: int
    every: int


@dataclass(frozen=True, slots=True)
class _Worst:
    """Of each query of a tile the k-th best so far: its key (float64) and number, ``(nq,)`` each.

    Where there are fewer than k the key is infinite and the number larger than any.
    """

    keys: AnyArray
    ids: IntArray
    some_unknown: bool

    @classmethod
    def unknown(cls, nq: int) -> _Worst:
        return cls.of(np.full(nq, np.inf), np.full(nq, -1))

    @classmethod
    def of(cls, keys: AnyArray, ids: IntArray) -> _Worst:
        """Of k-th keys, and numbers that are -1 where there is no k-th."""
        full = ids >= 0
        kth = np.where(full, keys, np.inf).astype(np.float64)
        return cls(kth, np.where(full, ids, np.iinfo(np.int64).max), not full.all())

    def beaten(self, query: IntArray, keys: FloatArray, row: IntArray, start: int, every: int) -> AnyArray:
        """Where pairs are better: not farther, and of those as near the rows with lower numbers."""
        kth = self.keys[query]
        better = ~(keys > kth)
        same = np.flatnonzero(keys == kth)
        better[same] = row[same] * every + start < self.ids[query[same]]
        return better


def _pieces(near: NDArray[np.bool_]) -> Iterator[slice]:
    """Queries of a tile, as many together as have some pairs to be compared, or one."""
    if np.count_nonzero(near) <= _PAIRS:
        yield slice(0, len(near))
        return
    ends = np.cumsum(np.count_nonzero(near, axis=1))
    first = before = 0
    while first < len(near):
        stop = max(first + 1, int(np.searchsorted(ends, before + _PAIRS, side="right")))
        yield slice(first, stop)
        first, before = stop, int(ends[stop - 1])


def ordered(query: IntArray, keys: FloatArray, ids: IntArray) -> IntArray:
    """As ``np.lexsort((ids, keys, query))`` of float32 keys, several times as fast."""
    if np.isnan(keys).any():
        return np.lexsort((ids, keys, query))
    # Bits of numbers, those of negative ones turned, are in the order of the numbers; -0 becomes 0.
    bits = (keys + np.float32(0)).view(np.uint32)
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    both = (query.astype(np.uint64) << np.uint64(32)) | bits
    order = np.argsort(both)
    both = both[order]
    same = both[1:] == both[:-1]
    if same.any():
        some = np.flatnonzero(np.append(same, False) | np.append(False, same))
        order[some] = order[some][np.lexsort((ids[order[some]], both[some]))]
    return order


def place_of_each(query: IntArray) -> IntArray:
    """The place of each of some pairs, ordered by query, among those of its query."""
    first = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(first, np.diff(first, append=len(query)))


def _spare(x: FloatArray, bad: IntArray, least: int) -> IntArray:
    """The rows ``(m, d)`` that ``least`` equal ones come before: none of them is among the nearest."""
    good = np.delete(np.arange(len(x)), bad)
    digests = b"".join(xxhash.xxh3_128_digest(x[i]) for i in good.tolist())
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    other = np.any(halves[order[1:]] != halves[order[:-1]], axis=1)
    return good[order[place_of_each(np.concatenate(([0], np.cumsum(other)))[: len(order)]) >= least]]


class _Bound:
    """A lower bound of scores, from few directions and the lengths of what is left."""

    def __init__(self, xq: FloatArray, basis: FloatArray, *, l2: bool) -> None:
        self._basis, self._l2 = basis, l2
        squares = np.einsum("ij,ij->i", xq, xq, dtype=np.float64)
        turned = (xq @ basis) * _SHORT
        factors = np.column_stack((turned, _left(squares, turned, xq.shape[1])))
        # -q·x, or |x|² - 2 q·x.
        self._factors = np.column_stack((-2 * factors, np.ones(len(xq), np.float32))) if l2 else -factors
        self._offset = squares if l2 else np.zeros(len(xq))
        self._length = np.sqrt(squares)

    def rows(self, x: FloatArray, low: FloatArray | None) -> Short:
        """Rows ``(m, d)`` in few directions, of which any bound is made."""
        low = (x @ self._basis if low is None else low) * _SHORT
        squares = np.einsum("ij,ij->i", x, x)
        left = _left(squares, low, x.shape[1])
        return Short(np.column_stack((low, left, squares) if self._l2 else (low, left)), squares)

    def of(self, short: Short, rest: int, every: int) -> Callable[..., NDArray[np.bool_]]:
        """For some of the rows, a function of a tile of queries, their k-th best and the relative error."""
        y = short.y[rest::every]
        longest = float(np.sqrt(short.squares[rest::every].max(initial=0)))

        def near(tile: slice, kth: AnyArray, relative: float) -> NDArray[np.bool_]:
            length = self._length[tile]
            error = relative * ((length + longest) ** 2 if self._l2 else length * longest)
            limit = _up(kth - self._offset[tile] + error)
            may: NDArray[np.bool_] = ~(self._factors[tile] @ y.T > limit[:, None])
            return may

        return near


def _left(squares: AnyArray, turned: FloatArray, d: int) -> FloatArray:
    """At least the length of what a projection leaves of vectors, of which squared lengths are given."""
    kept = np.einsum("ij,ij->i", turned, turned)
    rounding = 4 * (d + 8) * _ROUNDED * squares
    return _up(np.sqrt(np.maximum(squares - kept, 0) + rounding))


def _up(limit: AnyArray) -> FloatArray:
    """float64 numbers as float32 that are not below them."""
    return np.nextafter(limit.astype(np.float32), np.float32(np.inf))


def _count(x: AnyArray) -> IntArray:
    return np.arange(len(x), dtype=np.int64)
