"""Exact neighbours out of core: the store is read front to back once for all the queries that memory holds.

    store ──blocks──> scores ──> the few that may be among the best ──> exact distances ──> k best

The threads work on blocks of rows, each with one BLAS thread; what they find is put together in the order
of the blocks.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from ooc import events
from ooc.build.plan import available_threads
from ooc.build.rows import prepare
from ooc.build.sample import bad_rows_error
from ooc.build.workers import in_order, workers
from ooc.errors import ArgumentError, DataError, PlanError, ResourceError, Stopped
from ooc.evaluation.neighbours import check_neighbours, open_neighbours
from ooc.index.dead import Dead
from ooc.mapping import private_bytes, release_free_memory
from ooc.search.queries import as_queries, check_at_least, check_given
from ooc.search.sweep import Found, Sweep
from ooc.stores import Store, open_store
from ooc.stores.base import Block, check_rows
from ooc.stores.targets import check_not_source
from ooc.types import METRICS, FloatArray, IntArray, Metric, OnBad, PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY, MIB, format_bytes, format_count, parse_bytes

if TYPE_CHECKING:
    import threading

__all__ = ["exact", "neighbours"]

#: Interpreter and libraries, where less was measured.
_BASE_BYTES = 64 * MIB
#: Fewer queries than this a pass are not worth one.
_LEAST_QUERIES = 64
#: Rows that a thread multiplies at a time: enough for a matrix product, few enough for the cache.
_PIECE_ROWS = 2048
_PIECE_BYTES = 8 * MIB
#: Pieces that are looked at one after the other.
_FIRST = 4


@overload
def exact(
    store: StoreLike,
    queries: StoreLike | None = None,
    *,
    out: None = None,
    k: int = 100,
    metric: Metric = "l2",
    rows: Sequence[int] | IntArray | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    on_bad: OnBad = "stop",
    overwrite: bool = False,
    observer: events.Observer | None = None,
    stop: threading.Event | None = None,
) -> tuple[FloatArray, IntArray]: ...


@overload
def exact(
    store: StoreLike,
    queries: StoreLike | None = None,
    *,
    out: PathOrStr,
    k: int = 100,
    metric: Metric = "l2",
    rows: Sequence[int] | IntArray | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    on_bad: OnBad = "stop",
    overwrite: bool = False,
    observer: events.Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]: ...


@ResourceError.if_refused("looking for exact neighbours")
def exact(
    store: StoreLike,
    queries: StoreLike | None = None,
    *,
    out: PathOrStr | None = None,
    k: int = 100,
    metric: Metric = "l2",
    rows: Sequence[int] | IntArray | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    on_bad: OnBad = "stop",
    overwrite: bool = False,
    observer: events.Observer | None = None,
    stop: threading.Event | None = None,
) -> tuple[FloatArray, IntArray] | dict[str, Any]:
    """The exact ``k`` nearest rows of each query, in bounded memory.

    The store is read front to back, once for as many queries as memory holds. The result depends on
    nothing but rows and queries: not on memory, threads or block sizes.

    Parameters
    ----------
    store : store
        Anything ``ooc.open_store`` takes.
    queries : store, optional
        The same, of as many columns. Left out: the rows that ``rows`` names are the queries.
    out : path, optional
        Where results go; the suffix says the format. ``.h5``/``.hdf5`` (``neighbors`` and ``distances``,
        as ann-benchmarks has them, and ``ids``), ``.npz``, ``.zarr``, ``.parquet`` as
        ``Index.search_to`` writes them; ``.npy`` (int64) and ``.ivecs`` (int32) have ids alone.
    k : int
        Neighbours; where the store has fewer, the rest are padded with ids of -1.
    metric : {"l2", "ip", "cosine"}
    rows : array or range of int, optional
        The row of the store that each query is: it is left out of its own answer. -1 for none.
    memory : int or str
        Budget of private memory of the whole process. What is returned, and queries that are an array,
        are the caller's and come on top.
    threads : int, optional
        Default: the processors this process may use.
    on_bad : {"stop", "skip"}
        At rows with NaN or infinity: an error, or pass over them.
    overwrite : bool
        Replace what is at ``out``, once the new results are whole.
    observer : callable, optional
        Is told events (``ooc.events``): one stage, ``"exact"``, counted in rows of all passes.
    stop : threading.Event, optional
        When set, the work ends after the block it is at; nothing is written.

    Returns
    -------
    distances, ids : (nq, k) float32, (nq, k) int64
        Without ``out``. As ``Index.search`` returns them: ``l2`` squared, ascending; ``ip`` and ``cosine``
        similarities, descending; ties in the order of the ids.
    dict
        With ``out``: JSON-ready ``store``, ``queries``, ``out``, ``metric``, ``k``, ``nq``, ``rows`` (of the
        store), ``skipped_rows``, ``passes``, ``seconds``.

    Raises
    ------
    StoreError, MissingExtraError
        Store or queries cannot be read; a package for ``out`` is missing.
    DataError
        Queries of another width; rows (``on_bad="stop"``) or queries with NaN or infinity.
    ArgumentError
        An argument is wrong, or neither ``queries`` nor ``rows`` is given.
    PlanError
        ``memory-too-small``.
    ConflictError, ResourceError
        See ``Index.search_to``.
    Stopped
        ``stop`` was set.
    """
    if queries is None and rows is None:
        raise ArgumentError(
            "there are no queries", kind="queries", hint="Name a store of them, or rows of the store itself."
        )
    if on_bad not in ("stop", "skip"):
        raise ArgumentError(f"on_bad must be 'stop' or 'skip', not {on_bad!r}", kind="on_bad")
    k = check_at_least("k", k, 1)
    threads = check_given("threads", threads, 1)
    budget = parse_bytes(memory)
    tell = observer or events.ignore
    begun = time.monotonic()
    target = None if out is None else check_neighbours(out, overwrite=overwrite)
    with ExitStack() as opened:
        xb = store if isinstance(store, Store) else opened.enter_context(open_store(store))
        xq = None
        if queries is not None:
            xq = queries if isinstance(queries, Store) else opened.enter_context(open_store(queries))
        if target is not None:
            check_not_source(store, xb, target)
            if queries is not None and xq is not None:
                check_not_source(queries, xq, target)
        asked = _Asked(xb, xq, rows, metric)
        shape = (asked.nq, k)
        settings = {
            "store": xb.uri[:4000],
            "queries": (xb if xq is None else xq).uri[:4000],
            "metric": metric,
            "k": k,
            "own_left_out": rows is not None,
        }
        counts: dict[str, int] = {}
        plan = _Plan.of(xb, asked, k=k, metric=metric, budget=budget, threads=threads, keep=target is None)
        tell(events.Started(operation="exact", stages={"exact": 1}, memory_bytes=budget, settings=settings))
        parts = _parts(
            xb, asked, plan, k=k, metric=metric, on_bad=on_bad, tell=tell, stop=stop, counts=counts
        )
        if target is None:
            found, ids = np.empty(shape, np.float32), np.empty(shape, np.int64)
            for first, some_found, some_ids in parts:
                some = slice(first, first + len(some_ids))
                found[some], ids[some] = some_found, some_ids
        else:
            with open_neighbours(target, shape=shape, settings=settings, overwrite=overwrite) as file:
                for _, some_found, some_ids in parts:
                    file.write(some_found, some_ids)
    seconds = time.monotonic() - begun
    figures = {**settings, "out": None if target is None else str(target), "nq": asked.nq, "rows": xb.n}
    figures |= {**counts, "passes": plan.passes, "seconds": round(seconds, 3)}
    tell(events.Finished(operation="exact", seconds=seconds, figures=figures))
    return figures if target is not None else (found, ids)


def neighbours(
    store: Store,
    xq: FloatArray,
    k: int,
    metric: Metric,
    *,
    n: int | None = None,
    rows: IntArray | None = None,
    dead: Dead | None = None,
    memory_bytes: int,
    threads: int | None = None,
    on_bad: OnBad = "stop",
    observer: events.Observer = events.ignore,
    stop: threading.Event | None = None,
) -> tuple[FloatArray, IntArray]:
    """As ``exact``, of an open store's first ``n`` rows, and told as a stage of another operation.

    Dead rows are passed over.
    """
    from ooc.stores.array import ArrayStore

    asked = _Asked(store, ArrayStore(xq), rows, metric)
    plan = _Plan.of(store, asked, k=k, metric=metric, budget=memory_bytes, threads=threads, keep=True, n=n)
    options: dict[str, Any] = {"on_bad": on_bad, "tell": observer, "stop": stop, "counts": {}}
    parts = _parts(store, asked, plan, k=k, metric=metric, dead=dead, **options)
    found = [(distances, ids) for _, distances, ids in parts]
    return np.concatenate([p[0] for p in found]), np.concatenate([p[1] for p in found])


class _Asked:
    """The queries: of a store of their own, or rows of the store that is searched."""

    def __init__(
        self, store: Store, queries: Store | None, rows: Sequence[int] | IntArray | None, metric: Metric
    ) -> None:
        if metric not in METRICS:
            raise ArgumentError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}", kind="metric")
        if queries is not None and queries.d != store.d:
            raise DataError(
                f"the queries in {queries.uri or 'the array'} have {queries.d} dimensions; "
                f"{store.uri or 'the store'} has {store.d}",
                kind="query-shape",
                hint="Use the model that made the vectors.",
            )
        if rows is not None and queries is not None and len(rows) != queries.n:
            raise ArgumentError(
                f"rows names {len(rows)} rows for {queries.n} queries", kind="rows", hint="Name one a query."
            )
        self._store, self._queries, self._rows, self._metric = store, queries, rows, metric
        self.nq = queries.n if queries is not None else len(rows if rows is not None else ())

    def read(self, first: int, stop: int) -> tuple[FloatArray, IntArray | None]:
        """Queries as float32, of unit length for cosine, and the row that each of them is."""
        own = None
        if self._rows is not None:
            own = np.asarray(self._rows[first:stop])
            check_rows(own[own >= 0] if self._queries is not None else own, self._store.n)
            own = own.astype(np.int64)
        if self._queries is not None:
            raw = self._queries.read(first, stop)
        else:
            assert own is not None
            raw = self._store.take(own)
        finite = np.isfinite(raw).all(axis=1)
        if not finite.all():
            bad = first + int(np.argmin(finite))
            where = (self._queries or self._store).uri or "the array"
            raise DataError(
                f"query {bad} of {where} holds NaN or infinity (the first that does; numbers begin at 0)",
                kind="query-values",
                hint="Mend it, or leave it out.",
            )
        return np.ascontiguousarray(as_queries(raw, self._store.d, self._metric)), own


class _Plan:
    """How many queries a pass has, and how many rows a thread takes at a time."""

    def __init__(self, *, n: int, queries: int, rows: int, threads: int, passes: int) -> None:
        self.n, self.queries, self.rows, self.threads, self.passes = n, queries, rows, threads, passes

    @classmethod
    def of(
        cls,
        store: Store,
        asked: _Asked,
        *,
        k: int,
        metric: Metric,
        budget: int,
        threads: int | None,
        keep: bool,
        n: int | None = None,
    ) -> _Plan:
        """Raises PlanError where the budget is too small."""
        team = threads or available_threads()
        release_free_memory()
        base = max(private_bytes(), _BASE_BYTES)
        piece_bytes = min(_PIECE_BYTES, max(budget // 256, MIB // 2))
        rows = max(1, min(_PIECE_ROWS, piece_bytes // (4 * store.d)))
        # Blocks that are read, wait, or are worked on; a thread has its rows as float32 twice, scores of a
        # tile and which of them are near, and the pairs that it found.
        work = team * (rows * (8 * store.d + 4) + rows * 512 * 10 + 4 * MIB) + Sweep.merge_bytes(k)
        if not store.mapped:
            work += 4 * _pieces_of(team) * rows * store.row_bytes + 2 * store.chunk_bytes
        # As read, of unit length, as factors; and the results, which wait for nobody where they are written.
        each = 12 * store.d + Sweep.query_bytes(store.d, k) + 8 * k
        # An eighth is for what the allocator keeps.
        room = budget - budget // 8 - base - work
        least = min(_LEAST_QUERIES, max(asked.nq, 1))
        if room < least * each:
            needed = (base + work + least * each) * 8 // 7 + MIB
            raise PlanError(
                f"exact neighbours do not fit in {format_bytes(budget)}",
                kind="memory-too-small",
                hint=f"Give it at least {format_bytes(needed)}.",
            )
        passes = max(1, -(-asked.nq // (room // each)))
        queries = max(1, -(-asked.nq // passes))
        return cls(n=store.n if n is None else n, queries=queries, rows=rows, threads=team, passes=passes)


def _parts(
    store: Store,
    asked: _Asked,
    plan: _Plan,
    *,
    k: int,
    metric: Metric,
    on_bad: OnBad,
    tell: events.Observer,
    stop: threading.Event | None,
    counts: dict[str, int],
    dead: Dead | None = None,
) -> Iterator[tuple[int, FloatArray, IntArray]]:
    """First query, distances and ids, of the queries of each pass."""
    counts["skipped_rows"] = 0
    total = plan.n * plan.passes
    with (
        workers(plan.threads) as pool,
        events.stage(tell, "exact", total, row_bytes=store.row_bytes) as stage,
    ):
        for turn, first in enumerate(range(0, asked.nq, plan.queries)):
            xq, own = asked.read(first, min(first + plan.queries, asked.nq))
            sweep = Sweep(xq, k, metric, own, stop=stop)
            skipped, done = 0, turn * plan.n
            look = partial(_look, sweep, dead)
            try:
                with closing(_pieces(store, plan)) as pieces:  # ends the thread that reads ahead
                    # One by one at first: where nothing is known of the best yet, each piece has k a query.
                    some = map(look, islice(pieces, _FIRST))
                    looked = chain(some, in_order(pool, look, pieces, plan.threads))
                    for rows, bad, found in looked:
                        Stopped.raise_if(stop)
                        if len(bad) and on_bad == "stop":
                            raise bad_rows_error(store, int(bad[0]), len(bad))
                        skipped += len(bad)
                        sweep.take(found)
                        done += rows
                        stage.tell(done)
                counts["skipped_rows"] = skipped
                result = sweep.result()
            except Stopped:
                raise Stopped(
                    f"stopped after {format_count(done)} of {format_count(total)} rows; "
                    "no neighbours were written",
                    hint="The same command starts over.",
                ) from None
            del sweep, xq, look, looked, some  # before the next queries are read
            release_free_memory()
            yield first, *result
        if counts["skipped_rows"]:
            stage.note(
                f"{format_count(counts['skipped_rows'])} rows hold NaN or infinity and are left out",
                kind="rows-skipped",
                warning=True,
            )
        stage.figures["queries"] = asked.nq


def _pieces(store: Store, plan: _Plan) -> Generator[Block]:
    """The rows, in pieces for one thread each.

    Blocks are of as many pieces as may be under way: a mapped store lets go of the block before the last.
    """
    for block in store.blocks(plan.rows * _pieces_of(plan.threads), stop=plan.n):
        for first in range(0, len(block.rows), plan.rows):
            yield Block(start=block.start + first, rows=block.rows[first : first + plan.rows])


def _pieces_of(threads: int) -> int:
    """Pieces of a block: what ``in_order`` has under way, and the one that it is handing out."""
    return 2 * threads + 1


def _look(sweep: Sweep, dead: Dead | None, block: Block) -> tuple[int, IntArray, Found]:
    """How many rows, which of them hold NaN or infinity, and what may be among the nearest."""
    prepared = prepare(block.rows, "l2")
    left_out = prepared.bad
    if dead is not None and dead.count:
        here = dead.contains(np.arange(block.start, block.start + len(block.rows)))
        left_out = np.union1d(left_out, np.flatnonzero(here))
    found = sweep.look_at(block.start, prepared.x, left_out)
    return len(block.rows), prepared.bad + block.start, found
