"""The public functions that write an index: what they add to the pipeline for a caller in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ooc.units import DEFAULT_MEMORY

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Mapping

    from ooc.build.plan import Plan
    from ooc.events import Observer
    from ooc.types import (
        AnyArray,
        CopyDtype,
        CopyVectors,
        KeysLike,
        Metric,
        OnBad,
        PathOrStr,
        Spill,
        StoreLike,
    )

__all__ = [
    "append",
    "build",
    "compact",
    "delete",
    "export",
    "fill",
    "gc",
    "generations",
    "import_index",
    "merge",
    "plan",
    "rollback",
    "train",
    "upsert",
    "verify",
]


def plan(
    store: StoreLike,
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
    keys: KeysLike | None = None,
    index: PathOrStr | None = None,
) -> Plan:
    """What building an index of a store will do and cost. Nothing is written.

    Where the build takes more than some seconds, a part of that is spent on measuring how fast this machine
    is, on rows of the store.

    Parameters
    ----------
    store : path, URL, glob, list, array or Store
        What ``ooc.open_store`` takes.
    memory : int or str
        Budget of private memory for the whole process, as in ``"512MiB"``.
    metric : {"l2", "ip", "cosine"}
        ``cosine`` normalises the rows on their way in.
    factory : str, optional
        As faiss's, for example ``"HR,IVF4096,RaBitQ2"`` or ``"SQ8"``; lists and transforms that are
        left out are filled in. Default: the code by which searches of a few thousand of these rows would
        read least.
    seed : int
        Same store, plan and seed: same bytes.
    shard_rows : int, optional
        Rows of a shard, rounded up to a multiple of 1024; default from the budget.
    threads : int, optional
        Default: the processors this process may use.
    copy_vectors : {"auto", "always", "never"}
        Whether the index keeps its own rows for exact re-ranking. ``auto``: where the store cannot
        be memory-mapped, or ``copy_dtype`` asks for another dtype than the store's.
    copy_dtype : {"store", "float16", "int8"}
        Of those rows, in which exact distances are then computed: as the store has them, or rounded
        to nearest. ``int8`` has one float32 scale a row. What is lost is measured while the index is
        built; see ``ooc help stores``.
    spill : {"off", "on"}
        Whether each row is in a second list too, chosen as SOAR does (arXiv 2404.00774): twice the
        bytes of lists. Whether a query then reads more or fewer of them for the same recall depends
        on the vectors; see ``ooc help plan``.
    on_bad : {"stop", "skip"}
        At rows with NaN or infinity: stop with an error, or leave them out.
    template : path, optional
        An index whose trained template is reused; nothing is trained then. Its code, lists and seed
        are this plan's.
    queries : store, optional
        Queries of the kind that will be asked, by which recall is measured; default: rows of the store
        itself, which tell nothing of queries that are unlike them. Some hundred are used.
    keys : array, list or path, optional
        A key for each row, in their order: whole numbers (int64) or strings, each once. A 1-d array, a list,
        a ``.npy`` file, a text file (a key a line), ``PATH::column`` of Parquet or Arrow, ``PATH::/name`` in
        HDF5 or Zarr. They are read block by block; see ``ooc help keys``.
    index : path, optional
        Where the index shall be: its disk is checked for room.

    Raises
    ------
    StoreError
        The store is missing or is not a 2-d array of vectors.
    PlanError
        The memory is too small for any plan (the message has the least that works), the code
        cannot live on disk, ``copy_dtype`` is no smaller than the store's, or the template is for
        other vectors.
    ResourceError
        The disk of ``index`` has too little room.
    ArgumentError
        An argument is out of its range.
    """
    from ooc.build.pipeline import plan as run
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
        keys=keys,
    )
    return run(store, options, index=index)


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
    keys: KeysLike | None = None,
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
    copy_vectors, copy_dtype, spill, on_bad, template, queries, keys
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
        ``zero_rows``, ``bytes`` (of the index), ``seconds``, ``stages`` (each with ``seconds``),
        ``peak_private_bytes``, ``forecast`` (what was expected when the build began), and
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
        keys=keys,
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
    keys: KeysLike | None = None,
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
        keys=keys,
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


def append(
    index: PathOrStr,
    store: StoreLike,
    *,
    keys: KeysLike | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    copy_vectors: CopyVectors = "auto",
    copy_dtype: CopyDtype = "store",
    on_bad: OnBad = "stop",
    auto: bool = False,
    progress: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Add rows to an index: those of another store, or those that a store has more than when it was indexed.

    They become a segment of their own, by the template that the index has; rows that are there are not read.
    Readers see them once they open the index again, ``refresh`` it, or follow. Ids continue those of the
    index. Run again after an interruption, it goes on. A store whose rows are all there adds nothing; an
    array is added each time.

    Parameters
    ----------
    index : path
    store : path, URL, glob, list, array or Store
        Rows of the width of the index.
    keys : array, list or path, optional
        As for ``build``, where the rows of the index have keys: for each new row, or for each of the store.
    memory, threads, copy_dtype, on_bad, progress, observer, stop
        As for ``build``.
    copy_vectors : {"auto", "always", "never"}
        Whether the index keeps these rows itself. ``auto``: where the store cannot be memory-mapped, as an
        array, or ``copy_dtype`` asks for another dtype.
    auto : bool
        Compact afterwards, where there are more than 8 segments or more than a fifth of the rows in lists
        are dead.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``generation``, ``added`` (rows), ``first_id`` (of the first one), ``rows``
        (that a search may find), ``segments``, ``stages``, ``peak_private_bytes``; with ``auto`` also
        ``compacted``, segments that became one.

    Raises
    ------
    IndexDirError
        There is no finished index.
    ConflictError
        Another process changes the index, another change of it is unfinished, or rows of that store were
        indexed and it holds other rows now.
    ArgumentError
        There are keys and the rows of the index have none, or the reverse; or as for ``build``.
    DataError
        A key is given twice, or a row of the index has it (``duplicate-key``); or as for ``build``.
    StoreError, PlanError, ResourceError, Stopped
        As for ``build``. The index is as it was.
    """
    from ooc.cli.progress import observer_for
    from ooc.events import broadcast
    from ooc.update.append import append as run

    with observer_for(progress) as display:
        watching = broadcast([display, observer])
        figures = run(
            index,
            store,
            keys=keys,
            memory=memory,
            threads=threads,
            copy_vectors=copy_vectors,
            copy_dtype=copy_dtype,
            on_bad=on_bad,
            observer=watching,
            stop=stop,
        )
        if auto:
            from ooc.update.compact import compact as run_compact

            compacted = run_compact(index, auto=True, observer=watching, stop=stop)
            figures |= {name: compacted[name] for name in ("generation", "compacted")}
    return figures


def upsert(
    index: PathOrStr,
    ids: AnyArray | None = None,
    vectors: StoreLike | None = None,
    *,
    keys: KeysLike | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    copy_dtype: CopyDtype = "store",
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Give rows other vectors, by id or by key. The index keeps these itself; what was there before is dead.

    Parameters
    ----------
    index : path
    ids : (m,) integers
        Each once, in any order: of rows that are there or, where rows have no keys, were deleted.
    vectors : array or store
        m rows.
    keys : array, list or path
        In place of ids: m keys, each once, in any order. A row that has one keeps its id; one that no row
        has becomes a new row, with a new id. They are held in memory together.
    memory, threads, copy_dtype, observer, stop
        As for ``build``.

    Returns
    -------
    dict
        As ``append``; ``first_id`` is that of the first new row, None where there is none, and ``replaced``
        says how many of the rows take the place of another.

    Raises
    ------
    ArgumentError
        An id was never given, or is given twice; there are more or fewer vectors than ids or keys; rows have
        no keys; or keys are of another kind.
    DataError
        A key is given twice; or as ``append``.
    IndexDirError, ConflictError, StoreError, PlanError, ResourceError, Stopped
        As ``append``.
    """
    from ooc.errors import ArgumentError
    from ooc.update.append import upsert as run

    if vectors is None:
        raise ArgumentError("there are no vectors", kind="store", hint="upsert(index, ids, vectors)")
    return run(
        index,
        ids,
        vectors,
        keys=keys,
        memory=memory,
        threads=threads,
        copy_dtype=copy_dtype,
        observer=observer,
        stop=stop,
    )


def delete(index: PathOrStr, ids: AnyArray | None = None, *, keys: KeysLike | None = None) -> dict[str, Any]:
    """Delete rows. No search that opens the index afterwards finds them; their bytes go with ``compact``.

    Parameters
    ----------
    index : path
    ids : (m,) integers or (ids,) bool
        In any order; those that were deleted before are passed over. Or a mask, with an entry for each id.
    keys : array, list or path
        In place of ids: keys of rows, in any order; those that no row has are passed over.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``generation``, ``deleted`` (rows), ``rows`` (that a search may find), and
        with keys ``unknown``, how many of them no row has.

    Raises
    ------
    ArgumentError
        An id was never given; rows have no keys, or keys are of another kind.
    IndexDirError, ConflictError, ResourceError
        As ``append``.
    """
    from ooc.update.delete import delete as run

    return run(index, ids, keys=keys)


def compact(
    index: PathOrStr,
    *,
    auto: bool = False,
    retrain: bool = False,
    store: StoreLike | Mapping[str, StoreLike] | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    progress: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Make one segment of all, without the codes of dead rows: a copy of lists, in bounded memory.

    No row is read, and no answer changes. Readers go on with the generation that they hold.

    With ``retrain`` all live rows are read and built anew, under a template that is trained with them: for
    an index whose rows are no longer of the kind that it was trained for, or many times as many. Ids stay.

    Parameters
    ----------
    index : path
    auto : bool
        Only where there are more than 8 segments, or more than a fifth of the rows in lists, or of those
        that the index keeps, are dead.
    retrain : bool
        Train anew; with ``auto`` only where the rows that came since no longer fit (see ``info()``: recall
        that is stale). Interrupted, the same call goes on, unless the index was changed meanwhile.
    store : path, array, store or mapping, optional
        With ``retrain``: where the vectors are now, if they were moved; as for ``open_index``.
    memory, threads
        As for ``build``; with ``retrain``.
    progress, observer, stop
        As for ``build``.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``generation``, ``compacted`` (segments that became one; 0 where there was
        nothing to do), ``trained``, ``dropped`` (dead rows), ``rows``, ``seconds``.

    Raises
    ------
    IndexDirError, ConflictError, ResourceError, Stopped
        As ``append``.
    ArgumentError
        ``store`` names one that was not indexed, or is given without ``retrain``.
    StoreError
        With ``retrain``: a store is gone.
    """
    from ooc.cli.progress import observer_for
    from ooc.events import broadcast
    from ooc.update.compact import compact as run

    with observer_for(progress) as display:
        return run(
            index,
            auto=auto,
            retrain=retrain,
            store=store,
            memory=memory,
            threads=threads,
            observer=broadcast([display, observer]),
            stop=stop,
        )


def generations(index: PathOrStr) -> list[dict[str, Any]]:
    """The generations of an index that are there, the oldest first.

    Returns
    -------
    list of dict
        JSON-ready: ``generation``, ``live``, ``held`` (a reader has it open), ``operation`` (that made it),
        ``before`` (the generation that it changed), ``rows``, ``dead_rows`` (in lists), ``segments``
        (their names), ``published`` (seconds since 1970).
    """
    from ooc.update.collect import generations as run

    return run(index)


def rollback(index: PathOrStr, generation: int) -> dict[str, Any]:
    """Make an earlier generation the live one again. What was changed since is there until ``gc``.

    Raises
    ------
    ArgumentError
        There is no such generation.
    IndexDirError, ConflictError, ResourceError
        Files of it are missing; or as ``append``.
    """
    from ooc.update.collect import rollback as run

    return run(index, generation)


def gc(index: PathOrStr, *, keep: int = 0) -> dict[str, Any]:
    """Remove generations that nobody reads, and what an interrupted change left.

    Parameters
    ----------
    index : path
    keep : int
        Generations before the live one that stay, so that ``rollback`` can go back to them.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``removed`` and ``kept`` (numbers of generations), ``freed_bytes``.

    Raises
    ------
    IndexDirError, ConflictError, ResourceError
        As ``append``.
    """
    from ooc.update.collect import gc as run

    return run(index, keep=keep)


def verify(
    index: PathOrStr,
    *,
    full: bool = False,
    repair: bool = False,
    generation: int | None = None,
    every: bool = False,
    store: StoreLike | Mapping[str, StoreLike] | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    progress: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """See whether an index is what it was when it was written. See ``ooc help verify``.

    Without ``full`` records, sizes of files and the structure of what says where lists are.

    Parameters
    ----------
    index : path
    full : bool
        Read everything: all checksums; the rows in each list; of a sample of rows, the same for the same
        index, the lists that they belong to and their codes, made anew from the vectors; whether the stores
        are those that were indexed.
    repair : bool
        Make anew what is damaged, where the stores or the index's own rows allow: as another generation,
        which is then checked. Only of the live one.
    generation : int, optional
        Look at this one; default: the live one.
    every : bool
        Look at all generations that are there.
    store : store or mapping, optional
        Where stores are now, as for ``open_index``.
    memory : int or str
        Budget of private memory.
    threads : int, optional
        For making anew; default: the processors this process may use.
    progress, observer, stop
        As for ``build``.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``generations`` (that were looked at), ``full``, ``sound``, ``findings``,
        ``checked`` (how many records, files, blocks, bytes, list entries, codes and stores), ``unchecked``
        (``what`` and ``why``), ``repaired`` (what was made anew), ``seconds``. A finding has ``path``,
        ``block`` (of 64 MiB, or of 1024 rows; or None), ``kind`` (``missing``, ``record``, ``size``,
        ``structure``, ``checksum``, ``ids``, ``codes`` or ``store``), ``what`` it is, what to ``do``.

    Raises
    ------
    IndexDirError
        There is no index, or it was not finished. One that is damaged is no error here.
    ArgumentError
        There is no such generation, or ``repair`` is asked of another than the live one.
    ResourceError
        The system refused, as to open more files.
    ConflictError, PlanError, Stopped
        As ``append``, while something is made anew; Stopped also while it is read.
    """
    from ooc.check.verify import verify as run
    from ooc.cli.progress import observer_for
    from ooc.events import broadcast

    with observer_for(progress) as display:
        return run(
            index,
            full=full,
            repair=repair,
            generation=generation,
            every=every,
            store=store,
            memory=memory,
            threads=threads,
            observer=broadcast([display, observer]),
            stop=stop,
        )


def export(
    index: PathOrStr,
    path: PathOrStr,
    *,
    overwrite: bool = False,
    nprobe: int | None = None,
    progress: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Write an index as one file that plain faiss opens, in bounded memory.

    ``faiss.read_index(path)`` gives an index whose search finds what the codes of this one find
    (``rerank=0``), the lists with the nearest centroids looked into: with the ids of this one, all segments
    merged, without dead rows. Of a row that is in two lists (``spill``) the entry in the nearer one stays.
    For ``cosine`` the file normalises queries itself. Vectors are not in it, unless the code is ``Flat``.

    Parameters
    ----------
    index : path
    path : path
        The file. It appears when it is whole.
    overwrite : bool
        Replace a file of faiss's that is there.
    nprobe : int, optional
        Lists that faiss looks into where its caller sets no ``nprobe``; default: those of a search here.
    progress, observer, stop
        As for ``build``.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``generation``, ``out``, ``metric``, ``rows``, ``nprobe``, ``bytes``,
        ``stages``, ``seconds``, ``peak_private_bytes``.

    Raises
    ------
    IndexDirError
        There is no finished index, or it is damaged.
    ConflictError
        The file is there, or something else than a file of faiss's.
    ArgumentError
        ``path`` is a store of the index, or within an index.
    ResourceError, Stopped
        As for ``build``; nothing is written.
    """
    from ooc.cli.progress import observer_for
    from ooc.events import broadcast
    from ooc.exchange.export import export as run

    with observer_for(progress) as display:
        watching = broadcast([display, observer])
        return run(index, path, overwrite=overwrite, nprobe=nprobe, observer=watching, stop=stop)


def import_index(
    path: PathOrStr,
    index: PathOrStr,
    *,
    store: StoreLike | None = None,
    metric: Metric | None = None,
    lists: PathOrStr | None = None,
    progress: bool = False,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Take over an index that was made with plain faiss: a copy of its lists, in bounded memory.

    Parameters
    ----------
    path : path
        What ``faiss.write_index`` wrote: an ``IndexIVF`` with codes Flat, scalar quantizer, PQ, RaBitQ or
        EDEN, alone or behind transforms; its lists within or on disk. It is only read.
    index : path
        The directory to make; it must not exist or be empty.
    store : store, optional
        The vectors, row ``i`` being that of id ``i``. With it searches re-rank exactly; some rows are
        compared with their codes. Without it they go by the codes alone (``rerank=0``), any ids are taken,
        and rows that come later can be re-ranked no more than those.
    metric : {"l2", "ip", "cosine"}, optional
        Default: as the file says. ``"cosine"``: the index is of inner products, and its vectors were brought
        to unit length; here queries and further rows then are.
    lists : path, optional
        Where its lists are, if they are on disk and neither where the file says nor beside it.
    progress, observer, stop
        As for ``build``.

    Returns
    -------
    dict
        JSON-ready: ``index``, ``generation``, ``rows``, ``ids`` (one more than the largest), ``factory``,
        ``metric``, ``vectors`` (whether there are any), ``left_out`` (of the file, in words), ``bytes`` (of
        lists), ``stages``, ``seconds``, ``peak_private_bytes``.

    Raises
    ------
    PlanError
        An index of a kind that cannot be taken over; the message says what can.
    DataError
        Ids below 0, or the same one twice.
    IndexDirError
        The file is damaged, or its lists are missing.
    ConflictError
        The directory holds something, or the store does not hold the vectors of the index.
    ArgumentError, StoreError, ResourceError, Stopped
        As for ``build``; nothing is left behind.
    """
    from ooc.cli.progress import observer_for
    from ooc.events import broadcast
    from ooc.exchange.take import import_index as run

    with observer_for(progress) as display:
        watching = broadcast([display, observer])
        return run(path, index, store=store, metric=metric, lists=lists, observer=watching, stop=stop)
