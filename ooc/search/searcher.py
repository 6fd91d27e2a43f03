"""An index directory, opened for searching.

    queries ─> coarse ─> prefetch lists ─> scan codes ─> prefetch rows ─> re-rank ─> distances, ids

Private memory stays at a few tens of MB: lists and rows are mapped, and every read is asked for
before it is needed, many at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

from ooc.durable import read_json
from ooc.errors import ArgumentError, ConflictError, DataError, IndexDirError, OocError, StoreError
from ooc.index.layout import Layout
from ooc.index.lists import evenness
from ooc.index.segment import Segment
from ooc.search.exact import best, distances, exhaustive, once
from ooc.stores import Store, open_store
from ooc.stores.base import as_float32
from ooc.types import AnyArray, FloatArray, IntArray, Metric, PathOrStr, StoreLike
from ooc.vectors import normalise

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
        self._lock = threading.Lock()
        self._rows: Store | None = None
        self._segment: Segment | None = None
        names = [segment["name"] for segment in self._record["segments"]]
        self._open_segment(names, header.lists_per_row)
        if store is not None:
            with self._lock:
                self._rows = self._checked(open_store(store))

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
        self, xq: AnyArray, k: int = 10, *, nprobe: int | None = None, rerank: int | None = None
    ) -> tuple[FloatArray, IntArray]:
        """The ``k`` nearest rows of each query.

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
            ``k`` or ``nprobe`` below 1, ``rerank`` below 0.
        StoreError
            Rows are needed and their store is gone; see ``rerank=0`` and ``open_index(store=)``.
        """
        queries = self._queries(xq)
        segment = self._opened()
        nprobe = self._nprobe(nprobe)
        _check_at_least("k", k, 1)
        if rerank is None:
            rerank = self.default_rerank(k)
        _check_at_least("rerank", rerank, 0)
        candidates = min(max(rerank, k), self.n) if rerank else min(k, self.n)
        found = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        # Every row of every list: the store is read once for all queries of a batch.
        every_row = bool(rerank) and nprobe == self.nlist and candidates == self.n
        held = _BATCH_CANDIDATES // (candidates * self.lists_per_row)
        step = _BATCH_QUERIES if every_row else max(1, min(_BATCH_QUERIES, held))
        if every_row and len(queries):
            allowed = np.unique(segment.ids(np.arange(self.nlist)))
            self._see_ids(allowed)
        for first in range(0, len(queries), step):
            some = queries[first : first + step]
            if every_row:
                result = exhaustive(some, k, self._vectors(), self.metric, allowed)
            else:
                result = self._two_stages(some, k, nprobe, candidates, exact=bool(rerank))
            found[first : first + step], ids[first : first + step] = result
        return found, ids

    def _two_stages(
        self, queries: FloatArray, k: int, nprobe: int, candidates: int, *, exact: bool
    ) -> tuple[FloatArray, IntArray]:
        segment = self._opened()
        y = segment.transform(queries)
        coarse, lists = segment.coarse(y, nprobe)
        segment.will_need(lists)
        found, ids = segment.scan(y, lists, coarse, candidates * self.lists_per_row)
        self._see_ids(ids)
        if self.lists_per_row > 1:
            found, ids = best(*once(found, ids, self.metric), candidates, self.metric)
        if exact:
            # Ascending ids: rows of a query lie in the order of the store.
            ids = np.sort(ids, axis=1)
            found = distances(queries, ids, self._vectors(), self.metric)
        return best(found, ids, k, self.metric)

    def range_search(
        self, xq: AnyArray, radius: float, *, nprobe: int | None = None, rerank: bool = True
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """All rows of the probed lists within ``radius`` of each query.

        Parameters
        ----------
        xq, nprobe
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
        queries = self._queries(xq)
        segment = self._opened()
        nprobe = self._nprobe(nprobe)
        if not math.isfinite(radius):
            raise ArgumentError(f"radius must be a finite number, not {radius}", kind="radius")
        parts: list[tuple[FloatArray, IntArray]] = []
        for query in self._one_by_one(queries):
            y = segment.transform(query)
            coarse, lists = segment.coarse(y, nprobe)
            segment.will_need(lists)
            if rerank:
                ids = np.unique(segment.ids(lists[0]))
                self._see_ids(ids)
                found = distances(query, ids[None], self._vectors(), self.metric)[0]
                near = found < radius if self.metric == "l2" else found > radius
                found, ids = found[near], ids[near]
            else:
                _, found, ids = segment.range_scan(y, lists, coarse, radius)
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
        return as_float32(self._vectors().take(np.asarray(ids)))

    def info(self) -> dict[str, Any]:
        """What the index is, as a JSON-ready mapping: sizes, lists, plan, training, store."""
        segment = self._opened()
        sizes = segment.sizes
        even = evenness(sizes)
        counts, edges = np.histogram(sizes, bins=min(20, max(1, int(sizes.max()) - int(sizes.min()))))
        record = self._record
        report_path = self._layout.report(self.generation)
        report = read_json(report_path, what="the build's report") if report_path.exists() else None
        return {
            "path": str(self._layout.root),
            "format_version": self._layout.read_header().format_version,
            "rows": self.n,
            "lists_per_row": self.lists_per_row,
            "d": self.d,
            "metric": self.metric,
            "factory": record["plan"]["factory"],
            "nlist": self.nlist,
            "code_size": segment.code_size,
            "generation": self.generation,
            "skipped_rows": record["skipped_rows"],
            "zero_rows": record["zero_rows"],
            "segments": [
                {"name": entry["name"], "rows": entry["rows"], "bytes": segment.record["bytes"]}
                for entry in record["segments"]
            ],
            "template_bytes": {
                path.name: path.stat().st_size for path in sorted(self._layout.template.glob("*"))
            },
            "list_sizes": {
                "min": int(sizes.min()),
                "mean": even["mean"],
                "max": even["largest"],
                "weighted_mean": even["weighted_mean"],
                "empty": even["empty"],
                "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
            },
            "plan": report["plan"] if report else record["plan"],
            "train": read_json(self._layout.train_record, what="the template's record"),
            "report": report,
            "store": {**record["store"], "reachable": self._reachable()},
            "defaults": {"nprobe": self.default_nprobe, "rerank": self.default_rerank(10)},
        }

    def _reachable(self) -> bool:
        try:
            self._vectors()
        except OocError:
            return False
        return True

    def _queries(self, xq: AnyArray) -> FloatArray:
        """Queries as ``(nq, d)`` float32, of unit length where the metric is cosine."""
        array = np.asarray(xq)
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
            raise DataError(f"queries must be numbers, not {array.dtype}", kind="query-dtype")
        if array.ndim == 1:
            array = array[None] if array.size else array.reshape(0, self.d)
        if array.ndim != 2 or (array.shape[1] != self.d and array.size):
            raise DataError(
                f"queries have shape {array.shape}; this index takes (nq, {self.d})",
                kind="query-shape",
                hint="Use the model that made the indexed vectors.",
            )
        queries = as_float32(array.reshape(-1, self.d))
        finite = np.isfinite(queries).all(axis=1)
        if not finite.all():
            raise DataError(
                f"query {int(np.flatnonzero(~finite)[0])} holds NaN or infinity "
                f"({int((~finite).sum())} of {len(queries)} queries do)",
                kind="query-values",
            )
        return normalise(queries)[0] if self.metric == "cosine" else queries

    def _nprobe(self, nprobe: int | None) -> int:
        if nprobe is None:
            return self.default_nprobe
        _check_at_least("nprobe", nprobe, 1)
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

    def _vectors(self) -> Store:
        """The rows for exact distances: the index's own, else the store's, opened when first needed."""
        with self._lock:
            if self._rows is None:
                own = self._opened().open_vectors()
                self._rows = own if own is not None else self._checked(self._find_store())
            return self._rows

    def _find_store(self) -> Store:
        uri = self._record["store"]["uri"]
        hint = (
            "Point to where it is now: open_index(path, store=...), `ooc search --store`; "
            "or search by the codes alone: rerank=0."
        )
        if not uri:
            raise StoreError(
                "the rows were an array in memory and the index keeps no copy",
                kind="store-missing",
                hint=hint,
            )
        try:
            return open_store(uri)
        except StoreError as error:
            raise StoreError(
                f"exact distances need the store: {error.message}", kind=error.kind, hint=hint
            ) from error

    def _checked(self, store: Store) -> Store:
        """The store, if it holds the rows that were indexed."""
        plan = self._record["plan"]
        wrong = ""
        if store.d != self.d or store.n < plan["n"]:
            wrong = f"it is {store.n} x {store.d} and {plan['n']} x {self.d} were indexed"
        elif store.fingerprint(plan["n"]) != plan["fingerprint"]:
            wrong = "its rows are not those that were indexed"
        if wrong:
            described = store.describe()
            store.close()
            raise ConflictError(
                f"{described} does not fit the index {self._layout.root}: {wrong}",
                kind="store-changed",
                hint="Name the store that was indexed, build again, or search with rerank=0.",
            )
        return store

    def close(self) -> None:
        """Give mappings and files up; may be called twice."""
        with self._lock:
            segment, self._segment = self._segment, None
            rows, self._rows = self._rows, None
        if segment is not None:
            segment.close()
        if rows is not None:
            rows.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ooc.Index {self._layout.root} ({self.n} x {self.d}, {self.metric})>"


def _check_at_least(name: str, value: int, least: int) -> None:
    whole: object = value
    if isinstance(whole, bool) or not isinstance(whole, int | np.integer) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}", kind=name)
