"""Recall, time and bytes of an index over a grid of settings, against exact neighbours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ooc import events
from ooc.durable import write_bytes
from ooc.errors import ArgumentError, ConflictError, DataError, OocError, ResourceError, StoreError
from ooc.evaluation.exact import neighbours
from ooc.evaluation.measure import Asked, default_candidates, default_nprobes, measured, with_best
from ooc.evaluation.neighbours import read_neighbours
from ooc.evaluation.page import page
from ooc.evaluation.plot import curve
from ooc.evaluation.png import check_png, png
from ooc.evaluation.recall import CONFIDENCE, limits
from ooc.evaluation.rows import Numbered, indexed_rows, numbered
from ooc.evaluation.update import update as measure_anew
from ooc.index.layout import see_outside
from ooc.search.queries import as_queries, check_at_least, check_given
from ooc.search.searcher import Index, open_index
from ooc.stores import Store, open_store
from ooc.stores.write import existing_parent
from ooc.types import FloatArray, IntArray, PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY, format_count, parse_bytes

if TYPE_CHECKING:
    import threading

__all__ = ["evaluate"]

#: Queries where nobody says how many: a recall of .95 is known to about ±.01 then.
_QUERIES = 1000
#: Shares of the time, where the truth is to be computed and where it is given.
_SHARES = {"exact": 0.4, "search": 0.6}


@ResourceError.if_refused("evaluating")
def evaluate(
    index: Index | PathOrStr,
    queries: StoreLike | None = None,
    *,
    ground_truth: PathOrStr | IntArray | None = None,
    k: int = 10,
    count: int | None = None,
    nprobe: Sequence[int] | None = None,
    candidates: Sequence[int] | None = None,
    seed: int = 0,
    store: StoreLike | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    html: PathOrStr | None = None,
    plot: PathOrStr | None = None,
    overwrite: bool = False,
    update: bool = False,
    observer: events.Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Measure recall, time and bytes over a grid of (``nprobe``, ``candidates``).

    With ``update`` the table is measured anew by which searches choose their settings (``recall=``).

    Parameters
    ----------
    index : Index or path
        An open index, or the directory of one.
    queries : store, optional
        Anything ``ooc.open_store`` takes. Left out: rows drawn from the store, each left out of its own
        answer. They tell how the index does on its own rows: measure with real queries where you have them.
    ground_truth : path or array, optional
        True neighbours of ``queries``, the nearest first, at least ``k`` each: ``(nq, m)`` row numbers, or
        a file of them (``.h5``, ``.npz``, ``.npy``, ``.ivecs``, as ``ooc.exact`` writes them). Left out:
        they are computed, which reads the store once.
    k : int
        Neighbours asked for.
    count : int, optional
        Only the first so many of ``queries``; or how many rows are drawn, by default 1000.
    nprobe, candidates : sequence of int, optional
        The grid: lists probed, and candidates compared exactly (``rerank`` of a search). Default: powers
        of two around the default ``nprobe``, and four numbers from 2 k to five times the default; of an index
        without vectors no candidates: what its codes find, by a ground truth.
    seed : int
        Of the draw.
    store : store, optional
        Where the indexed vectors are now, if they moved; for an ``index`` that is a path.
    memory, threads
        Budget and threads for the exact neighbours; the budget holds for the searches as well.
    html : path, optional
        Write a page of the results there: one file, nothing is loaded from elsewhere.
    plot : path, optional
        Write the curve there: ``.svg``, or ``.png``, which takes the extra ``[plot]``.
    overwrite : bool
        Replace what is at ``html`` and ``plot``.
    update : bool
        Measure the table of recalls anew, as a build does, by ``queries`` or else by rows that are drawn, and
        publish it as another generation of the index: its segments stay as they are, and who opens it from
        then on searches by it. Up to ``count`` queries are used, evenly spaced; by default as many as a
        build uses. Interrupted, the index is as before. No grid is measured: ``ground_truth``, ``k``,
        ``nprobe``, ``candidates``, ``html`` and ``plot`` do not go with it.
    observer : callable, optional
        Is told events (``ooc.events``): stages ``"exact"`` (rows) and ``"search"`` (queries).
    stop : threading.Event, optional
        When set, the work ends at the next query or block of rows.

    Returns
    -------
    dict
        JSON-ready. ``points``: a record for each setting with ``nprobe``, ``candidates``; ``recall``, with
        ties counted right, and ``recall_low``, ``recall_high``, an interval of 95 % confidence;
        ``queries_per_second`` of all queries in one call; and of up to 200 queries one at a time
        ``latency_seconds`` (``p50``, ``p95``, ``p99``) and the means of ``lists``, ``entries``,
        ``list_bytes``, ``rows`` and ``row_bytes`` (``Index.explain``); and ``best``: whether no other reads
        as little and recalls as much. Besides: ``index``, ``generation``, ``metric``, ``k``, ``rows``,
        ``queries`` (a record), ``ground_truth``, ``ties`` (``"distances"``, or ``"ids"`` where the
        rows cannot be read), ``confidence``, ``html``, ``plot``, ``seconds``.

        With ``update``: ``index``, ``generation`` (the new one), ``metric``, ``rows``, ``queries``,
        ``seconds``; ``recall`` and ``defaults``, as ``Index.info`` gives them.

    Raises
    ------
    IndexDirError, StoreError, DataError, PlanError, MissingExtraError
        See ``ooc.open_index`` and ``ooc.exact``.
    DataError
        ``ground-truth``: of another number of queries, fewer than ``k`` neighbours, or rows that are not
        there.
    ArgumentError
        An argument is wrong, or a ground truth without its queries.
    ConflictError
        ``out-exists``; ``locked`` or ``index-changed``, where another process publishes at the same time.
    Stopped
        ``stop`` was set; nothing is written.
    """
    k, seed = check_at_least("k", k, 1), check_at_least("seed", seed, 0)
    count = check_given("count", count, 1)
    threads = check_given("threads", threads, 1)
    if ground_truth is not None and queries is None:
        raise ArgumentError(
            "a ground truth is of queries, and none are given", kind="ground_truth", hint="Name the queries."
        )
    if update:
        _check_update(
            ground_truth=ground_truth, k=None if k == 10 else k, nprobe=nprobe, candidates=candidates,
            html=html, plot=plot,
        )  # fmt: skip
    pages = [_place(html, (".html", ".htm"), overwrite), _place(plot, (".svg", ".png"), overwrite)]
    if pages[1] is not None and pages[1].suffix.lower() == ".png":
        check_png()
    tell = observer or events.ignore
    begun = time.monotonic()
    with ExitStack() as opened:
        if not isinstance(index, Index):
            index = opened.enter_context(open_index(index, store=store, memory=memory))
        elif store is not None:
            raise ArgumentError(
                "store= goes with the path of an index", kind="store", hint="Open the index with store=."
            )
        if update:
            return measure_anew(
                index,
                queries,
                count=count,
                seed=seed,
                memory_bytes=parse_bytes(memory),
                threads=threads,
                observer=tell,
                stop=stop,
            )
        grid = _grid(index, k, nprobe, candidates)
        info = index.info()
        settings = {
            "index": info["path"],
            "generation": info["generation"],
            "metric": index.metric,
            "k": k,
            "rows": index.n,
        }
        shares = {"search": 1.0} if ground_truth is not None else _SHARES
        tell(events.Started(operation="eval", stages=shares, settings=settings))
        rows, same = _rows(index, needed=ground_truth is None)
        there = numbered(index)
        xq, own, told = _queries(index, rows, there, queries, count, seed)
        if ground_truth is not None:
            truth = _given(ground_truth, len(xq), k, there.id_end)
            near = there.rows(truth)
        else:
            assert rows is not None
            _, near = neighbours(
                rows,
                xq,
                k,
                index.metric,
                n=there.end,
                rows=own,
                dead=there.dead,
                memory_bytes=parse_bytes(memory),
                threads=threads,
                on_bad="skip" if info["skipped_rows"] else "stop",
                observer=tell,
                stop=stop,
            )
            truth = there.ids(near)
        limit = None if rows is None else limits(xq, near, k, rows, index.metric)
        asked = Asked(
            xq=xq,
            own=None if own is None else there.ids(own),
            truth=truth,
            limit=limit,
            rows=None if same else rows,
            rows_of=there.rows,
        )
        points = []
        with events.stage(tell, "search", len(xq) * len(grid[0]) * len(grid[1]), unit="queries") as stage:
            for point in measured(index, asked, k, *grid, stop=stop):
                points.append(point)
                stage.tell(len(xq) * len(points))
    figures: dict[str, Any] = {
        **settings,
        "queries": told,
        "ground_truth": None if isinstance(ground_truth, np.ndarray) else ground_truth and str(ground_truth),
        "ties": "ids" if limit is None else "distances",
        "confidence": CONFIDENCE,
        "html": pages[0] and str(pages[0]),
        "plot": pages[1] and str(pages[1]),
        "points": with_best(points),
        "seconds": round(time.monotonic() - begun, 3),
    }
    _write(pages, figures, info)
    tell(events.Finished(operation="eval", seconds=time.monotonic() - begun, figures=settings))
    return figures


def _write(pages: Sequence[Path | None], figures: dict[str, Any], info: dict[str, Any]) -> None:
    html, plot = pages
    if html is not None:
        write_bytes(html, page(figures, info).encode())
    if plot is not None:
        write_bytes(plot, png(figures) if plot.suffix.lower() == ".png" else curve(figures).encode())


def _check_update(**given: object) -> None:
    """What makes a grid does not go with an update."""
    for name, value in given.items():
        if value is not None:
            raise ArgumentError(
                f"{name} is of a grid of settings, and an update measures the table of recalls",
                kind=name,
                hint=f"Leave --update or --{name.replace('_', '-')} out.",
            )


def _place(path: PathOrStr | None, suffixes: tuple[str, ...], overwrite: bool) -> Path | None:
    """Where a page goes, absolute, seen to be a place for it before the work."""
    if path is None:
        return None
    if Path(path).suffix.lower() not in suffixes:
        raise ArgumentError(
            f"{path} has a name that no such page has",
            kind="out-name",
            hint=f"End it in {' or '.join(suffixes)}.",
        )
    target = existing_parent(Path(path).expanduser())
    see_outside(target)
    if target.is_dir() or (target.exists() and not overwrite):
        raise ConflictError(
            f"{target} exists", kind="out-exists", hint="Name another file, or replace it with --overwrite."
        )
    return target


def _grid(
    index: Index, k: int, nprobe: Sequence[int] | None, candidates: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    for name, values, least in (("nprobe", nprobe, 1), ("candidates", candidates, k)):
        if values is not None and not len(values):
            raise ArgumentError(f"{name} is empty", kind=name)
        for value in values if values is not None else ():
            check_at_least(name, value, least)
    nprobes = default_nprobes(index) if nprobe is None else nprobe
    counts = default_candidates(index, k) if candidates is None else candidates
    # What is beyond the index is all of it.
    return sorted({min(int(p), index.nlist) for p in nprobes}), sorted({int(c) for c in counts})


def _rows(index: Index, *, needed: bool) -> tuple[Store | None, bool]:
    """As ``indexed_rows``; None where they are gone and not ``needed``."""
    try:
        return indexed_rows(index)
    except OocError as error:
        if needed and error.kind == "no-vectors":
            raise StoreError(
                error.message,
                kind=error.kind,
                hint="Name queries and their true neighbours (--ground-truth), or import it again with the "
                "store of its vectors.",
            ) from error
        if needed:
            raise
        return None, True


def _queries(
    index: Index,
    rows: Store | None,
    there: Numbered,
    queries: StoreLike | None,
    count: int | None,
    seed: int,
) -> tuple[FloatArray, IntArray | None, dict[str, Any]]:
    """Queries ready to be searched, the rows that they are, and what to tell of them."""
    if queries is None:
        assert rows is not None
        end = there.end
        if not index.n:
            raise DataError(
                f"{index.info()['path']} has no live rows to be queries",
                kind="no-rows",
                hint="Append some first, or name queries.",
            )
        wanted = min(count or _QUERIES, max(end - there.dead.count, 1))
        # Of the rows that were deleted none counts; in their place about as many others do.
        more = min(end, -(-wanted * end // max(end - there.dead.count, 1)))
        own = np.sort(np.random.default_rng(seed).choice(end, more, replace=False)).astype(np.int64)
        own = own[~there.dead.contains(own)]
        raw = rows.take(own)
        good = np.isfinite(raw).all(axis=1)
        own, raw = own[good], raw[good]
        if not len(own):
            raise DataError("all rows that were drawn hold NaN or infinity", kind="bad-rows")
        told: dict[str, Any] = {"count": len(own), "drawn": True, "seed": seed, "store": rows.uri[:4000]}
        return np.ascontiguousarray(as_queries(raw, index.d, index.metric)), own, told
    with ExitStack() as opened:
        asked = queries if isinstance(queries, Store) else opened.enter_context(open_store(queries))
        xq = as_queries(asked.read(0, min(count or asked.n, asked.n)), index.d, index.metric)
        told = {"count": len(xq), "drawn": False, "seed": None, "store": asked.uri[:4000]}
        return np.array(xq, order="C"), None, told


def _given(ground_truth: PathOrStr | IntArray, nq: int, k: int, end: int) -> IntArray:
    """True neighbours that were given, seen to be such."""
    truth = ground_truth if isinstance(ground_truth, np.ndarray) else read_neighbours(ground_truth)
    where = "the ground truth" if isinstance(ground_truth, np.ndarray) else str(ground_truth)
    wrong = ""
    if truth.ndim != 2 or truth.dtype.kind not in "iu":
        wrong = f"holds {truth.dtype} of shape {truth.shape}, and no (nq, k) row numbers"
    elif len(truth) < nq:
        wrong = f"is of {format_count(len(truth))} queries; there are {format_count(nq)}"
    elif truth.shape[1] < k:
        wrong = f"has {truth.shape[1]} neighbours a query; {k} are wanted"
    elif int(truth.max()) >= end or int(truth.min()) < -1:
        wrong = f"names rows beyond the {format_count(end)} that were indexed"
    if wrong:
        raise DataError(
            f"{where} {wrong}",
            kind="ground-truth",
            hint="`ooc exact` computes it, for these queries and rows.",
        )
    return truth[:nq, :k].astype(np.int64)
