"""The way of a batch of queries through one segment.

    queries ─> coarse ─> ask for lists ─> scan codes ─> ask for rows ─> re-rank ─> distances, ids

Every read is asked for before it is needed, many at once; a query that waits for no disk anyway is
spared the asking.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ooc.engine import Selector
from ooc.errors import IndexDirError
from ooc.index.dead import Dead
from ooc.index.segment import Segments
from ooc.mapping import Residency
from ooc.search.best import best, once
from ooc.search.budget import Budget
from ooc.search.filters import Filter
from ooc.search.kind import Kind
from ooc.search.rerank import distances
from ooc.search.scan import candidates
from ooc.search.trace import NOTHING, Trace
from ooc.search.widen import AllowedInLists, widened
from ooc.stores.base import Store
from ooc.types import FloatArray, IntArray, Metric

__all__ = ["Numbers", "Rows", "Stages", "Wanted"]

#: Lists of more queries than this are always asked for: they are few advices for much.
_FEW_QUERIES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of a search.

    Attributes
    ----------
    nprobe : int
        Lists to look into for each query.
    k, candidates : int
        Results, and rows that the codes propose for them.
    exact : bool
        Whether candidates are compared exactly.
    allowed, counted : Filter, AllowedInLists, optional
        Rows that count, and how many of them the lists hold.
    promised : bool
        Whether a recall was asked for, and the setting chosen by what was measured.
    reach : float, optional
        Lists beyond it are left out: each query looks into ``nprobe`` at most.
    """

    nprobe: int
    reach: float | None = None
    k: int = 0
    candidates: int = 0
    exact: bool = True
    allowed: Filter | None = None
    counted: AllowedInLists | None = None
    promised: bool = False

    @property
    def queries_bytes(self) -> int:
        """Private memory that a query takes on its way, besides its vector."""
        return 96 * self.candidates + 32 * self.nprobe


class Rows(Protocol):
    """Where the rows for exact distances come from."""

    def rows(self) -> Store:
        """The rows, opened when they are first asked for."""


class Numbers(Protocol):
    """Which id a row has."""

    @property
    def row_end(self) -> int:
        """One more than the largest number of a row."""

    def ids(self, rows: IntArray) -> IntArray:
        """The ids of ``rows`` (int64, any shape); -1 stays."""


class Stages:
    """The stages of a search over a segment and the rows behind it. Safe from several threads.

    Parameters
    ----------
    segment : Segments
    source : Rows
        See ``ooc.search.source``.
    metric : {"l2", "ip", "cosine"}
    budget : Budget
    numbering : Numbers
        See ``ooc.index.numbering``.
    dead : Dead, optional
        Rows in the lists that do not count.
    kind : Kind, optional
        Looks at queries for which a recall is promised.
    """

    def __init__(
        self,
        segment: Segments,
        source: Rows,
        metric: Metric,
        budget: Budget,
        *,
        numbering: Numbers,
        dead: Dead | None = None,
        kind: Kind | None = None,
    ) -> None:
        self._segment, self._source, self._metric = segment, source, metric
        self._budget, self.numbering, self.dead, self._kind = budget, numbering, dead, kind
        self._residency = Residency()

    def search(
        self, queries: FloatArray, wanted: Wanted, trace: Trace = NOTHING
    ) -> tuple[FloatArray, IntArray]:
        """The ``k`` best rows of each query: distances and ids ``(nq, k)``."""
        segment, metric = self._segment, self._metric
        there = not self._residency.wants_advice()
        ahead = not there or len(queries) > _FEW_QUERIES
        entries = wanted.candidates * segment.lists_per_row
        with trace.time("coarse"):
            y = segment.transform(queries)
            coarse, lists = self._lists(y, wanted, entries, ahead)
            if wanted.promised and self._kind is not None:
                self._kind.look(coarse[:, 0], y)
            if wanted.reach is not None:
                coarse, lists = self._within_reach(y, coarse, lists, wanted.reach)
        if not lists.shape[1]:  # nothing is allowed
            nothing = np.full((len(queries), 1), -1, np.int64)
            return best(np.zeros(nothing.shape, np.float32), nothing, wanted.k, metric)
        found, rows = candidates(
            segment,
            y,
            coarse,
            lists,
            wanted.candidates,
            metric,
            budget=self._budget,
            # Ids of lists that were counted have been asked for.
            ahead=None if not ahead else "codes" if wanted.counted is not None else "all",
            at_once=there and self._budget.keep_bytes is None,
            trace=trace,
            selector=self._selector(wanted),
        )
        self.see_rows(rows)
        if trace is not NOTHING:
            trace.add(candidates=int((rows >= 0).sum()))
        if wanted.exact:
            ask = self._residency.wants_advice
            with trace.time("re-rank"):
                store = self._source.rows()
                found = distances(queries, rows, store, metric, budget=self._budget, ahead=ask, trace=trace)
        with trace.time("order"):
            return best(found, self.numbering.ids(rows), wanted.k, metric)

    def _selector(self, wanted: Wanted) -> Selector | None:
        """Which rows of a list count; None where all do."""
        if wanted.allowed is not None:
            return wanted.allowed.selector()
        return None if self.dead is None else self.dead.selector

    def _within_reach(
        self, y: FloatArray, coarse: FloatArray, lists: IntArray, reach: float
    ) -> tuple[FloatArray, IntArray]:
        """The lists of each query that are no farther, the first of all; the others are -1."""
        reaches = self._segment.reaches(y, coarse, lists)
        if len(reaches) == 1:  # they ascend
            width = max(1, int(reaches[0].searchsorted(np.float32(reach), "right")))
            return coarse[:, :width], lists[:, :width]
        far = reaches > reach
        far[:, :1] = False
        width = int((~far).sum(axis=1).max())
        return coarse[:, :width], np.where(far, -1, lists)[:, :width]

    def within(self, query: FloatArray, radius: float, wanted: Wanted) -> tuple[FloatArray, IntArray]:
        """Distances and ids of all rows within ``radius`` of one query ``(1, d)``, in no order."""
        segment, metric, allowed = self._segment, self._metric, wanted.allowed
        ahead = self._residency.wants_advice()
        y = segment.transform(query)
        coarse, lists = self._lists(y, wanted, 0, ahead)
        if wanted.exact or not lists.shape[1]:
            if ahead and wanted.counted is None:
                segment.will_need(lists, "ids")
            rows = np.unique(segment.ids(lists[0]))
            self.see_rows(rows)
            if allowed is not None:
                rows = rows[allowed.contains(rows)]
            elif self.dead is not None:
                rows = rows[~self.dead.contains(rows)]
            found = distances(query, rows[None], self._source.rows(), metric, budget=self._budget)[0]
            near = found < radius if metric == "l2" else found > radius
            return found[near], self.numbering.ids(rows[near])
        if ahead:
            segment.will_need(lists, "all" if wanted.counted is None else "codes")
        _, found, rows = segment.range_scan(y, lists, coarse, radius, self._selector(wanted))
        self.see_rows(rows)
        if segment.lists_per_row > 1:
            found, rows = (a[0] for a in once(found[None], rows[None], metric))
            found, rows = found[rows >= 0], rows[rows >= 0]
        return found, self.numbering.ids(rows)

    def counting(self, allowed: Filter | None) -> AllowedInLists | None:
        """Counts what a filter allows in each list, whose ids are asked for together."""
        if allowed is None:
            return None

        def ids(list_nos: IntArray) -> IntArray:
            self._segment.will_need(list_nos, "ids")
            return self._segment.ids(list_nos)

        return AllowedInLists(allowed, self._segment.sizes, ids)

    def see_rows(self, rows: IntArray) -> None:
        """Numbers come from a file: none may point outside the rows before rows are gathered by them."""
        end = self.numbering.row_end
        if rows.size and (int(rows.max()) >= end or int(rows.min()) < -1):
            raise IndexDirError(
                f"{self._segment.described} is damaged: it holds ids beyond the {end} rows",
                kind="index-damaged",
                hint="Copy the directory anew, or remove it and build.",
            )

    def _lists(self, y: FloatArray, wanted: Wanted, entries: int, ahead: bool) -> tuple[FloatArray, IntArray]:
        """Distances and numbers of the lists to look into."""
        if wanted.counted is None:
            return self._segment.coarse(y, wanted.nprobe, ahead=ahead)

        def coarse(some: FloatArray, m: int) -> tuple[FloatArray, IntArray]:
            return self._segment.coarse(some, m, ahead=ahead)

        return widened(
            y, coarse, wanted.counted, nlist=self._segment.nlist, nprobe=wanted.nprobe, entries=entries
        )
