"""How far a search must look for the rows that a filter allows.

A filter leaves few rows in each list, or none in the lists near a query and many in lists far from it.
So under a filter a list is one probe where all its rows are allowed, the square root of the allowed
share of its rows where it is less, and none where nothing in it is allowed; then it is not read. A search
goes through the lists, nearest first, until it has made ``nprobe`` probes and seen as many allowed rows
as it wants candidates; at the last it has seen all lists. How many rows of a list are allowed is counted
by its ids, a small part of its bytes. And where the allowed rows are so few that to compare them
all costs no more than a scan, that is done: the result is exact.

Measured with sentence embeddings (50 000 x 768, 1024 lists) and a million made rows (1024 dimensions,
4096 lists), for allowed rows at random and for regions near and far: of the laws that were tried this was
the cheapest that kept recall@10 within .02 of what it is without a filter, or above, at every share from
all to 1 in 10 000. Counting each list with at least so many allowed rows as one probe (one row, a tenth
or three tenths of a list) lost up to .1 at shares of .1 to .03, or scanned up to 2.5 times as much;
stopping as soon as there were enough candidates lost up to .4. The table is in ``ooc/docs/filters.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ooc.search.filters import Booleans, Filter
from ooc.types import FloatArray, IntArray
from ooc.vectors import distinct, pick

__all__ = ["AllowedInLists", "compares_all", "widened"]

#: Bytes of rows that take as long as a byte of lists: rows lie apart.
_ROWS_TO_LISTS = 0.5
#: What comparing a row with one more query costs, of what reading it does.
_COMPARED = 1 / 16
#: What a row of a mapped store takes to read, at the least.
_PAGE = 4096
#: Where lists are lacking, so many times as many are looked at.
_GROWTH = 4
#: (query, list) pairs that are looked at together: bounds the memory of looking far.
_HELD_PAIRS = 1 << 20
#: Parts of probes add up to whole ones with this error.
_ROUNDING = 1e-6


class AllowedInLists:
    """How many entries of each list a filter allows, counted when first asked for.

    Safe from several threads.

    Parameters
    ----------
    allowed : Filter
    sizes : (nlist,) int64
        Entries of each list.
    ids : callable
        The ids of lists ``(m,)``, one list after the other: ``Segment.ids``.
    """

    def __init__(self, allowed: Filter, sizes: IntArray, ids: Callable[[IntArray], IntArray]) -> None:
        self._filter, self.sizes, self._ids = allowed, sizes, ids
        self._counts = np.where(sizes > 0, -1, 0) if allowed.count < allowed.n else sizes

    def of(self, list_nos: IntArray) -> IntArray:
        """Allowed entries of lists, of the shape of ``list_nos``; 0 where a number is -1."""
        new = distinct(list_nos, len(self.sizes))
        new = new[self._counts[new] < 0]
        if len(new):
            inside = self._filter.contains(self._ids(new))
            starts = np.cumsum(self.sizes[new]) - self.sizes[new]
            self._counts[new] = np.add.reduceat(inside, starts, dtype=np.int64)
        return np.where(list_nos >= 0, self._counts[list_nos], 0)


def compares_all(
    count: int,
    n: int,
    *,
    nprobe: int,
    nlist: int,
    list_bytes: float,
    candidates: int,
    row_bytes: int,
    queries: int = 1,
) -> bool:
    """Whether to compare all ``count`` allowed rows of ``n`` exactly rather than to scan codes.

    Parameters
    ----------
    count, n : int
        Allowed rows, and all.
    nprobe, nlist : int
        Lists that a search without a filter would probe, and all.
    list_bytes : float
        Mean bytes of a list, codes and ids.
    candidates : int
        Rows that a scan would re-rank for each query.
    row_bytes : int
        Bytes of a row in its store.
    queries : int
        Queries that are answered together, for which the rows are read once.
    """
    if count <= candidates:
        return True
    probed = min(nlist, nprobe * math.sqrt(n / count))
    row = -(-row_bytes // _PAGE) * _PAGE
    compared = count * row * (1 / queries + _COMPARED)
    return compared <= _ROWS_TO_LISTS * (probed * list_bytes + candidates * row)


def widened(
    y: FloatArray,
    coarse: Callable[[FloatArray, int], tuple[FloatArray, IntArray]],
    allowed: AllowedInLists,
    *,
    nlist: int,
    nprobe: int,
    entries: int,
) -> tuple[FloatArray, IntArray]:
    """The lists to scan for each query under a filter.

    Parameters
    ----------
    y : (nq, d_code) float32
        Queries as ``coarse`` takes them.
    coarse : callable
        ``coarse(y, m)``: distances and numbers ``(nq, m)`` of the nearest lists, nearest first; -1 where
        it finds no more. At m = nlist it must give all lists.
    allowed : AllowedInLists
    nlist, nprobe : int
        Lists in all, and lists that are probed without a filter.
    entries : int
        Allowed entries that must be seen at the least, if there are as many: the candidates of a query,
        times the lists that a row is in.

    Returns
    -------
    distances, lists : (nq, p) float32, (nq, p) int64
        As of ``coarse``, without lists in which nothing is allowed; -1 behind the last.
    """
    nq = len(y)
    parts: list[tuple[IntArray, FloatArray, IntArray]] = []
    left, m = np.arange(nq), min(nprobe, nlist)
    while len(left):
        lacking = []
        step = max(1, _HELD_PAIRS // m)
        for first in range(0, len(left), step):
            queries = left[first : first + step]
            distances, lists = coarse(y[queries], m)
            held = allowed.of(lists)
            before = np.cumsum(held, axis=1) - held
            probes = np.sqrt(held / np.maximum(allowed.sizes[lists], 1))
            probed = np.cumsum(probes, axis=1) - probes
            enough = (probed + probes)[:, -1] >= nprobe - _ROUNDING
            enough &= (before + held)[:, -1] >= entries
            if m == nlist:
                enough[:] = True
            take = (held > 0) & ((probed < nprobe - _ROUNDING) | (before < entries))
            lacking.append(queries[~enough])
            parts.append((queries[enough], *_compacted(distances[enough], lists[enough], take[enough])))
        left, m = np.concatenate(lacking), min(_GROWTH * m, nlist)
    width = max((part[2].shape[1] for part in parts), default=0)
    found = np.zeros((nq, width), np.float32), np.full((nq, width), -1, np.int64)
    for queries, distances, lists in parts:
        found[0][queries, : lists.shape[1]] = distances
        found[1][queries, : lists.shape[1]] = lists
    return found


def _compacted(distances: FloatArray, lists: IntArray, take: Booleans) -> tuple[FloatArray, IntArray]:
    """What is taken of each row, moved to the left in its order; -1 behind."""
    width = int(take.sum(axis=1).max()) if len(take) else 0
    order = np.argsort(~take, axis=1, kind="stable")[:, :width]
    kept = pick(take, order)
    return (
        pick(distances, order),
        np.where(kept, pick(lists, order), -1),
    )
