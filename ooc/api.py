"""The public functions of a build: what they add to the pipeline for a caller in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ooc.units import DEFAULT_MEMORY

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable

    from ooc.events import Observer
    from ooc.types import CopyDtype, CopyVectors, Metric, OnBad, PathOrStr, Spill, StoreLike

__all__ = ["build", "fill", "merge", "train"]


def build(
    store: StoreLike,
    index: PathOrStr,
    *,
    memory: int | str = DEFAULT_MEMORY,
    metric: Metric = "l2",
    factory: str | None = None,
    seed: int = 0,
    shard_rows: int | None = None,
    threads: int | None = None,
    copy_vectors: CopyVectors = "auto",
    copy_dtype: CopyDtype = "store",
    spill: Spill = "off",
    on_bad: OnBad = "stop",
    template: PathOrStr | None = None,
    queries: StoreLike | None = None,
    scratch: PathOrStr | None = None,
    workers: int = 1,
    progress: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Build an index of a store. Run again after any interruption, it goes on from the last shard.

    Parameters
    ----------
    store, memory, metric, factory, seed, shard_rows, threads
        As for ``ooc.plan``.
    copy_vectors, copy_dtype, spill, on_bad, template, queries
        As for ``ooc.plan``. A build may go on under another budget or number of threads; the index
        is the same.
    index : path
        The directory to make; it must not exist, be empty, or hold this same build.
    scratch : path, optional
        A directory, on another disk as a rule, in which sample and shards are kept until the index is
        published; default: the index's own. A build goes on where it was begun.
    workers : int
        Fill in so many processes, among which memory and threads are divided. The store must be a
        path or a URL then.
    progress : bool
        Show a live display on stderr, as the command line does.
    observer : callable, optional
        Is told events (``ooc.events``); runs in the calling thread.
    stop : threading.Event, optional
        When set, the build ends at a safe point.

    Returns
    -------
    dict
        JSON-ready figures: ``index``, ``generation``, ``rows`` (indexed), ``skipped_rows``,
        ``zero_rows``, ``bytes`` (of the index), ``seconds``, ``stages`` (each with ``seconds``), and
        ``already_built``: True where there was nothing left to do.

    Raises
    ------
    StoreError, DataError, PlanError, ResourceError, ArgumentError
        See ``ooc.plan``; what was built before stays.
    ConflictError
        The directory holds something else, another process is writing it, or the store is not the
        one the build began with.
    Stopped
        ``stop`` was set. The same call goes on.
    """
    from ooc.build.pipeline import build as run
    from ooc.build.plan import Options
    from ooc.cli.progress import observer_for
    from ooc.events import broadcast

    options = Options(
        memory=memory,
        metric=metric,
        factory=factory,
        seed=seed,
        shard_rows=shard_rows,
        threads=threads,
        copy_vectors=copy_vectors,
        copy_dtype=copy_dtype,
        spill=spill,
        on_bad=on_bad,
        template=template,
        queries=queries,
    )
    with observer_for(progress) as display:
        return run(
            store,
            index,
            options,
            scratch=scratch,
            workers=workers,
            observer=broadcast([display, observer]),
            stop=stop,
        )


def train(
    store: StoreLike,
    index: PathOrStr,
    *,
    memory: int | str = DEFAULT_MEMORY,
    metric: Metric = "l2",
    factory: str | None = None,
    seed: int = 0,
    shard_rows: int | None = None,
    threads: int | None = None,
    copy_vectors: CopyVectors = "auto",
    copy_dtype: CopyDtype = "store",
    spill: Spill = "off",
    on_bad: OnBad = "stop",
    template: PathOrStr | None = None,
    queries: StoreLike | None = None,
    scratch: PathOrStr | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Begin a build: plan, sample and train. ``fill`` and ``merge`` do the rest, as does ``build``.

    Parameters and errors are those of ``build``.

    Returns
    -------
    dict
        JSON-ready figures: ``index``, ``rows`` (of the store), ``rows_filled``, ``shards`` (how many
        there are), ``shards_missing`` (the numbers of those to fill), ``shard_rows``, ``seconds``,
        ``stages``, ``already_built``. Where the index is published already, those of ``build``.
    """
    from ooc.build.pipeline import train as run
    from ooc.build.plan import Options

    options = Options(
        memory=memory,
        metric=metric,
        factory=factory,
        seed=seed,
        shard_rows=shard_rows,
        threads=threads,
        copy_vectors=copy_vectors,
        copy_dtype=copy_dtype,
        spill=spill,
        on_bad=on_bad,
        template=template,
        queries=queries,
    )
    return run(store, index, options, scratch=scratch, observer=observer, stop=stop)


def fill(
    store: StoreLike,
    index: PathOrStr,
    *,
    shards: Iterable[int] | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Fill shards of a build that was begun. Several processes and hosts may do so at once.

    Parameters
    ----------
    store : path, URL, glob, list, array or Store
        What the build was begun with.
    index : path
        The directory that ``train`` made, on a file system that all of them share.
    shards : iterable of int, optional
        Only these, by number from 0; default: all that are missing. One that another process holds is
        passed over and waited for at the end.
    memory, threads, observer, stop
        As for ``build``, for this process.

    Returns
    -------
    dict
        As ``train``.

    Raises
    ------
    IndexDirError
        Nothing was begun there, or its training is not over.
    ConflictError
        The store is not the one the build began with.
    StoreError, DataError, PlanError, ResourceError, ArgumentError
        See ``build``; shards that are filled stay.
    Stopped
        ``stop`` was set. The same call goes on.
    """
    from ooc.build.pipeline import fill as run

    return run(store, index, shards=shards, memory=memory, threads=threads, observer=observer, stop=stop)


def merge(
    store: StoreLike,
    index: PathOrStr,
    *,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Merge the shards that ``fill`` made and publish the index.

    Parameters
    ----------
    store, index
        As for ``fill``.
    observer, stop
        As for ``build``.

    Returns
    -------
    dict
        As ``build``.

    Raises
    ------
    ConflictError
        Shards are missing (the message has their numbers), another process writes the index, or the
        store is not the one the build began with.
    IndexDirError
        Nothing was begun there, or a shard is damaged: it is filled again by the next ``fill``.
    ResourceError
        The disk is full.
    Stopped
        ``stop`` was set. The same call goes on.
    """
    from ooc.build.pipeline import merge as run

    return run(store, index, observer=observer, stop=stop)
