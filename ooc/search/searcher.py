"""An index directory, opened for searching: what is asked is checked here, and answered by ``Stages``."""

from __future__ import annotations

import contextlib
import math
import numbers
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np

from ooc.engine import threads_limited
from ooc.errors import ArgumentError, ResourceError
from ooc.index.layout import Layout
from ooc.index.lists import ID_BYTES
from ooc.search.budget import Budget
from ooc.search.exact import exhaustive
from ooc.search.filters import Filter
from ooc.search.info import figures, recall
from ooc.search.opened import Opened
from ooc.search.promise import Chosen, Promise, default_rerank
from ooc.search.queries import as_queries, check_at_least
from ooc.search.rerank import vectors
from ooc.search.stages import Wanted
from ooc.search.stream import search_to
from ooc.search.trace import NOTHING, Explanation, Trace, Until
from ooc.search.where import Metadata, Parameters
from ooc.search.widen import compares_all
from ooc.stores.base import Store, as_float32
from ooc.stores.keys import open_keys, shown
from ooc.types import AnyArray, FloatArray, IntArray, KeyKind, KeysLike, Metric, PathOrStr, StoreLike

__all__ = ["Index", "open_index"]

#: Queries for which all rows are compared together.
_EXACT_QUERIES = 1024
#: The most queries that go through the stages together.
_BATCH_QUERIES = 16_384


@ResourceError.if_refused("opening an index")
def open_index(
    path: PathOrStr,
    *,
    store: StoreLike | Mapping[str, StoreLike] | None = None,
    memory: int | str | None = None,
    metadata: PathOrStr | None = None,
    follow: bool = False,
) -> Index:
    """Open an index directory for searching. Takes milliseconds; nothing is written.

    Parameters
    ----------
    path : path
        The directory that ``ooc.build`` made. It may be read-only, moved or copied.
    store : store or mapping, optional
        Where the vectors are now, if they moved since the build. Where rows of several stores were
        appended: a mapping from what a store was called then, as ``info()`` has it, to where it is now.
    memory : int or str, optional
        What a search may use, in bytes or as text (``"256MiB"``), at least 64 MiB: queries that are
        searched together, lists and rows that are asked of the disk ahead, and Python itself stay within it,
        and a batch that reads more lets go of it behind. State it where the process has a limit (a
        cgroup); otherwise batches are planned for 1 GiB. See ``ooc help memory``.
    metadata : path, optional
        A table beside the rows, for conditions (``where=``): Parquet, Arrow or Feather, with a row for each
        id, in the order of the ids, or a column ``id``. Needs the extra ``[where]``; see
        ``ooc help filters``.
    follow : bool
        Whether each search looks first if a newer generation was published, and moves to it. Otherwise
        the index is what it was when it was opened, until ``refresh`` is called.

    Raises
    ------
    IndexDirError
        The directory is missing, something else, unfinished, of a newer format, or damaged.
    StoreError, ConflictError
        ``store`` was given and cannot be read, or does not hold the indexed rows.
    ArgumentError
        ``memory`` is no size, or too small; there is no such table.
    MissingExtraError
        ``metadata`` is given, and DuckDB is not installed.
    """
    return Index(Layout.of(path), store, memory, metadata=metadata, follow=follow)


class Index:
    """An open index. Make one with ``ooc.open_index``; close it, or use it in a ``with`` block.

    Safe from several threads, also to close while others search.

    Attributes
    ----------
    d : int
        Dimensions.
    metric : {"l2", "ip", "cosine"}
    """

    def __init__(
        self,
        layout: Layout,
        store: StoreLike | Mapping[str, StoreLike] | None = None,
        memory: int | str | None = None,
        *,
        metadata: PathOrStr | None = None,
        follow: bool = False,
    ) -> None:
        self._layout, self._budget, self._moved = layout, Budget.of(memory), store
        self._header = layout.read_header()
        self.d: int = self._header.d
        self.metric: Metric = self._header.metric
        self._metadata = None if metadata is None else Metadata(metadata, self._budget.batch_bytes)
        # Reentrant: a signal's handler may close the index while this thread refreshes it.
        self._follow, self._changing = follow, threading.RLock()
        self._published = _stamp(layout)  # before: what is published meanwhile is newer
        #: Every search has a reference of its own to the generation that it reads, and its mappings go with
        #: the last of them. So nothing is unmapped under a search, and a query pays nothing for that.
        self._opened: Opened | None = self._newest()

    def _newest(self) -> Opened:
        return Opened.newest(self._layout, self._header, self._budget, self._moved)

    @ResourceError.if_refused("opening the newest generation")
    def refresh(self) -> bool:
        """Move to the newest generation, if there is a newer one; whether there was.

        Searches that run meanwhile end with the generation that they began with.
        """
        with self._changing:
            before, published = self._view(look=False), _stamp(self._layout)
            newer = self._layout.live() != before.generation.number
            if newer:
                opened = self._newest()
                if self._opened is before:  # not closed meanwhile
                    self._opened = opened
            # Last: where opening failed, the next search tries again.
            self._published = published
            return newer

    @property
    def generation(self) -> int:
        """The number of the generation that is read."""
        return self._view().generation.number

    @property
    def n(self) -> int:
        """Rows that a search may find."""
        return self._view().n

    @property
    def nlist(self) -> int:
        """Lists."""
        return self._view().segments.nlist

    @property
    def lists_per_row(self) -> int:
        """How many lists a row is in."""
        return self._view().segments.lists_per_row

    @property
    def promise(self) -> Promise | None:
        """What recall the build measured at which setting; None where it did not."""
        return self._view().choice.promise

    def settings(
        self,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
        where: str | None = None,
        parameters: Parameters | None = None,
    ) -> tuple[int, int]:
        """``(nprobe, rerank)`` that ``search`` takes for these arguments.

        With a recall these are lists at most: each query looks into those that are near enough.

        Raises
        ------
        ArgumentError
            As ``search``.
        """
        view = self._view(look=False)
        filter = self._restricted(view, filter, where, parameters)  # noqa: A001
        filtered = view.allowed(filter) is not None
        chosen = view.choice.settings(k, recall=recall, nprobe=nprobe, rerank=rerank, filtered=filtered)
        return chosen.nprobe, chosen.rerank

    @property
    def default_nprobe(self) -> int:
        """Lists probed where nothing was measured: ``2 √nlist``, or ``√nlist`` of twice the length."""
        return self._view().choice.default_nprobe

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
        where: str | None = None,
        parameters: Parameters | None = None,
        return_keys: Literal[False] = False,
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
        where: str | None = None,
        parameters: Parameters | None = None,
        return_keys: Literal[False] = False,
        return_vectors: Literal[True],
    ) -> tuple[FloatArray, IntArray, FloatArray]: ...

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
        where: str | None = None,
        parameters: Parameters | None = None,
        return_keys: Literal[True],
        return_vectors: Literal[False] = False,
    ) -> tuple[FloatArray, IntArray, AnyArray]: ...

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
        where: str | None = None,
        parameters: Parameters | None = None,
        return_keys: Literal[True],
        return_vectors: Literal[True],
    ) -> tuple[FloatArray, IntArray, AnyArray, FloatArray]: ...

    def search(
        self,
        xq: AnyArray,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
        where: str | None = None,
        parameters: Parameters | None = None,
        return_keys: bool = False,
        return_vectors: bool = False,
    ) -> tuple[AnyArray, ...]:
        """The ``k`` nearest rows of each query, of those that a filter allows.

        Parameters
        ----------
        xq : (nq, d) or (d,) array
            Queries of any real dtype, contiguous or not; nq may be 0. Not changed. For ``cosine``
            they need not be of unit length.
        k : int
            So many rows are found where there are as many. The rest is padded with ids of -1; so is what the
            lists lack where ``nprobe`` is named.
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
            which nothing is promised, and the store is not needed: the default of an index that was
            imported without vectors. At least ``k`` where it is not 0.
        filter : optional
            Rows that may be returned: a boolean mask, one for each row of the store; ids; a ``range``; a
            roaring bitmap; or what ``filter`` made of one of these. As many as ``k`` are found wherever
            so many are allowed: more lists are probed than ``nprobe``, and few allowed rows are all
            compared. See ``ooc help filters``.
        where, parameters : optional
            A condition on the table that the index was opened with (``metadata=``), as in ``"lang = 'en' AND
            year > ?"`` and ``[2020]``; with a filter, what both allow.
        return_keys : bool
            Also give the keys of the rows that were found.
        return_vectors : bool
            Also give the vectors that were found.

        Returns
        -------
        distances : (nq, k) float32
            ``l2``: squared, ascending. ``ip``, ``cosine``: similarities, descending. Where there is
            no row: infinity (``l2``) or minus infinity.
        ids : (nq, k) int64
            Ties are in the order of the ids. -1 where there is no row.
        keys : (nq, k) int64 or object, with ``return_keys``
            Whole numbers, or ``str``. Where there is no row: -1, or None.
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
        view = self._view()
        filter = self._restricted(view, filter, where, parameters)  # noqa: A001
        found, ids, _ = self._search(view, xq, k, recall, nprobe, rerank, filter, NOTHING)
        if not return_keys and not return_vectors:
            return found, ids
        return self._with(view, found, ids, return_keys, return_vectors)

    def search_until(
        self,
        stop: threading.Event | None,
        xq: AnyArray,
        k: int,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
        return_keys: bool = False,
    ) -> tuple[AnyArray, ...]:
        """As ``search``, which ends on the way when ``stop`` is set: raises ``Stopped``."""
        view, trace = self._view(), NOTHING if stop is None else Until(stop)
        found, ids, _ = self._search(view, xq, k, recall, nprobe, rerank, filter, trace)
        return self._with(view, found, ids, True, False) if return_keys else (found, ids)

    def _with(
        self, view: Opened, found: FloatArray, ids: IntArray, return_keys: bool, return_vectors: bool
    ) -> tuple[AnyArray, ...]:
        """Distances and ids, and what else of the rows is wanted."""
        rows = np.where(ids < 0, -1, view.numbering.rows(np.maximum(ids, 0)))
        more = [view.named(rows)] if return_keys else []
        if return_vectors:
            more.append(vectors(rows, view.source.rows(), budget=self._budget))
        return found, ids, *more

    def explain(
        self,
        xq: AnyArray,
        k: int = 10,
        *,
        recall: float | None = None,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
        where: str | None = None,
        parameters: Parameters | None = None,
        stop: threading.Event | None = None,
    ) -> Explanation:
        """Search, and tell what that took: lists, entries, bytes and reads, candidates, time by stage.

        Parameters and what is raised are those of ``search``; the results are thrown away. When ``stop`` is
        set, ``Stopped`` is raised.
        """
        trace = Trace(stop)
        began = time.perf_counter()
        view = self._view()
        filter = self._restricted(view, filter, where, parameters)  # noqa: A001
        found, _, wanted = self._search(view, xq, k, recall, nprobe, rerank, filter, trace)
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
        view: Opened,
        xq: AnyArray,
        k: int,
        recall: float | None,
        nprobe: int | None,
        rerank: int | None,
        filter: object | None,  # noqa: A002
        trace: Trace,
    ) -> tuple[FloatArray, IntArray, Wanted]:
        """Distances and ids ``(nq, k)``, and what was wanted."""
        queries, k = as_queries(xq, self.d, self.metric), check_at_least("k", k, 1)
        allowed = view.allowed(filter)
        if allowed is None and not view.n:  # all rows were deleted
            allowed = view.live
        promised = nprobe is None and allowed is None and view.choice.promise is not None
        chosen = view.choice.settings(
            k, recall=recall, nprobe=nprobe, rerank=rerank, filtered=allowed is not None
        )

        def wanted_of(chosen: Chosen, allowed: Filter | None) -> Wanted:
            most = view.n if allowed is None else allowed.count
            return Wanted(
                nprobe=chosen.nprobe,
                reach=chosen.reach,
                k=k,
                candidates=min(max(chosen.rerank, k), most) if chosen.rerank else min(k, most),
                exact=chosen.rerank > 0,
                allowed=allowed,
                counted=view.stages.counting(allowed),
                promised=promised,
            )

        wanted = wanted_of(chosen, allowed)
        found, ids = self._in_batches(view, queries, wanted, trace)
        # Of what is near much was deleted, or k is large: such a query looks farther, as under a filter.
        # Where a number of lists was asked for it is these alone, unless rows in them are dead.
        farther_too = allowed is None and (nprobe is None or view.stages.dead is not None)
        if farther_too and (lacking := ids[:, min(k, view.n) - 1] < 0).any():
            short = np.flatnonzero(lacking)
            farther = wanted_of(view.choice.farther(chosen, k, nprobe=nprobe, rerank=rerank), view.live)
            found[short], ids[short] = self._in_batches(view, queries[short], farther, trace)
        return found, ids, wanted

    def _in_batches(
        self, view: Opened, queries: FloatArray, wanted: Wanted, trace: Trace
    ) -> tuple[FloatArray, IntArray]:
        if len(queries) and self._compares_all(view, wanted, len(queries)):
            return self._exhaustive(view, queries, wanted, trace)
        step = self._budget.batch_bytes // (8 * view.segments.d_code + wanted.queries_bytes)
        step = max(1, min(step, _BATCH_QUERIES))
        if len(queries) == 1:
            # Teams of threads cost a query more than they bring, and other threads have theirs to search.
            with threads_limited(1):
                return view.stages.search(queries, wanted, trace)
        found = np.empty((len(queries), wanted.k), np.float32)
        ids = np.empty((len(queries), wanted.k), np.int64)
        for first in range(0, len(queries), step):
            trace.pause()
            some = slice(first, first + step)
            found[some], ids[some] = view.stages.search(queries[some], wanted, trace)
        return found, ids

    def _exhaustive(
        self, view: Opened, queries: FloatArray, wanted: Wanted, trace: Trace
    ) -> tuple[FloatArray, IntArray]:
        """Every row is compared: the store is read once for all queries of a batch."""
        rows, store = self._rows_of(view, wanted.allowed), view.source.rows()
        # What a filter allows may be rows that the index left out.
        some_bad = wanted.allowed is not None and view.record["skipped_rows"] > 0
        parts = []
        for first in range(0, len(queries), _EXACT_QUERIES):
            some = queries[first : first + _EXACT_QUERIES]
            with trace.time("compare all"):
                ids_of = view.numbering.ids
                parts.append(
                    exhaustive(
                        some, wanted.k, store, self.metric, rows, ids_of, some_bad=some_bad, trace=trace
                    )
                )
            trace.add(rows=len(rows), row_bytes=len(rows) * store.row_bytes)
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    #: Queries of a store, results to a file, in any number; see ``ooc.search.stream``.
    search_to = search_to

    def filter(
        self, allowed: object | None = None, *, where: str | None = None, parameters: Parameters | None = None
    ) -> Filter:
        """What ``filter=`` of a search may be given, made ready once for many searches.

        Parameters
        ----------
        allowed, where, parameters
            As ``filter``, ``where`` and ``parameters`` of ``search``; one of the first two at least.

        Raises
        ------
        ArgumentError
            It is no mask, ids, range or bitmap, or not of this index; or a condition that cannot be
            evaluated.
        """
        view = self._view()
        restricted = self._restricted(view, allowed, where, parameters)
        return view.filter(restricted)

    def _restricted(
        self, view: Opened, allowed: object | None, where: str | None, parameters: Parameters | None
    ) -> object | None:
        """What a filter and a condition allow together, as a filter."""
        if where is None:
            if parameters is not None:
                raise ArgumentError("parameters are of a condition, and none is given", kind="where")
            return allowed
        if self._metadata is None:
            raise ArgumentError(
                "a condition is of a table, and the index was opened without one",
                kind="metadata",
                hint="Name it: open_index(path, metadata=...), --metadata.",
            )
        ids, generation = view.numbering.id_end, view.generation.number
        found = self._metadata.filter(where, parameters, ids=ids, generation=generation)
        return found if allowed is None else found.both(view.filter(allowed))

    def _compares_all(self, view: Opened, wanted: Wanted, queries: int) -> bool:
        """Whether every row, or every allowed row, is to be compared rather than codes scanned."""
        if not wanted.exact:
            return False
        count, segments = view.n if wanted.allowed is None else wanted.allowed.count, view.segments
        if wanted.nprobe == segments.nlist and wanted.candidates == count:
            return True
        if wanted.allowed is None:
            return False
        return compares_all(
            count,
            view.n,
            nprobe=wanted.nprobe,
            nlist=segments.nlist,
            list_bytes=segments.entries * (segments.code_size + ID_BYTES) / segments.nlist,
            candidates=wanted.candidates,
            row_bytes=view.source.rows().row_bytes,
            queries=max(1, min(queries, _EXACT_QUERIES)),
        )

    def _rows_of(self, view: Opened, allowed: Filter | None) -> IntArray:
        """All live rows that are in the index, or all that are allowed, ascending."""
        if allowed is not None:
            return allowed.ids()
        rows = np.unique(view.segments.ids(np.arange(view.segments.nlist)))
        view.stages.see_rows(rows)
        return rows[~view.dead.contains(rows)] if view.dead.count else rows

    def range_search(
        self,
        xq: AnyArray,
        radius: float,
        *,
        nprobe: int | None = None,
        rerank: bool | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
        where: str | None = None,
        parameters: Parameters | None = None,
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """All rows of the probed lists within ``radius`` of each query.

        Parameters
        ----------
        xq, nprobe, filter, where, parameters
            As for ``search``; with ``nprobe`` = nlist the result is exact.
        radius : float
            ``l2``: squared distances below it. ``ip``, ``cosine``: similarities above it.
        rerank : bool, optional
            Whether distances are exact: every row of the probed lists is compared. Otherwise
            they are those of the codes, and the store is not needed. Default: exact, where there are vectors.

        Returns
        -------
        lims : (nq + 1,) int64
        distances : (lims[-1],) float32
        ids : (lims[-1],) int64
            Query ``i`` has found ``ids[lims[i]:lims[i + 1]]``, best first: faiss's layout.
        """
        queries, view = as_queries(xq, self.d, self.metric), self._view()
        # How many rows there will be is not known: no recall at k is promised.
        nprobe, *_ = view.choice.settings(1, nprobe=view.choice.default_nprobe if nprobe is None else nprobe)
        given: object = radius
        if not isinstance(given, numbers.Real) or not math.isfinite(radius):
            raise ArgumentError(f"radius must be a finite number, not {radius!r}", kind="radius")
        allowed = view.allowed(self._restricted(view, filter, where, parameters))
        counted = view.stages.counting(allowed)
        exact = view.choice.exact if rerank is None else rerank
        wanted = Wanted(nprobe=nprobe, exact=exact, allowed=allowed, counted=counted)
        parts: list[tuple[FloatArray, IntArray]] = []
        for i in range(len(queries)):
            found, ids = view.stages.within(queries[i : i + 1], radius, wanted)
            order = np.lexsort((ids, found if self.metric == "l2" else -found))
            parts.append((found[order], ids[order]))
        lims = np.concatenate(([0], np.cumsum([len(ids) for _, ids in parts]))).astype(np.int64)
        if not parts:
            return lims, np.empty(0, np.float32), np.empty(0, np.int64)
        return lims, np.concatenate([d for d, _ in parts]), np.concatenate([i for _, i in parts])

    def reconstruct(self, ids: IntArray | None = None, *, keys: KeysLike | None = None) -> FloatArray:
        """The vectors of the given ids, or of the rows of keys, ``(m, d)`` float32, as they are in the store.

        Raises
        ------
        ArgumentError
            An id is not in the index, or its row was deleted; no row has a key.
        StoreError
            The store is gone.
        """
        view = self._view()
        if (ids is None) == (keys is None):
            raise ArgumentError("reconstruct takes ids, or keys=", kind="rows")
        if keys is not None:
            rows = view.rows_of_keys(keys)
            if (rows < 0).any():
                at = int(np.flatnonzero(rows < 0)[0])
                raise ArgumentError(
                    f"no row has key {shown(open_keys(keys).all(), at)}",
                    kind="keys",
                    hint="`ids_of` tells which keys are there.",
                )
        else:
            rows = view.rows_of(np.asarray(ids))
        return as_float32(view.source.rows().take(rows))

    @property
    def key_kind(self) -> KeyKind | None:
        """What keys are: ``"int64"`` or ``"str"``; None where rows have none."""
        keys = self._view().keys
        return None if keys is None else keys.kind

    @property
    def key_dtype(self) -> np.dtype[Any] | None:
        """int64, or bytes as many as the longest key has; None where rows have no keys."""
        keys = self._view().keys
        if keys is None:
            return None
        return np.dtype(np.int64) if keys.kind == "int64" else np.dtype(f"S{keys.longest}")

    def keys(self, ids: AnyArray) -> AnyArray:
        """The keys of ids.

        Parameters
        ----------
        ids : integers, any shape
            As ``search`` gives them: -1 among them stands for no row.

        Returns
        -------
        array of that shape
            int64, or objects that are ``str``. Where the id is -1: -1, or None.

        Raises
        ------
        ArgumentError
            Rows have no keys; an id was never given, or its row was deleted.
        """
        view, array = self._view(), np.asarray(ids)
        flat = array.reshape(-1)
        rows = np.full(len(flat), -1, np.int64)
        there = flat != -1
        rows[there] = view.rows_of(flat[there])
        return view.named(rows.reshape(array.shape))

    def ids_of(self, keys: KeysLike) -> IntArray:
        """The ids of keys, ``(m,)`` int64; -1 where no row has it, or none any more.

        Parameters
        ----------
        keys : array, list or file
            As for ``ooc.build``.

        Raises
        ------
        ArgumentError
            Rows have no keys, or these are of another kind.
        """
        view = self._view()
        return view.numbering.ids(view.rows_of_keys(keys))

    def rows(self, *, original: bool = False) -> Store:
        """Where exact distances are taken from: the index's own rows, where it keeps any, else the store.

        Its rows are numbered as ids are, as long as none was replaced or left out by a compaction. It stays
        the index's: do not close it.

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
        source = self._view().source
        return source.original() if original else source.rows()

    def info(self) -> dict[str, Any]:
        """What the index is, as a JSON-ready mapping: sizes, lists, plan, training, store."""
        view = self._view()
        return {
            **figures(self._layout, view),
            "defaults": view.choice.defaults(),
            "recall": recall(self._layout, view),
        }

    def _view(self, *, look: bool = True) -> Opened:
        """The generation that is read; with ``look`` the newest, where the index follows."""
        view = self._opened
        if view is None:
            raise ArgumentError("this index is closed", kind="closed", hint="Open it again.")
        if look and self._follow and _stamp(self._layout) != self._published:
            self.refresh()
            return self._view(look=False)
        return view

    def close(self) -> None:
        """Give mappings and files up; may be called twice.

        Searches that run in other threads end as if it were open; their mappings go with the last of them.
        """
        with self._changing:
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._opened is None:
            return f"<ooc.Index {self._layout.root} (closed)>"
        return f"<ooc.Index {self._layout.root} ({self.n} x {self.d}, {self.metric})>"


def _stamp(layout: Layout) -> tuple[int, int] | None:
    """What changes when another generation is published."""
    with contextlib.suppress(OSError):
        status = layout.current.stat()
        return status.st_ino, status.st_mtime_ns
    return None
