"""Public functions that are more than one stage: what ``ooc.build`` adds for a caller in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ooc.units import DEFAULT_MEMORY

if TYPE_CHECKING:
    import threading

    from ooc.events import Observer
    from ooc.types import CopyVectors, Metric, OnBad, PathOrStr, StoreLike

__all__ = ["build"]


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
    on_bad: OnBad = "stop",
    progress: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Build an index of a store. Run again after any interruption, it goes on from the last shard.

    Parameters
    ----------
    store, memory, metric, factory, seed, shard_rows, threads, copy_vectors, on_bad
        As for ``ooc.plan``. A build may go on under another budget or number of threads; the index
        is the same.
    index : path
        The directory to make; it must not exist, be empty, or hold this same build.
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
        on_bad=on_bad,
    )
    with observer_for(progress) as display:
        return run(store, index, options, observer=broadcast([display, observer]), stop=stop)
