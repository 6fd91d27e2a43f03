"""Every command that changes files, on collections of some hundred rows: what it begins with, what it leaves.

Each is run in a directory of its own, ``place``, always the same way. ``before`` makes what the command
begins with; ``run`` is the command; ``look`` sees that what was published answers as it did before the
command or as it does after.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import ooc
from ooc import durable, events
from ooc.build import sizes
from ooc.engine import sketch
from ooc.testing.faults import injected
from ooc.types import AnyArray, FloatArray
from tests.update.model import Model

#: Two shards and a half, of 1024 rows each, which is the least.
N, D = 2500, 8

IDS = np.arange(3, 200, 7)


def loaded() -> None:
    """What the server does before it forks: a build of few rows is otherwise all measuring of recall."""
    sizes._WITNESSES = 12
    warnings.simplefilter("ignore", ooc.RecallWarning)
    for name in (
        "numpy.ma",
        "pyarrow.parquet",
        "ooc.evaluation.evaluate",
        "ooc.search.stream",
        "ooc.stores.convert",
        "zarr",  # Python itself stumbles over modules for which there is no memory: SystemError
    ):
        importlib.import_module(name)


def vectors(seed: int, n: int) -> FloatArray:
    """Whole numbers, whose distances are exact; as int8 too, where the largest of each row is 127."""
    x = np.random.default_rng([seed, n]).integers(-9, 10, (n, D)).astype(np.float32)
    x[:, 0] = 127
    return x


X, QUERIES = vectors(1, N), vectors(2, 6) + np.float32(0.25)


def model(change: str = "") -> Model:
    """What the index ``i.ooc`` answers that ``built`` made, after a change."""
    answers = Model(X[:N], "l2")
    if change in ("append", "compact", "gc", "shed"):
        answers.append(vectors(5, 1500))
    if change in ("upsert", "compact", "gc"):
        answers.upsert(IDS, vectors(6, len(IDS)))
    if change in ("delete", "compact", "gc"):
        answers.delete(np.arange(0, 900, 2))
    if change == "shed":
        answers.delete(np.arange(0, N + 1500, 2))
    return answers


def built(place: Path, **options: Any) -> None:
    """A store, and an index of it."""
    if not (place / "x.npy").exists():
        np.save(place / "x.npy", X)
    settings: dict[str, Any] = {"factory": "IVF8,SQ8", "shard_rows": 1024, "threads": 2, **options}
    ooc.build(place / "x.npy", place / "i.ooc", **settings)


def changed(place: Path, **options: Any) -> None:
    """An index of several segments and generations, with dead rows and rows of its own."""
    built(place, **options)
    ooc.append(place / "i.ooc", vectors(5, 1500))
    ooc.upsert(place / "i.ooc", IDS, vectors(6, len(IDS)))
    ooc.delete(place / "i.ooc", np.arange(0, 900, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A command.

    Attributes
    ----------
    before : callable
        Makes what it begins with in ``place``.
    run : callable
        The command: ``run(place, observer)``. Run again after an interruption it goes on.
    answers : tuple of str
        The models of which the index is one at any moment; the last is the one that the command leaves.
        Empty where there is no index before.
    looks : callable
        Sees that what else is there is what it must be.
    shard_rows : int
        Rows of stage ``fill`` that may be done twice after a kill; 0 where nothing is filled.
    once : bool
        Run again after it came to its end, it would do its work once more.
    not_same : tuple of str
        Names of files whose bytes are not promised.
    """

    before: Callable[[Path], None]
    run: Callable[[Path, events.Observer], Any]
    answers: tuple[str, ...] = ()
    looks: Callable[[Path], None] = lambda place: None
    shard_rows: int = 0
    once: bool = False
    not_same: tuple[str, ...] = ()

    def look(self, place: Path, *, done: bool) -> None:
        """See that what is published answers as it must; ``done``: as after the command."""
        self.looks(place)
        if (place / "i.ooc/CURRENT").exists():
            allowed = self.answers[-1:] if done else self.answers
            errors = []
            for change in allowed:
                try:
                    model(change).check_at(place / "i.ooc", QUERIES, 5)
                    return
                except AssertionError as error:
                    errors.append(error)
            raise errors[-1]
        assert not done or not self.answers
        assert not self.answers or "none" in self.answers

    def files(self, place: Path) -> dict[str, str]:
        """All files of the place and the digests of their bytes, as far as they are promised."""
        found = {}
        for path in sorted(place.rglob("*")):
            name = str(path.relative_to(place))
            same = path.is_file() and path.name != "lock" and not name.endswith(".report.json")
            same = same and path.name not in self.not_same
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if same else ""
        return found


def _only_store(place: Path) -> None:
    np.save(place / "x.npy", X)
    np.save(place / "q.npy", QUERIES)


def _built(place: Path) -> None:
    built(place)
    np.save(place / "more.npy", vectors(5, 1500))


def keys_of(first: int, stop: int) -> AnyArray:
    """Keys of rows."""
    return np.array([f"row-{i}" for i in range(first, stop)], dtype=object)


def _with_keys(place: Path) -> None:
    built(place, keys=keys_of(0, N))


def _half_dead(place: Path) -> None:
    """Rows of its own, with keys, of which every other one is dead."""
    built(place, keys=keys_of(0, N), copy_vectors="always")
    ooc.append(place / "i.ooc", vectors(5, 1500), keys=keys_of(N, N + 1500))
    ooc.delete(place / "i.ooc", np.arange(0, N + 1500, 2))


def _build(place: Path, tell: events.Observer) -> None:
    ooc.build(place / "x.npy", place / "i.ooc", factory="IVF8,SQ8", shard_rows=1024, threads=2, observer=tell)


def _build_copies(place: Path, tell: events.Observer) -> None:
    sketch._SKETCH_FROM = sketch._SKETCH_FROM_NLIST = 1
    durable._FLUSH_BYTES = 8192
    ooc.build(
        place / "x.npy",
        place / "i.ooc",
        factory="HR,IVF16,RaBitQ",
        shard_rows=1024,
        copy_vectors="always",
        copy_dtype="int8",
        spill="on",
        scratch=place / "scratch",
        queries=place / "q.npy",
        observer=tell,
    )


def _parts(place: Path, tell: events.Observer) -> None:
    ooc.train(place / "x.npy", place / "i.ooc", factory="IVF8,SQ8", shard_rows=1024, observer=tell)
    ooc.fill(place / "x.npy", place / "i.ooc", observer=tell)
    ooc.merge(place / "x.npy", place / "i.ooc", observer=tell)


def _template(place: Path, tell: events.Observer) -> None:
    ooc.build(place / "more.npy", place / "j.ooc", template=place / "i.ooc", observer=tell)


def _rollback(place: Path, tell: events.Observer) -> None:
    ooc.rollback(place / "i.ooc", 1)


def _gc(place: Path, tell: events.Observer) -> None:
    ooc.gc(place / "i.ooc")


def _compacted(place: Path) -> None:
    changed(place)
    ooc.compact(place / "i.ooc")


def _index_of_copies(place: Path) -> None:
    changed(place, copy_vectors="always")


def _stopped(place: Path, tell: events.Observer) -> None:
    """Stopped while it writes, and run again."""
    stop = threading.Event()

    def observe(event: events.Event) -> None:
        if isinstance(event, events.StageStarted):
            stop.set()

    try:
        ooc.compact(place / "i.ooc", observer=observe, stop=stop)
    except ooc.Stopped:
        ooc.compact(place / "i.ooc", observer=tell)


def _search(name: str) -> Callable[[Path, events.Observer], None]:
    def run(place: Path, tell: events.Observer) -> None:
        with ooc.open_index(place / "i.ooc") as index:
            index.search_to(X[:900], place / name, k=5, batch=300, overwrite=True, observer=tell)

    return run


def _exact(name: str) -> Callable[[Path, events.Observer], None]:
    def run(place: Path, tell: events.Observer) -> None:
        ooc.exact(place / "x.npy", X[:50], k=5, out=place / name, overwrite=True, observer=tell)

    return run


def _evaluate(place: Path, tell: events.Observer) -> None:
    ooc.evaluate(place / "i.ooc", QUERIES, html=place / "r.html", plot=place / "r.svg", overwrite=True)


def _convert(name: str, **options: Any) -> Callable[[Path, events.Observer], None]:
    def run(place: Path, tell: events.Observer) -> None:
        try:
            ooc.convert(place / "x.npy", place / name, observer=tell, **options)
        except ooc.ConflictError as error:
            if error.kind != "store-exists":  # it was whole when it was killed
                raise

    return run


def _converted(name: str) -> Callable[[Path], None]:
    def look(place: Path) -> None:
        if (place / name.partition("::")[0]).exists():
            with ooc.open_store(place / name) as store:
                np.testing.assert_array_equal(store.read(0, store.n), X)

    return look


def _grow(name: str, **options: Any) -> Callable[[Path, events.Observer], None]:
    def run(place: Path, tell: events.Observer) -> None:
        with ooc.create_store(place / name, d=D, chunk_rows=600, append=True, **options) as writer:
            while writer.n < N:
                writer.append(X[writer.n : writer.n + 500])
                if writer.n == 1500:
                    writer.flush()

    return run


def _grown(name: str) -> Callable[[Path], None]:
    def look(place: Path) -> None:
        if (place / name).exists() and (name.endswith(".h5") or (place / name / "zarr.json").exists()):
            try:
                with ooc.open_store(place / name) as store:
                    np.testing.assert_array_equal(store.read(0, store.n), X[: store.n])
            except ooc.StoreError as error:
                if error.kind != "store-empty":
                    raise

    return look


class _KillInCommit:
    """Kills the process when it has a journal and has begun to write what that is of."""

    def __init__(self) -> None:
        self._journaled = False

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        made = call(*args)
        if self._journaled and operation == "write":
            os.kill(os.getpid(), signal.SIGKILL)
        self._journaled |= operation == "rename" and path.name.endswith(".journal")
        return made


def _half_committed(place: Path) -> None:
    """A store whose writer was killed in the middle of a commit."""
    child = os.fork()
    if child == 0:
        with injected(_KillInCommit()):
            _grow("g.h5")(place, events.ignore)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _theirs(place: Path) -> None:
    """A file of plain faiss, with ids in no order."""
    theirs = faiss.index_factory(D, "IVF8,SQ8")
    theirs.train(X)
    theirs.add_with_ids(X, np.random.default_rng(4).permutation(10 * N)[:N])
    faiss.write_index(theirs, str(place / "theirs.faiss"))


def _import(place: Path, tell: events.Observer) -> None:
    try:
        ooc.import_index(place / "theirs.faiss", place / "j.ooc", observer=tell)
    except ooc.ConflictError:
        if not (place / "j.ooc/CURRENT").exists():
            raise
        ooc.gc(place / "j.ooc")  # it was whole when it was killed: what is left is for the next change


def _damaged(place: Path) -> None:
    """An index with a bit turned in the codes of two segments, which changes no answer."""
    changed(place)
    for name in ("s1", "s2"):
        lists = place / f"i.ooc/segments/{name}/lists.ivfdata"
        data = bytearray(lists.read_bytes())
        data[3] ^= 1
        lists.write_bytes(data)


def _repair(place: Path, tell: events.Observer) -> None:
    figures = ooc.verify(place / "i.ooc", full=True, repair=True, observer=tell)
    if not figures["sound"]:
        raise ooc.IndexDirError(f"not repaired: {figures['findings']}", kind="index-damaged")


def _old_results(name: str) -> Callable[[Path], None]:
    def before(place: Path) -> None:
        built(place)
        _search(name)(place, events.ignore)

    return before


OPERATIONS: dict[str, Operation] = {
    "build": Operation(before=_only_store, run=_build, answers=("none", ""), shard_rows=1024),
    "build-copies": Operation(before=_only_store, run=_build_copies, answers=("none", ""), shard_rows=1024),
    "train-fill-merge": Operation(before=_only_store, run=_parts, answers=("none", ""), shard_rows=1024),
    "build-template": Operation(before=_built, run=_template, answers=("",), shard_rows=1500),
    "append-store": Operation(
        before=_built,
        run=lambda place, tell: ooc.append(place / "i.ooc", place / "more.npy", observer=tell),
        answers=("", "append"),
        shard_rows=1500,
    ),
    "append-array": Operation(
        before=built,
        run=lambda place, tell: ooc.append(place / "i.ooc", vectors(5, 1500), observer=tell),
        answers=("", "append"),
        shard_rows=1500,
        once=True,
    ),
    "upsert": Operation(
        before=built,
        run=lambda place, tell: ooc.upsert(place / "i.ooc", IDS, vectors(6, len(IDS)), observer=tell),
        answers=("", "upsert"),
        shard_rows=len(IDS),
        once=True,
    ),
    "build-keys": Operation(
        before=_only_store,
        run=lambda place, tell: built(place, keys=keys_of(0, N), observer=tell),
        answers=("none", ""),
        shard_rows=1024,
    ),
    "append-keys": Operation(
        before=_with_keys,
        run=lambda place, tell: ooc.append(
            place / "i.ooc", vectors(5, 1500), keys=keys_of(N, N + 1500), observer=tell
        ),
        answers=("", "append"),
        shard_rows=1500,
        once=True,
    ),
    "upsert-keys": Operation(
        before=_with_keys,
        run=lambda place, tell: ooc.upsert(
            place / "i.ooc", vectors=vectors(6, len(IDS)), keys=keys_of(0, N)[IDS], observer=tell
        ),
        answers=("", "upsert"),
        shard_rows=len(IDS),
        once=True,
    ),
    "delete": Operation(
        before=built,
        run=lambda place, tell: ooc.delete(place / "i.ooc", np.arange(0, 900, 2)),
        answers=("", "delete"),
    ),
    "compact": Operation(
        before=changed,
        run=lambda place, tell: ooc.compact(place / "i.ooc", observer=tell),
        answers=("compact",),
    ),
    "compact-own": Operation(
        before=_half_dead,
        run=lambda place, tell: ooc.compact(place / "i.ooc", observer=tell),
        answers=("shed",),
    ),
    "compact-stopped": Operation(before=changed, run=_stopped, answers=("compact",)),
    "evaluate-update": Operation(
        before=changed,
        run=lambda place, tell: ooc.evaluate(place / "i.ooc", update=True, observer=tell),
        answers=("compact",),
        once=True,
    ),
    "gc": Operation(before=_compacted, run=_gc, answers=("gc",)),
    "gc-copies": Operation(before=_index_of_copies, run=_gc, answers=("gc",)),
    "rollback": Operation(before=changed, run=_rollback, answers=("compact", "")),
    **{
        f"search-{suffix}": Operation(
            before=_old_results(f"r.{suffix}") if suffix in ("zarr", "npz") else built,
            run=_search(f"r.{suffix}"),
            answers=("",),
        )
        for suffix in ("npz", "h5", "zarr", "parquet")
    },
    "search-keys": Operation(before=_with_keys, run=_search("k.zarr"), answers=("",)),
    **{
        f"exact-{suffix}": Operation(before=_only_store, run=_exact(f"e.{suffix}"))
        for suffix in ("npy", "ivecs", "h5")
    },
    "evaluate": Operation(before=built, run=_evaluate, answers=("",), not_same=("r.html", "r.svg")),
    **{
        f"convert-{name}": Operation(
            before=_only_store, run=_convert(name, **options), looks=_converted(name)
        )
        for name, options in {
            "y.fvecs": {},
            "y.h5": {},
            "y.hdf5": {"compression": "gzip", "chunk_rows": 700},
            "y.zarr": {"chunk_rows": 700},
            "y.parquet": {"chunk_rows": 700},
            "y.arrow": {"chunk_rows": 700},
        }.items()
    },
    "grow-h5": Operation(before=lambda place: None, run=_grow("g.h5"), looks=_grown("g.h5")),
    "grow-h5-again": Operation(before=_half_committed, run=_grow("g.h5"), looks=_grown("g.h5")),
    "grow-zarr": Operation(before=lambda place: None, run=_grow("g.zarr"), looks=_grown("g.zarr")),
    "export": Operation(
        before=lambda place: built(place, spill="on"),
        run=lambda place, tell: ooc.export(
            place / "i.ooc", place / "out.faiss", overwrite=True, observer=tell
        ),
        answers=("",),
    ),
    "import": Operation(before=_theirs, run=_import),
    "create-h5": Operation(before=lambda place: None, run=lambda place, tell: _whole(place)),
}


def _whole(place: Path) -> None:
    if not (place / "w.h5").exists():
        with ooc.create_store(place / "w.h5", d=D, n=N) as writer:
            writer.append(X)


#: Without fault points of their own. What a repair cannot read it makes anew.
REPAIRS: dict[str, Operation] = {
    # Once it is published there is nothing to repair, and what is left of it goes with the next change.
    "repair": Operation(before=_damaged, run=_repair, answers=("compact",), shard_rows=2 * N, once=True),
}


def known(name: str) -> Operation:
    """The operation of that name."""
    return {**OPERATIONS, **REPAIRS}[name]


def on_memory_disk() -> Path | None:
    """Where files that need not survive the machine are quick to sync."""
    place = Path("/dev/shm")
    return place if place.is_dir() and os.access(place, os.W_OK) else None
