"""An index directory, opened for searching.

    queries ─> coarse ─> prefetch lists ─> scan codes ─> prefetch rows ─> re-rank ─> distances, ids

Private memory stays at a few tens of MB: lists and rows are mapped, and every read is asked for
before it is needed, many at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

from ooc.durable import read_json
from ooc.errors import ArgumentError, IndexDirError
from ooc.index.layout import Layout
from ooc.index.lists import ID_BYTES
from ooc.index.segment import Segment
from ooc.search.exact import best, distances, exhaustive, once
from ooc.search.filters import Filter
from ooc.search.info import figures
from ooc.search.queries import as_queries, check_at_least
from ooc.search.source import Source
from ooc.search.stream import search_to
from ooc.search.widen import AllowedInLists, compares_all, widened
from ooc.stores.base import Store, as_float32
from ooc.types import AnyArray, FloatArray, IntArray, Metric, PathOrStr, StoreLike

__all__ = ["Index", "open_index"]

#: Queries that are searched together: bounds the memory of what they find.
_BATCH_QUERIES = 1024
#: Results of a scan are held for this many (query, candidate) pairs at a time.
_BATCH_CANDIDATES = 1 << 21


def open_index(path: PathOrStr, *, store: StoreLike | None = None) -> Index:
    """Open an index directory for searching. Takes milliseconds; nothing is written.

    Parameters
    ----------
    path : path
        The directory that ``ooc.build`` made. It may be read-only, moved or copied.
    store : store, optional
        Where the vectors are now, if they moved since the build.

    Raises
    ------
    IndexDirError
        The directory is missing, something else, unfinished, of a newer format, or damaged.
    StoreError, ConflictError
        ``store`` was given and cannot be read, or does not hold the indexed rows.
    """
    return Index(Layout.of(path), store)


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

    def __init__(self, layout: Layout, store: StoreLike | None = None) -> None:
        self._layout = layout
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
        self._source = Source(str(layout.root), self._record, self._opened(), store)

    def _open_segment(self, names: list[str], lists_per_row: int) -> None:
        if len(names) != 1 or not names[0].isalnum():
            raise IndexDirError(
                f"generation {self.generation} of {self._layout.root} names segments {names}",
                kind="index-damaged",
            )
        segment = Segment(self._layout.segment(names[0]), lists_per_row)
        if segment.d != self.d:
            raise IndexDirError(f"{segment.layout.header} is of {segment.d} dimensions", kind="index-damaged")
        self._segment = segment
        self.n = segment.rows
        self.nlist = segment.nlist
        self.lists_per_row = lists_per_row
        #: One more than the largest id: what a damaged file may not exceed.
        self._id_end = int(self._record["plan"]["n"])

    @property
    def default_nprobe(self) -> int:
        """Lists probed where the caller does not say: ``2 √nlist``, or ``√nlist`` of twice the length."""
        return min(self.nlist, max(1, 2 * math.isqrt(self.nlist) // self.lists_per_row))

    @staticmethod
    def default_rerank(k: int) -> int:
        """Candidates re-ranked exactly where the caller does not say: ``10 k``, and at least 100."""
        return max(100, 10 * k)

    def search(
        self,
        xq: AnyArray,
        k: int = 10,
        *,
        nprobe: int | None = None,
        rerank: int | None = None,
        filter: object | None = None,  # noqa: A002 - the field's word
    ) -> tuple[FloatArray, IntArray]:
        """The ``k`` nearest rows of each query, of those that a filter allows.

        Parameters
        ----------
        xq : (nq, d) or (d,) array
            Queries of any real dtype, contiguous or not; nq may be 0. Not changed. For ``cosine``
            they need not be of unit length.
        k : int
            Where fewer rows are found, the rest are padded with ids of -1.
        nprobe : int, optional
            Lists probed for each query; more than there are means all.
        rerank : int, optional
            Candidates that the codes propose and that are re-ranked by exact distance; 0 for none:
            then the distances are those of the codes, and the store is not needed. At least ``k``
            where it is not 0.
        filter : optional
            Rows that may be returned: a boolean mask, one for each row of the store; ids; a ``range``; a
            roaring bitmap; or what ``filter`` made of one of these. As many as ``k`` are found wherever
            so many are allowed: more lists are probed than ``nprobe``, and few allowed rows are all
            compared. See ``ooc help filters``.

        Returns
        -------
        distances : (nq, k) float32
            ``l2``: squared, ascending. ``ip``, ``cosine``: similarities, descending. Where there is
            no row: infinity (``l2``) or minus infinity.
        ids : (nq, k) int64
            Ties are in the order of the ids. -1 where there is no row.

        Raises
        ------
        DataError
            Queries of another shape or dtype, or with NaN or infinity.
        ArgumentError
            ``k`` or ``nprobe`` below 1, ``rerank`` below 0, or a filter that is none.
        StoreError
            Rows are needed and their store is gone; see ``rerank=0`` and ``open_index(store=)``.
        """
        queries = as_queries(xq, self.d, self.metric)
        segment = self._opened()
        nprobe = self._nprobe(nprobe)
        check_at_least("k", k, 1)
        if rerank is None:
            rerank = self.default_rerank(k)
        check_at_least("rerank", rerank, 0)
        allowed = self._allowed(filter)
        most = self.n if allowed is None else allowed.count
        candidates = min(max(rerank, k), most) if rerank else min(k, most)
        found = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        # Every row of every list: the store is read once for all queries of a batch.
        every_row = bool(rerank) and nprobe == self.nlist and candidates == most
        if allowed is not None and rerank:
            every_row |= self._compares_all(allowed, nprobe, candidates, len(queries))
        held = _BATCH_CANDIDATES // max(candidates * self.lists_per_row, 1)
        step = _BATCH_QUERIES if every_row else max(1, min(_BATCH_QUERIES, held))
        rows = self._rows_of(allowed) if every_row and len(queries) else None
        # What a filter allows may be rows that the index left out.
        some_bad = allowed is not None and self._record["skipped_rows"] > 0
        counted = None if allowed is None else AllowedInLists(allowed, segment.sizes, self._soon_ids)
        for first in range(0, len(queries), step):
            some = queries[first : first + step]
            if rows is not None:
                result = exhaustive(some, k, self._source.rows(), self.metric, rows, some_bad=some_bad)
            else:
                result = self._two_stages(
                    some, k, nprobe, candidates, exact=bool(rerank), allowed=allowed, counted=counted
                )
            found[first : first + step], ids[first : first + step] = result
        return found, ids

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

    def _compares_all(self, allowed: Filter, nprobe: int, candidates: int, queries: int) -> bool:
        segment = self._opened()
        return compares_all(
            allowed.count,
            self.n,
            nprobe=nprobe,
            nlist=self.nlist,
            list_bytes=segment.entries * (segment.code_size + ID_BYTES) / self.nlist,
            candidates=candidates,
            row_bytes=self._source.rows().row_bytes,
            queries=max(1, min(queries, _BATCH_QUERIES)),
        )

    def _rows_of(self, allowed: Filter | None) -> IntArray:
        """Ids of all rows in the index, or of all that are allowed, ascending."""
        if allowed is not None:
            return allowed.ids()
        rows = np.unique(self._opened().ids(np.arange(self.nlist)))
        self._see_ids(rows)
        return rows

    def _soon_ids(self, list_nos: IntArray) -> IntArray:
        """Ids of lists, which are asked for together."""
        segment = self._opened()
        segment.will_need(list_nos)
        return segment.ids(list_nos)

    def _lists(
        self, y: FloatArray, nprobe: int, counted: AllowedInLists | None, entries: int
    ) -> tuple[FloatArray, IntArray]:
        """Distances and numbers of the lists to look into, which are asked for."""
        segment = self._opened()
        if counted is None:
            coarse, lists = segment.coarse(y, nprobe)
        else:
            coarse, lists = widened(
                y, segment.coarse, counted, nlist=self.nlist, nprobe=nprobe, entries=entries
            )
        segment.will_need(lists)
        return coarse, lists

    def _two_stages(
        self,
        queries: FloatArray,
        k: int,
        nprobe: int,
        candidates: int,
        *,
        exact: bool,
        allowed: Filter | None,
        counted: AllowedInLists | None,
    ) -> tuple[FloatArray, IntArray]:
        segment = self._opened()
        y = segment.transform(queries)
        entries = candidates * self.lists_per_row
        coarse, lists = self._lists(y, nprobe, counted, entries)
        if not lists.shape[1]:  # nothing is allowed
            nothing = np.full((len(queries), 1), -1, np.int64)
            return best(np.zeros(nothing.shape, np.float32), nothing, k, self.metric)
        selector = None if allowed is None else allowed.selector()
        found, ids = segment.scan(y, lists, coarse, entries, selector)
        self._see_ids(ids)
        if self.lists_per_row > 1:
            found, ids = best(*once(found, ids, self.metric), candidates, self.metric)
        if exact:
            # Ascending ids: rows of a query lie in the order of the store.
            ids = np.sort(ids, axis=1)
            found = distances(queries, ids, self._source.rows(), self.metric)
        return best(found, ids, k, self.metric)

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
        segment = self._opened()
        nprobe = self._nprobe(nprobe)
        if not math.isfinite(radius):
            raise ArgumentError(f"radius must be a finite number, not {radius}", kind="radius")
        allowed = self._allowed(filter)
        counted = None if allowed is None else AllowedInLists(allowed, segment.sizes, self._soon_ids)
        selector = None if allowed is None else allowed.selector()
        parts: list[tuple[FloatArray, IntArray]] = []
        for query in self._one_by_one(queries):
            y = segment.transform(query)
            coarse, lists = self._lists(y, nprobe, counted, 0)
            if rerank or not lists.shape[1]:
                ids = np.unique(segment.ids(lists[0]))
                self._see_ids(ids)
                if allowed is not None:
                    ids = ids[allowed.contains(ids)]
                found = distances(query, ids[None], self._source.rows(), self.metric)[0]
                near = found < radius if self.metric == "l2" else found > radius
                found, ids = found[near], ids[near]
            else:
                _, found, ids = segment.range_scan(y, lists, coarse, radius, selector)
                self._see_ids(ids)
                if self.lists_per_row > 1:
                    found, ids = (a[0] for a in once(found[None], ids[None], self.metric))
                    found, ids = found[ids >= 0], ids[ids >= 0]
            order = np.lexsort((ids, found if self.metric == "l2" else -found))
            parts.append((found[order], ids[order]))
        lims = np.concatenate(([0], np.cumsum([len(ids) for _, ids in parts]))).astype(np.int64)
        if not parts:
            return lims, np.empty(0, np.float32), np.empty(0, np.int64)
        return lims, np.concatenate([d for d, _ in parts]), np.concatenate([i for _, i in parts])

    @staticmethod
    def _one_by_one(queries: FloatArray) -> Iterator[FloatArray]:
        for i in range(len(queries)):
            yield queries[i : i + 1]

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
            "defaults": {"nprobe": self.default_nprobe, "rerank": self.default_rerank(10)},
        }

    def _nprobe(self, nprobe: int | None) -> int:
        if nprobe is None:
            return self.default_nprobe
        check_at_least("nprobe", nprobe, 1)
        return min(nprobe, self.nlist)

    def _opened(self) -> Segment:
        if self._segment is None:
            raise ArgumentError("this index is closed", kind="closed", hint="Open it again.")
        return self._segment

    def _see_ids(self, ids: IntArray) -> None:
        """Ids come from a file: none may point outside the rows before rows are gathered by them."""
        if ids.size and (int(ids.max()) >= self._id_end or int(ids.min()) < -1):
            raise IndexDirError(
                f"the lists of {self._layout.root} hold ids beyond its {self._id_end} rows: they are damaged",
                kind="index-damaged",
                hint="Copy the directory anew, or remove it and build.",
            )

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
