"""Queries in any number: read from a store in blocks, searched, and their results written as they come.

    queries ─> block ─> search ─> results ─> file
                 └─ the next block is read meanwhile

Memory holds a batch and what is found for it, whether there are a thousand queries or a hundred million.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np

from ooc import events
from ooc.errors import DataError, ResourceError, Stopped
from ooc.search.queries import check_at_least, check_given
from ooc.units import MIB, format_count

if TYPE_CHECKING:
    import threading

    from ooc.search.searcher import Index
    from ooc.search.where import Parameters
    from ooc.stores.base import Store
    from ooc.types import AnyArray, FloatArray, IntArray, PathOrStr, StoreLike

__all__ = ["batch_queries", "search_blocks", "search_settings", "search_to"]

#: A search reads each list once for all queries of a batch: the more the better, up to where each list
#: is wanted by many of them. More would make progress and a stop slow, and nothing faster.
_BATCH_QUERIES = 16384
#: What a batch may take in memory: its queries and results. What the search of it takes besides, the
#: search itself bounds.
_BATCH_BYTES = 128 * MIB

#: Names of stores are kept with the results up to this length (a list of thousands of parts is longer).
_NAME_CHARACTERS = 4000


@ResourceError.if_refused("searching")
def search_to(
    index: Index,
    queries: StoreLike,
    out: PathOrStr,
    *,
    k: int = 10,
    recall: float | None = None,
    nprobe: int | None = None,
    rerank: int | None = None,
    filter: object | None = None,  # noqa: A002 - the field's word
    where: str | None = None,
    parameters: Parameters | None = None,
    first: int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    observer: events.Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Search with all queries of a store, and write the results to a file, in bounded memory.

    The file appears when it is whole and on the disk; an error, a stop or a crash leaves none.

    Parameters
    ----------
    queries : store
        Anything ``ooc.open_store`` takes, of ``d`` columns.
    out : path
        The suffix says the format: ``.npz``; ``.h5`` or ``.hdf5``; ``.zarr``; ``.parquet`` or ``.pq``.
        It holds ``distances`` (nq, k) float32 and ``ids`` (nq, k) int64, as ``search`` returns them
        (in Parquet two columns of lists), and how they were found as JSON under ``settings``. In
        HDF5 ``neighbors`` is another name of ``ids``. Where rows have keys it holds ``keys`` too.
    k, recall, nprobe, rerank, filter, where, parameters
        As for ``search``.
    first : int, optional
        Only the first so many queries.
    batch : int, optional
        Queries searched together; by default up to 16 384, as many as take 128 MiB with their results.
    overwrite : bool
        Replace what is at ``out``, once the new results are whole.
    observer : callable, optional
        Is told events (``ooc.events``); one stage, ``"search"``, counted in queries.
    stop : threading.Event, optional
        When set, the search ends on its way.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``generation``, ``metric``, ``k``, ``nprobe``, ``rerank``, ``queries``,
        ``allowed`` (rows that the filter allows, None without one), ``out``, ``nq``, ``seconds``.

    Raises
    ------
    StoreError, MissingExtraError
        The queries cannot be read, or their store has no rows; a package for ``out`` is missing.
    DataError
        Queries of another width, or one with NaN or infinity; the message has its number.
    ArgumentError
        An argument is wrong, the directory of ``out`` is missing, or ``out`` is the store of the queries
        or of the index, or within an index.
    ConflictError
        ``out`` exists, or holds something else than results, or is being written.
    ResourceError
        The disk is too small (seen before the first search) or refuses.
    Stopped
        ``stop`` was set.
    """
    # Formats and what writes them are imported by those who write: an index is opened without.
    from ooc.search.hits import check_out, open_hits
    from ooc.stores import Store, open_store
    from ooc.stores.targets import check_not_source, check_not_stores

    tell = observer or events.ignore
    begun = time.monotonic()
    k = check_at_least("k", k, 1)
    first = check_given("first", first, 1)
    batch = check_given("batch", batch, 1)
    target = check_out(out, overwrite=overwrite)
    allowed = None
    if filter is not None or where is not None or parameters is not None:
        allowed = index.filter(filter, where=where, parameters=parameters)
    store = open_store(queries)
    try:
        check_not_source(queries, store, target)
        stores = [part["uri"] for part in index.info()["stores"]]
        check_not_stores(target, stores, what="a store of the index")
        nq = store.n if first is None else min(first, store.n)
        settings: dict[str, Any] = {
            **search_settings(index, k, recall, nprobe, rerank, allowed),
            "queries": store.uri[:_NAME_CHARACTERS],
            "allowed": None if allowed is None else allowed.count,
        }
        blocks = search_blocks(
            index,
            store,
            k=k,
            recall=recall,
            nprobe=nprobe,
            rerank=rerank,
            filter=allowed,
            nq=nq,
            batch=batch,
            stop=stop,
        )
        tell(events.Started(operation="search", stages={"search": 1.0}, settings=settings))
        with (
            contextlib.closing(blocks),  # ends the thread that reads ahead
            open_hits(
                target, shape=(nq, k), settings=settings, keys=index.key_dtype, overwrite=overwrite
            ) as hits,
            events.stage(tell, "search", nq, unit="queries") as stage,
        ):
            while hits.n < nq:
                try:
                    Stopped.raise_if(stop)
                    _, distances, ids, keys = next(blocks)
                except Stopped:
                    raise Stopped(
                        f"stopped after {format_count(hits.n)} of {format_count(nq)} queries; "
                        f"{target} was not written",
                        hint="The same search starts over.",
                    ) from None
                hits.write(distances, ids, keys)
                stage.tell(hits.n)
            stage.figures["queries"] = nq
    finally:
        if not isinstance(queries, Store):
            store.close()
    seconds = time.monotonic() - begun
    figures = {**settings, "out": str(target), "nq": nq, "seconds": round(seconds, 3)}
    tell(events.Finished(operation="search", seconds=seconds, figures=figures))
    return figures


def search_settings(
    index: Index,
    k: int,
    recall: float | None,
    nprobe: int | None,
    rerank: int | None,
    filter: object | None = None,  # noqa: A002
) -> dict[str, Any]:
    """What a search is done with, defaults filled in; JSON-ready."""
    info = index.info()
    nprobe, rerank = index.settings(k, recall=recall, nprobe=nprobe, rerank=rerank, filter=filter)
    return {
        "index": info["path"],
        "generation": info["generation"],
        "metric": index.metric,
        "k": k,
        "nprobe": nprobe,
        "rerank": rerank,
    }


def search_blocks(
    index: Index,
    queries: Store,
    *,
    k: int = 10,
    recall: float | None = None,
    nprobe: int | None = None,
    rerank: int | None = None,
    filter: object | None = None,  # noqa: A002
    nq: int | None = None,
    batch: int | None = None,
    stop: threading.Event | None = None,
) -> Generator[tuple[int, FloatArray, IntArray, AnyArray | None]]:
    """The results of a store's queries, batch by batch; the next queries are read meanwhile.

    Parameters
    ----------
    index, k, recall, nprobe, rerank, filter, batch
        As for ``search_to``; what ``index.filter`` made of a filter is made once.
    nq : int, optional
        Only the first so many queries.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.

    Yields
    ------
    start : int
        The first query's number.
    distances, ids : (m, k) float32, (m, k) int64
    keys : (m, k) int64 or object, or None
        As ``Index.search`` gives them, where rows have keys.

    Raises
    ------
    DataError
        Queries of another width, before anything is read; or one with NaN or infinity, where its batch
        comes, by its number in the store.
    """
    where = queries.uri or "the array"
    if queries.d != index.d:
        raise DataError(
            f"the queries in {where} have {queries.d} dimensions; this index takes {index.d}",
            kind="query-shape",
            hint="Use the model that made the indexed vectors.",
        )
    return _search_blocks(
        index,
        queries,
        batch=batch or batch_queries(queries, k),
        nq=queries.n if nq is None else min(nq, queries.n),
        stop=stop,
        options={"k": k, "recall": recall, "nprobe": nprobe, "rerank": rerank, "filter": filter},
    )


def _search_blocks(
    index: Index,
    queries: Store,
    *,
    batch: int,
    nq: int,
    stop: threading.Event | None,
    options: dict[str, Any],
) -> Generator[tuple[int, FloatArray, IntArray, AnyArray | None]]:
    from ooc.stores.base import as_float32

    keyed = index.key_kind is not None
    for block in queries.blocks(batch, stop=nq):
        xq = as_float32(block.rows)
        try:
            found = index.search_until(stop, xq, **options, return_keys=keyed)
        except DataError as error:
            if error.kind != "query-values":
                raise
            bad = ~np.isfinite(xq).all(axis=1)
            raise DataError(
                f"query {block.start + int(np.argmax(bad))} of {queries.uri or 'the array'} holds NaN or "
                f"infinity (the first that does; numbers begin at 0)",
                kind="query-values",
                hint="Mend it, or leave it out.",
            ) from error
        distances, ids, *keys = found
        yield block.start, distances, ids, keys[0] if keys else None


def batch_queries(queries: Store, k: int) -> int:
    """How many queries are searched together where nobody says: of whole chunks where these are smaller."""
    # As they are read (a mapped store's are not private), as float32, of unit length; and twice the
    # results, which are written in another piece.
    query_bytes = (0 if queries.mapped else 3 * queries.row_bytes) + 2 * 4 * queries.d
    most = max(1, min(_BATCH_QUERIES, _BATCH_BYTES // (query_bytes + 2 * 12 * k)))
    chunk = 0 if queries.mapped else int(np.diff(queries.chunk_starts).max())
    return most - most % chunk if 0 < chunk <= most else most
