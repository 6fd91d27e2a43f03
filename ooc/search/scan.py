"""The scan: of the lists of each query, the best rows by code.

A batch reads each list once. Its lists are gone through in the order of the file, a group of them at
a time: the next group is asked of the disk before this one is scanned, and what each query found in a
group is merged with what it found before. How large a group is bounds the memory that the lists of a
batch take; where all of them fit, or are in memory already, there is one group.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ooc.engine import Selector
from ooc.index.segment import Segments
from ooc.search.best import best, once, worst
from ooc.search.budget import Budget
from ooc.search.filters import Booleans
from ooc.search.trace import NOTHING, Trace
from ooc.types import FloatArray, IntArray, Metric
from ooc.vectors import distinct, pick

__all__ = ["candidates"]


def candidates(
    segment: Segments,
    y: FloatArray,
    coarse: FloatArray,
    lists: IntArray,
    count: int,
    metric: Metric,
    *,
    budget: Budget,
    ahead: Literal["all", "codes"] | None,
    at_once: bool = False,
    trace: Trace,
    selector: Selector | None = None,
) -> tuple[FloatArray, IntArray]:
    """The ``count`` best rows by code of the given lists of each query, each row once.

    Parameters
    ----------
    y : (nq, d_code) float32
        Transformed queries.
    coarse, lists : (nq, p) float32, (nq, p) int64
        Distances and numbers of the lists to look into; numbers of -1 are passed over.
    budget : Budget
        How many lists are brought in together.
    ahead : {"all", "codes"} or None
        What is asked of the disk before it is needed: lists, their codes alone, or nothing.
    at_once : bool
        Whether all lists are one group, as they are in memory anyway.
    trace : Trace
        Is told lists, bytes and reads.
    selector : Selector, optional
        Rows that count; others are passed over.

    Returns
    -------
    distances, ids : (nq, count) float32, (nq, count) int64
        By code, in no order; ids are -1 where there are fewer.
    """
    asked = count * segment.lists_per_row
    if at_once and ahead is None and trace is NOTHING:
        return _each_once(segment, *segment.scan(y, lists, coarse, asked, selector), count, metric)
    numbers = distinct(lists, segment.nlist)
    sizes = segment.list_bytes(numbers)
    total = int(sizes.sum())
    trace.add(lists=int((lists >= 0).sum()), entries=_entries(segment, lists), list_bytes=total)
    # A group ends with the list in which it grows full. List numbers are the order of the file.
    groups = (np.cumsum(sizes) - 1) // (total + 1 if at_once else budget.group_bytes)
    bounds = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(numbers)]

    def will_need(begin: int, end: int) -> None:
        if ahead is not None:
            with trace.time("ask for lists"):
                trace.add(list_reads=segment.will_need(numbers[begin:end], ahead))

    will_need(0, bounds[1])
    if len(bounds) == 2:
        with trace.time("scan"):
            found, ids = segment.scan(y, lists, coarse, asked, selector)
            return _each_once(segment, found, ids, count, metric)
    drops = budget.keep_bytes is not None and total > budget.keep_bytes
    found = np.full((len(y), count), worst(metric), np.float32)
    ids = np.full((len(y), count), -1, np.int64)
    for begin, end, after in zip(bounds, bounds[1:], [*bounds[2:], len(numbers)], strict=False):
        will_need(end, after)
        inside = (lists >= numbers[begin]) & (lists <= numbers[end - 1])
        some = np.flatnonzero(inside.any(axis=1))
        with trace.time("scan"):
            its_lists, its_coarse = _packed(lists[some], coarse[some], inside[some])
            one = segment.scan(y[some], its_lists, its_coarse, asked, selector)
        with trace.time("merge"):
            both = np.concatenate((found[some], one[0]), axis=1), np.concatenate((ids[some], one[1]), axis=1)
            found[some], ids[some] = _each_once(segment, both[0], both[1], count, metric)
        if drops:
            segment.let_go(numbers[begin:end])
    return found, ids


def _entries(segment: Segments, lists: IntArray) -> int:
    return int(segment.sizes[lists[lists >= 0]].sum())


def _packed(lists: IntArray, coarse: FloatArray, inside: Booleans) -> tuple[IntArray, FloatArray]:
    """The lists of each query that are inside, from the left, then -1: as few columns as will do."""
    width = int(inside.sum(axis=1).max(initial=1))
    order = np.argsort(~inside, axis=1, kind="stable")[:, :width]
    kept = pick(inside, order)
    return (
        np.where(kept, pick(lists, order), -1),
        pick(coarse, order),
    )


def _each_once(
    segment: Segments, found: FloatArray, ids: IntArray, count: int, metric: Metric
) -> tuple[FloatArray, IntArray]:
    """The ``count`` best of each query, each row once."""
    if segment.lists_per_row > 1:
        return best(*once(found, ids, metric), count, metric)
    if found.shape[1] == count:
        return found, ids
    key = np.where(ids >= 0, found if metric == "l2" else -found, np.inf)
    near = np.argpartition(key, count - 1, axis=1)[:, :count]
    return pick(found, near), pick(ids, near)
