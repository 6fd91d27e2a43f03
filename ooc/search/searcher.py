"""An index directory, opened for searching: what is asked is checked here, and answered by ``Stages``."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np

from ooc.durable import read_json
from ooc.engine import threads_limited
from ooc.errors import ArgumentError, IndexDirError
from ooc.index.layout import Layout
from ooc.index.lists import ID_BYTES
from ooc.index.order import Order
from ooc.index.segment import Segment
from ooc.search.budget import Budget
from ooc.search.exact import exhaustive
from ooc.search.filters import Filter
from ooc.search.info import figures
from ooc.search.kind import Kind
from ooc.search.promise import Choice, Promise, default_rerank
from ooc.search.queries import as_queries
from ooc.search.rerank import vectors
from ooc.search.source import Source
from ooc.search.stages import Stages, Wanted
from ooc.search.stream import search_to
from ooc.search.trace import NOTHING, Explanation, Trace
from ooc.search.widen import compares_all
from ooc.stores.base import Store, as_float32
from ooc.types import AnyArray, FloatArray, IntArray, Metric, PathOrStr, StoreLike

__all__ = ["Index", "open_index"]

#: Queries for which all rows are compared together.
_EXACT_QUERIES = 1024
#: The most queries that go through the stages together.
_BATCH_QUERIES = 16_384


def open_index(path: PathOrStr, *, store: StoreLike | None = None, memory: int | str | None = None) -> Index:
    """Open an index directory for searching. Takes milliseconds; nothing is written.

    Parameters
    ----------
    path : path
        The directory that ``ooc.build`` made. It may be read-only, moved or copied.
    store : store, optional
        Where the vectors are now, if they moved since the build.
    memory : int or str, optional
        What a search may use, in bytes or as text (``"256MiB"``), at least 64 MiB: queries that are
        searched together, lists and rows that are asked of the disk ahead, and Python itself stay within it,
        and a batch that reads more lets go of it behind. State it where the process has a limit (a
        cgroup); otherwise batches are planned for 1 GiB. See ``ooc help memory``.

    Raises
    ------
    IndexDirError
        The directory is missing, something else, unfinished, of a newer format, or damaged.
    StoreError, ConflictError
        ``store`` was given and cannot be read, or does not hold the indexed rows.
    ArgumentError
        ``memory`` is no size, or too small.
    """
    return Index(Layout.of(path), store, memory)


class Index:
    """An open index. Make one with ``ooc.open_index``; close it, or use it in a ``with`` block.

    Searching is safe from several threads.

    Attributes
    ----------
    n : int
        Rows in the index.
    d : int
        Dimensions.
    metric : {"l2", "ip", "cosine"}
    nlist : int
        Lists.
    lists_per_row : int
        How many lists a row is in.
    """

    def __init__(
        self, layout: Layout, store: StoreLike | None = None, memory: int | str | None = None
    ) -> None:
        self._layout, self._budget = layout, Budget.of(memory)
        header = layout.read_header()
        self.d: int = header.d
        self.metric: Metric = header.metric
        number = layout.live()
        if number is None:
            raise IndexDirError(
                f"the index {layout.root} was not finished",
                kind="index-unfinished",
                hint="Run the same `ooc build` again: it goes on where it ended.",
            )
        self.generation = number
        self._record = read_json(layout.generation(number), what=f"generation {number}")
        self._segment: Segment | None = None
        names = [segment["name"] for segment in self._record["segments"]]
        self._open_segment(names, header.lists_per_row)
        segment = self._opened()
        self._source = Source(str(layout.root), self._record, segment, store)
        #: One more than the largest id.
        self._id_end = int(self._record["plan"]["n"])
        name, promise = str(layout.root), Promise.of(self._record)
        self._choice = Choice(
            promise,
            name=name,
            n=self.n,
            nlist=self.nlist,
            lists_per_row=self.lists_per_row,
        )
        kind = None
        if promise is not None and promise.far is not None:
            kind = Kind(promise.far, metric=self.metric, by=promise.by, name=name)
        self._stages = Stages(
            segment, self._source, self.metric, self._budget, id_end=self._id_end, kind=kind
        )

    def _open_segment(self, names: list[str], lists_per_row: int) -> None:
        if len(names) != 1 or not names[0].isalnum():
            raise IndexDirError(
                f"generation {self.generation} of {self._layout.root} names segments {names}",
                kind="index-damaged",
            )
        order = Order.read(self._layout, self.generation, self._record, self.metric)
        segment = Segment(self._layout.segment(names[0]), lists_per_row, order)
        if segment.d != self.d:
            raise IndexDirError(f"{segment.layout.header} is of {segment.d} dimensions", kind="index-damaged")
        self._segment = segment
        self.n = segment.rows
        self.nlist = segment.nlist
        self.lists_per_row = lists_per_row

    @property
    def promise(self) -> Promise | None:
        """What recall the build measured at which setting; None where it did not."""
        return self._choice.promise

    def settings(
        self,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
    ) -> tuple[int, int]:
        """``(nprobe, rerank)`` that ``search`` takes for these arguments.

        With a recall these are lists at most: each query looks into those that are near enough.

        Raises
        ------
        ArgumentError
            As ``search``.
        """
        filtered = self._allowed(filter) is not None
        chosen = self._choice.settings(k, recall=recall, nprobe=nprobe, rerank=rerank, filtered=filtered)
        return chosen.nprobe, chosen.rerank

    @property
    def default_nprobe(self) -> int:
        """Lists probed where nothing was measured: ``2 √nlist``, or ``√nlist`` of twice the length."""
        return self._choice.default_nprobe

    @staticmethod
    def default_rerank(k: int) -> int:
        """Candidates re-ranked exactly where ``nprobe`` alone is given: ``10 k``, and at least 100."""
        return default_rerank(k)

    @overload
    def search(
        self,
        xq: AnyArray,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,
        return_vectors: Literal[False] = False,
    ) -> tuple[FloatArray, IntArray]: ...

    @overload
    def search(
        self,
        xq: AnyArray,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,
        return_vectors: Literal[True],
    ) -> tuple[FloatArray, IntArray, FloatArray]: ...

    def search(
        self,
        xq: AnyArray,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
        return_vectors: bool = False,
    ) -> tuple[FloatArray, IntArray] | tuple[FloatArray, IntArray, FloatArray]:
        """The ``k`` nearest rows of each query, of those that a filter allows.

        Parameters
        ----------
        xq : (nq, d) or (d,) array
            Queries of any real dtype, contiguous or not; nq may be 0. Not changed. For ``cosine``
            they need not be of unit length.
        k : int
            Where fewer rows are found, the rest are padded with ids of -1.
        recall : float, optional
            The share of the true neighbours that shall be found in the mean, above 0 and at most 1;
            default 0.95. The cheapest setting that keeps it is taken from what the build measured (see
            ``promise``, and ``ooc help recall``); where none does it is the best there is, with a
            ``RecallWarning``. 1 compares all rows.
        nprobe : int, optional
            Instead of ``recall``: lists probed for each query; more than there are means all.
        rerank : int, optional
            Candidates that the codes propose and that are re-ranked by exact distance; default with
            ``nprobe``: ``10 k``, at least 100. 0 for none: then the distances are those of the codes, of
            which nothing is promised, and the store is not needed. At least ``k`` where it is not 0.
        filter : optional
            Rows that may be returned: a boolean mask, one for each row of the store; ids; a ``range``; a
            roaring bitmap; or what ``filter`` made of one of these. As many as ``k`` are found wherever
            so many are allowed: more lists are probed than ``nprobe``, and few allowed rows are all
            compared. See ``ooc help filters``.

        return_vectors : bool
            Also give the vectors that were found.

        Returns
        -------
        distances : (nq, k) float32
            ``l2``: squared, ascending. ``ip``, ``cosine``: similarities, descending. Where there is
            no row: infinity (``l2``) or minus infinity.
        ids : (nq, k) int64
            Ties are in the order of the ids. -1 where there is no row.
        vectors : (nq, k, d) float32, with ``return_vectors``
            As they are in the store; NaN where there is no row.

        Raises
        ------
        DataError
            Queries of another shape or dtype, or with NaN or infinity.
        ArgumentError
            ``k`` or ``nprobe`` below 1, ``rerank`` below 0, a recall that is none or beside ``nprobe``, or a
            filter that is none.
        StoreError
            Rows are needed and their store is gone; see ``rerank=0`` and ``open_index(store=)``.
        """
        found, ids, _ = self._search(xq, k, recall, nprobe, rerank, filter, NOTHING)
        if return_vectors:
            return found, ids, vectors(ids, self._source.rows(), budget=self._budget)
        return found, ids

    def explain(
        self,
        xq: AnyArray,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
    ) -> Explanation:
        """Search, and tell what that took: lists, entries, bytes and reads, candidates, time by stage.

        Parameters and what is raised are those of ``search``; the results are thrown away.
        """
        trace = Trace()
        began = time.perf_counter()
        found, _, wanted = self._search(xq, k, recall, nprobe, rerank, filter, trace)
        total = time.perf_counter() - began
        return Explanation(
            queries=len(found),
            k=k,
            nprobe=wanted.nprobe,
            rerank=wanted.candidates if wanted.exact else 0,
            seconds={**trace.seconds, "total": total},
            **trace.counts,
        )

    def _search(
        self,
        xq: AnyArray,
        k: int,
        recall: float | None,
        nprobe: int | None,
        rerank: int | None,
        filter: object | None,  # noqa: A002
        trace: Trace,
    ) -> tuple[FloatArray, IntArray, Wanted]:
        queries = as_queries(xq, self.d, self.metric)
        self._opened()
        allowed = self._allowed(filter)
        promised = nprobe is None and allowed is None and self._choice.promise is not None
        nprobe, rerank, reach = self._choice.settings(
            k, recall=recall, nprobe=nprobe, rerank=rerank, filtered=allowed is not None
        )
        most = self.n if allowed is None else allowed.count
        wanted = Wanted(
            nprobe=nprobe,
            reach=reach,
            k=k,
            candidates=min(max(rerank, k), most) if rerank else min(k, most),
            exact=rerank > 0,
            allowed=allowed,
            counted=self._stages.counting(allowed),
            promised=promised,
        )
        if len(queries) and self._compares_all(wanted, len(queries)):
            return *self._exhaustive(queries, wanted, trace), wanted
        step = self._budget.batch_bytes // (8 * self._opened().d_code + wanted.queries_bytes)
        step = max(1, min(step, _BATCH_QUERIES))
        if len(queries) == 1:
            # Teams of threads cost a query more than they bring, and other threads have theirs to search.
            with threads_limited(1):
                return *self._stages.search(queries, wanted, trace), wanted
        found = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        for first in range(0, len(queries), step):
            some = slice(first, first + step)
            found[some], ids[some] = self._stages.search(queries[some], wanted, trace)
        return found, ids, wanted

    def _exhaustive(self, queries: FloatArray, wanted: Wanted, trace: Trace) -> tuple[FloatArray, IntArray]:
        """Every row is compared: the store is read once for all queries of a batch."""
        rows, store = self._rows_of(wanted.allowed), self._source.rows()
        # What a filter allows may be rows that the index left out.
        some_bad = wanted.allowed is not None and self._record["skipped_rows"] > 0
        parts = []
        for first in range(0, len(queries), _EXACT_QUERIES):
            some = queries[first : first + _EXACT_QUERIES]
            with trace.time("compare all"):
                parts.append(exhaustive(some, wanted.k, store, self.metric, rows, some_bad=some_bad))
            trace.add(rows=len(rows), row_bytes=len(rows) * store.row_bytes)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    #: Queries of a store, results to a file, in any number; see ``ooc.search.stream``.
    search_to = search_to

    def filter(self, allowed: object) -> Filter:
        """What ``filter=`` of a search may be given, made ready once for many searches.

        Raises
        ------
        ArgumentError
            It is no mask, ids, range or bitmap, or not of this index.
        """
        return Filter.of(allowed, self._id_end)

    def _allowed(self, filter: object | None) -> Filter | None:  # noqa: A002
        """The filter that was given, None where it allows all."""
        if filter is None:
            return None
        allowed = self.filter(filter)
        return None if allowed.count == self._id_end else allowed

    def _compares_all(self, wanted: Wanted, queries: int) -> bool:
        """Whether every row, or every allowed row, is to be compared rather than codes scanned."""
        if not wanted.exact:
            return False
        count = self.n if wanted.allowed is None else wanted.allowed.count
        if wanted.nprobe == self.nlist and wanted.candidates == count:
            return True
        if wanted.allowed is None:
            return False
        segment = self._opened()
        return compares_all(
            count,
            self.n,
            nprobe=wanted.nprobe,
            nlist=self.nlist,
            list_bytes=segment.entries * (segment.code_size + ID_BYTES) / self.nlist,
            candidates=wanted.candidates,
            row_bytes=self._source.rows().row_bytes,
            queries=max(1, min(queries, _EXACT_QUERIES)),
        )

    def _rows_of(self, allowed: Filter | None) -> IntArray:
        """Ids of all rows in the index, or of all that are allowed, ascending."""
        if allowed is not None:
            return allowed.ids()
        rows = np.unique(self._opened().ids(np.arange(self.nlist)))
        self._stages.see_ids(rows)
        return rows

    def range_search(
        self,
        xq: AnyArray,
        radius: float,
        *,
        nprobe: int | None = None,
        rerank: bool = True,
        filter: object | None = None,  # noqa: A002 - the field's word
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """All rows of the probed lists within ``radius`` of each query.

        Parameters
        ----------
        xq, nprobe, filter
            As for ``search``; with ``nprobe`` = nlist the result is exact.
        radius : float
            ``l2``: squared distances below it. ``ip``, ``cosine``: similarities above it.
        rerank : bool
            Whether distances are exact: every row of the probed lists is compared. Otherwise
            they are those of the codes, and the store is not needed.

        Returns
        -------
        lims : (nq + 1,) int64
        distances : (lims[-1],) float32
        ids : (lims[-1],) int64
            Query ``i`` has found ``ids[lims[i]:lims[i + 1]]``, best first: faiss's layout.
        """
        queries = as_queries(xq, self.d, self.metric)
        self._opened()
        # How many rows there will be is not known: no recall at k is promised.
        nprobe, *_ = self._choice.settings(1, nprobe=self.default_nprobe if nprobe is None else nprobe)
        if not math.isfinite(radius):
            raise ArgumentError(f"radius must be a finite number, not {radius}", kind="radius")
        allowed = self._allowed(filter)
        counted = self._stages.counting(allowed)
        wanted = Wanted(nprobe=nprobe, exact=rerank, allowed=allowed, counted=counted)
        parts: list[tuple[FloatArray, IntArray]] = []
        for i in range(len(queries)):
            found, ids = self._stages.within(queries[i : i + 1], radius, wanted)
            order = np.lexsort((ids, found if self.metric == "l2" else -found))
            parts.append((found[order], ids[order]))
        lims = np.concatenate(([0], np.cumsum([len(ids) for _, ids in parts]))).astype(np.int64)
        if not parts:
            return lims, np.empty(0, np.float32), np.empty(0, np.int64)
        return lims, np.concatenate([d for d, _ in parts]), np.concatenate([i for _, i in parts])

    def reconstruct(self, ids: IntArray) -> FloatArray:
        """The vectors of the given ids, ``(m, d)`` float32, as they are in the store.

        Raises
        ------
        ArgumentError
            An id is not in the index's range.
        StoreError
            The store is gone.
        """
        return as_float32(self._source.rows().take(np.asarray(ids)))

    def rows(self, *, original: bool = False) -> Store:
        """Where exact distances are taken from: the index's own rows, where it keeps any, else the store.

        Its rows are numbered as ids are. It stays the index's: do not close it.

        Parameters
        ----------
        original : bool
            The store that was indexed, in any case.

        Raises
        ------
        StoreError
            The store is gone.
        ConflictError
            It holds other rows.
        """
        self._opened()
        return self._source.original() if original else self._source.rows()

    def info(self) -> dict[str, Any]:
        """What the index is, as a JSON-ready mapping: sizes, lists, plan, training, store."""
        return {
            **figures(self._layout, self.generation, self._record, self._opened(), self._source),
            "defaults": self._choice.defaults(),
            "recall": self._choice.table(),
        }

    def _opened(self) -> Segment:
        if self._segment is None:
            raise ArgumentError("this index is closed", kind="closed", hint="Open it again.")
        return self._segment

    def close(self) -> None:
        """Give mappings and files up; may be called twice."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ooc.Index {self._layout.root} ({self.n} x {self.d}, {self.metric})>"
