"""Kills, power cuts and refusals that once did harm, each by itself; the tests beside go through all."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import h5py
import numpy as np
import pytest

import ooc
from ooc.build import workers
from ooc.durable import make_directory, sync_directory, write_bytes
from ooc.index import dead
from ooc.mapping import see_room
from ooc.stores.hdf5_journal import JournaledFile
from ooc.testing.faults import Refuse, injected
from ooc.types import FloatArray
from tests.helpers import embeddings, killed, rewrite, tree, unsealed

N, D = 1500, 16
CODE = "IVF16,SQ8"


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    return embeddings(N + 400, D, seed=5)


@pytest.fixture(scope="module")
def base(rows: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.npy"
    np.save(path, rows[:N])
    np.save(path.with_name("more.npy"), rows[N:])
    return path


@pytest.fixture(scope="module")
def built(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("built") / "i.ooc"
    ooc.build(base, path, factory=CODE)
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "i.ooc")
    return tmp_path / "i.ooc"


def numbers(index: Path) -> list[int]:
    return [one["generation"] for one in ooc.generations(index)]


def found(index: Path, rows: FloatArray, **options: Any) -> FloatArray:
    with ooc.open_index(index) as opened:
        return np.asarray(opened.search(rows[::100], 3, **options)[0])


def test_a_build_killed_at_its_first_file_goes_on(built: Path, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "i.ooc"
    killed(f"ooc.build({str(base)!r}, {str(path)!r}, factory={CODE!r})", at=("replace", 1, "ooc.json"))
    assert [entry.name for entry in path.iterdir()] == [".ooc.json.partial"]
    ooc.build(base, path, factory=CODE)
    assert tree(path) == tree(built)


def test_results_and_stores_are_the_same_bytes_whenever_they_are_written(
    built: Path, rows: FloatArray, tmp_path: Path
) -> None:
    stores: dict[str, dict[str, Any]] = {"n.h5": {"n": 30}, "x.h5": {}, "z.h5": {"compression": "gzip"}}
    for place in (tmp_path / "a", tmp_path / "b"):
        place.mkdir()
        with ooc.open_index(built) as opened:
            for name in ("hits.h5", "hits.npz", "hits.zarr", "hits.parquet"):
                opened.search_to(rows[:100], place / name, k=5)
        for name, options in stores.items():
            with ooc.create_store(place / name, d=D, **options) as writer:
                writer.append(rows[:30])
        time.sleep(2.1)  # archives tell two seconds apart
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_disk_that_is_full_at_any_write_of_results_is_told(
    built: Path, rows: FloatArray, tmp_path: Path
) -> None:
    """An archive that cannot be closed once hid what had happened."""
    refused = 0
    with ooc.open_index(built) as opened:
        for at in range(100):
            full = Refuse(errno.ENOSPC, ("create", "write", "truncate"), at)
            with contextlib.suppress(ooc.ResourceError), injected(full):
                opened.search_to(rows[:50], tmp_path / "hits.npz", k=5)
                break
            assert not list(tmp_path.iterdir())
            refused += 1
    assert 5 < refused < 100


@pytest.mark.parametrize("at", [("rmdir", 0, "ids"), ("unlink", 0, "zarr.json"), ("replace", 1, "hits.zarr")])
def test_results_in_zarr_that_were_being_replaced_are_replaced(
    at: tuple[str, int, str], built: Path, rows: FloatArray, tmp_path: Path
) -> None:
    path, whole = tmp_path / "hits.zarr", tmp_path / "whole.zarr"
    np.save(tmp_path / "xq.npy", rows[:50])
    with ooc.open_index(built) as opened:
        for target in (path, whole):
            opened.search_to(tmp_path / "xq.npy", target, k=5)
        search = f"index.search_to({str(tmp_path / 'xq.npy')!r}, {str(path)!r}, k=5, overwrite=True)"
        killed(f"index = ooc.open_index({str(built)!r})\n{search}", at=at)
        opened.search_to(tmp_path / "xq.npy", path, k=5, overwrite=True)
    assert tree(path) == tree(whole)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["hits.zarr", "whole.zarr", "xq.npy"]


def test_copied_rows_have_their_name_before_a_record_counts_on_them(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a file without a flushed name is not there, whatever was flushed of its bytes."""
    steps: list[tuple[str, str]] = []

    def noted(name: str, place_of: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*args: Any, **options: Any) -> Any:
            result = real(*args, **options)
            steps.append((name, place_of(result, *args)))
            return result

        monkeypatch.setattr(os, name, call)

    noted("fsync", lambda result, fd: str(Path(f"/proc/self/fd/{fd}").readlink()))
    noted("replace", lambda result, source, target: os.fspath(target))
    path = tmp_path / "i.ooc"
    ooc.build(base, path, factory=CODE, copy_vectors="always")
    rows = next(i for i, (_, at) in enumerate(steps) if at.endswith("segment/vectors.npy"))
    names = next(i for i, (call, at) in enumerate(steps) if call == "fsync" and at.endswith("/segment"))
    record = next(i for i, (_, at) in enumerate(steps) if "/shards/" in at and at.endswith(".json"))
    assert max(rows, names) < record


def test_a_change_killed_before_it_was_live_is_no_generation(index: Path, rows: FloatArray) -> None:
    before = found(index, rows)
    killed(f"ooc.delete({str(index)!r}, np.arange(9))", at=("replace", 1, "CURRENT"))
    assert (index / "generations" / "2.json").exists()
    assert numbers(index) == [1]
    with pytest.raises(ooc.ArgumentError, match="no generation 2"):
        ooc.rollback(index, 2)
    np.testing.assert_array_equal(found(index, rows), before)
    assert [entry.name for entry in (index / "generations").glob("2.*")] == []  # the rollback cleared up
    ooc.delete(index, np.arange(9))
    assert numbers(index) == [1, 2]


def test_a_change_killed_at_any_rename_ends_with_the_same_bytes(
    index: Path, base: Path, tmp_path: Path
) -> None:
    whole, more = tmp_path / "whole.ooc", base.with_name("more.npy")
    shutil.copytree(index, whole)
    ooc.append(whole, more)
    for ending in ("segments/s2", "2.report.json", "2.json", "CURRENT"):
        path = tmp_path / ending.replace("/", "-")
        shutil.copytree(index, path)
        killed(f"ooc.append({str(path)!r}, {str(more)!r})", at=("replace", 1, ending))
        assert numbers(path) == [1]
        ooc.append(path, more)
        assert tree(path) == tree(whole), ending


def test_an_index_that_went_back_keeps_what_came_after(index: Path, rows: FloatArray) -> None:
    ooc.append(index, rows[N : N + 100])
    ooc.delete(index, np.arange(50))
    answers = found(index, rows)
    ooc.rollback(index, 1)
    ooc.delete(index, np.arange(100, 110))
    killed(f"ooc.delete({str(index)!r}, np.arange(9))", at=("replace", 1, "CURRENT"))
    ooc.rollback(index, 1)
    assert numbers(index) == [1, 2, 3, 4]
    ooc.delete(index, np.arange(9))
    assert numbers(index) == [1, 2, 3, 4, 5]
    ooc.rollback(index, 3)
    np.testing.assert_array_equal(found(index, rows), answers)
    assert ooc.gc(index)["removed"] == [1, 2, 4, 5]
    np.testing.assert_array_equal(found(index, rows), answers)


@pytest.fixture
def published_and_killed(index: Path, base: Path) -> Path:
    """An index to which rows came, of an array, by a process that was killed before it had cleared up."""
    more = f"np.load({str(base.with_name('more.npy'))!r})"
    killed(f"from ooc.update import append\nappend.forget = die\nooc.append({str(index)!r}, {more})")
    assert numbers(index) == [1, 2]
    return index


def test_an_array_whose_appending_was_killed_is_not_appended_twice(
    published_and_killed: Path, rows: FloatArray
) -> None:
    index = published_and_killed
    assert ooc.append(index, rows[N:])["added"] == 0
    with ooc.open_index(index) as opened:
        assert opened.n == N + 400
    assert not (index / "build").exists()
    assert ooc.append(index, rows[N:])["added"] == 400  # asked for again, it is meant


@pytest.mark.parametrize(
    "change",
    [
        lambda index, rows: ooc.append(index, rows[:7]),
        lambda index, rows: ooc.upsert(index, np.arange(3), rows[:3]),
        lambda index, rows: ooc.delete(index, np.arange(3)),
        lambda index, rows: ooc.compact(index),
        lambda index, rows: ooc.rollback(index, 1),
        lambda index, rows: ooc.gc(index, keep=5),
    ],
    ids=["append", "upsert", "delete", "compact", "rollback", "gc"],
)
def test_what_was_published_and_not_cleared_up_is_in_no_ones_way(
    published_and_killed: Path, rows: FloatArray, change: Callable[[Path, FloatArray], Any]
) -> None:
    change(published_and_killed, rows)
    assert not (published_and_killed / "build").exists()
    assert numbers(published_and_killed)[:2] == [1, 2]


@pytest.mark.parametrize("verb", ["append", "upsert"])
def test_what_was_gone_back_from_is_not_taken_for_a_change_that_was_killed(
    index: Path, base: Path, rows: FloatArray, verb: str
) -> None:
    more = f"np.load({str(base.with_name('more.npy'))!r})"
    given = "" if verb == "append" else "np.arange(400), "
    change = f"ooc.{verb}({str(index)!r}, {given}{more})"
    exec(change, {"ooc": ooc, "np": np})
    answers = found(index, rows)
    ooc.rollback(index, 1)
    killed(change, at=("replace", 1, "segment.json"))
    assert numbers(index) == [1, 2]
    exec(change, {"ooc": ooc, "np": np})
    assert numbers(index) == [1, 2, 3]
    np.testing.assert_array_equal(found(index, rows), answers)


def test_building_again_leaves_an_interrupted_change_alone(index: Path, base: Path, rows: FloatArray) -> None:
    more = base.with_name("more.npy")
    killed(f"ooc.append({str(index)!r}, {str(more)!r})", at=("replace", 1, "segment.json"))
    ooc.build(base, index, factory=CODE)
    assert list((index / "build").glob("*/shards/*.json"))
    ooc.append(index, more)
    assert numbers(index) == [1, 2]


def test_an_upsert_that_was_published_and_not_cleared_up_is_not_made_again(
    index: Path, base: Path, rows: FloatArray
) -> None:
    more = str(base.with_name("more.npy"))
    killed(
        "from ooc.update import append\nappend.forget = die\n"
        f"ooc.upsert({str(index)!r}, np.arange(400), np.load({more!r}))"
    )
    figures = ooc.upsert(index, np.arange(400), rows[N:])
    assert (figures["generation"], numbers(index)) == (2, [1, 2])
    # Of other ids it is another change, though of the same vectors.
    assert ooc.upsert(index, np.arange(7, 407), rows[N:])["generation"] == 3


def test_a_file_that_is_read_in_pieces_is_read_whole(
    rows: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["x"] = rows
    data, read = path.read_bytes(), os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, min(size, 1000), at))
    file = JournaledFile(path)
    whole = bytearray(len(data))
    file.readinto(memoryview(whole))
    file.close()
    assert bytes(whole) == data


def test_a_journal_that_cannot_be_removed_leaves_nothing_locked(rows: FloatArray, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    writer = ooc.create_store(path, d=D)
    writer.append(rows[:30])
    with pytest.raises(ooc.OocError), injected(Refuse(errno.EIO, ("remove",))):
        writer.close()
    with ooc.create_store(path, d=D, append=True) as again:
        assert again.n == 30


def test_a_directory_that_cannot_be_flushed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if Path(path) == tmp_path:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        sync_directory(tmp_path)
    for write in (lambda: write_bytes(tmp_path / "x", b"x"), lambda: make_directory(tmp_path / "d")):
        with pytest.raises(ooc.ResourceError, match="Too many open files") as caught:
            write()
        assert caught.value.kind == "io"


def test_a_full_disk_keeps_nobody_from_the_lock(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = {name: getattr(os, name) for name in ("pwrite", "ftruncate")}
    refused = itertools.count()

    def full(name: str) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            if Path(f"/proc/self/fd/{fd}").readlink().name == "lock":
                next(refused)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real[name](fd, *args)

        return call

    for name in real:
        monkeypatch.setattr(os, name, full(name))
    ooc.delete(index, np.arange(9))
    assert next(refused) > 0
    assert numbers(index) == [1, 2]


@pytest.mark.parametrize(("refused", "kind"), [(errno.ENOMEM, "memory-refused"), (errno.EMFILE, "io")])
@pytest.mark.parametrize("ending", ["2.dead", "CURRENT", "2.json", "spread.npy", "ooc.json"])
def test_an_index_is_not_called_damaged_where_the_system_lacks_something(
    index: Path, ending: str, refused: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ooc.delete(index, np.arange(9))
    record = index / "generations" / "2.json"
    # How rows spread is read where the order of the lists goes by it.
    rewrite(record, order={**unsealed(record)["order"], "handicap": 1.0})

    def refuse(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and Path(path).name == ending:
                raise OSError(refused, os.strerror(refused), str(path))
            return real(path, *args, **options)

        return call

    monkeypatch.setattr(Path, "open", refuse(Path.open))
    monkeypatch.setattr(np, "load", refuse(np.load))
    with injected(_Unreadable(ending, refused)), pytest.raises(ooc.ResourceError) as caught:
        ooc.open_index(index)
    assert caught.value.kind == kind
    assert caught.value.hint


def test_a_library_that_finds_no_memory_is_told_as_such(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ImportError("pyroaring.so: failed to map segment from shared object")

    monkeypatch.setattr(dead, "_bitmap", refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        ooc.delete(index, np.arange(9))
    assert caught.value.kind == "memory-refused"


@pytest.mark.parametrize("said", ["can't start new thread", "x.so: failed to map segment"])
def test_no_memory_for_a_thread_or_a_library_is_told_as_such(
    index: Path, rows: FloatArray, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise (RuntimeError if "thread" in said else ImportError)(said)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        ooc.build(rows, tmp_path / "j.ooc", factory=CODE)
    assert caught.value.kind == "memory-refused"
    assert said in caught.value.message
    monkeypatch.undo()
    assert ooc.build(rows, tmp_path / "j.ooc", factory=CODE)["generation"] == 1


def test_other_errors_of_that_kind_stay_what_they_are() -> None:
    @ooc.ResourceError.if_refused("trying")
    def fail() -> None:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        fail()


def test_a_search_that_is_refused_memory_says_so_and_leaves_no_file(
    index: Path, rows: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(shutil, "copyfileobj", refuse)
    with ooc.open_index(index) as opened, pytest.raises(ooc.ResourceError) as caught:
        opened.search_to(rows, tmp_path / "r.npz")
    assert caught.value.kind == "memory-refused"
    assert [path.name for path in tmp_path.iterdir()] == ["i.ooc"]


def test_no_memory_for_the_thread_that_draws_the_rest_of_the_sample(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "ooc-sample":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        ooc.build(base, tmp_path / "j.ooc", factory=CODE)
    assert caught.value.kind == "memory-refused"
    assert not list(tmp_path.iterdir())


def test_where_blas_would_find_no_memory_nothing_is_multiplied(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(size_bytes: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    workers._see_room.cache_clear()
    monkeypatch.setattr(workers, "see_room", refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        ooc.build(base, tmp_path / "j.ooc", factory=CODE)
    assert caught.value.kind == "memory-refused"
    monkeypatch.undo()
    ooc.build(base, tmp_path / "j.ooc", factory=CODE)


def test_room_that_no_process_has_is_refused() -> None:
    see_room(1 << 20)
    with pytest.raises(OSError, match="memory"):
        see_room(1 << 60)


def test_a_store_is_not_made_where_its_library_finds_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("libhdf5.so: failed to map segment from shared object")

    monkeypatch.setattr("ooc.stores.write.existing_parent", refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        ooc.create_store(tmp_path / "s.h5", d=D)
    assert caught.value.kind == "memory-refused"


def test_a_file_of_faiss_is_not_called_damaged_where_it_cannot_be_mapped(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Error: 'ails->ptr != MAP_FAILED' failed: could not mmap: Cannot allocate memory")

    monkeypatch.setattr(faiss, "read_index", refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        ooc.open_index(index)
    assert caught.value.kind == "memory-refused"


@pytest.mark.parametrize("refused", [errno.EMFILE, errno.EIO])
def test_a_journal_that_cannot_be_read_now_is_not_thrown_away(
    rows: FloatArray, tmp_path: Path, refused: int
) -> None:
    code = f"""
from ooc.stores import hdf5_journal
x = np.load({str(tmp_path / "x.npy")!r})
with ooc.create_store({str(tmp_path / "g.h5")!r}, d=x.shape[1], chunk_rows=100, append=True) as writer:
    writer.append(x[:500])
    writer.flush()
    hdf5_journal.write_bytes = lambda *args, real=hdf5_journal.write_bytes: (real(*args), die())
    writer.append(x[500:1000])
"""
    np.save(tmp_path / "x.npy", rows)
    killed(code)
    assert (tmp_path / ".g.h5.journal").exists()
    for use in (
        lambda: ooc.create_store(tmp_path / "g.h5", d=D, chunk_rows=100, append=True),
        lambda: ooc.open_store(tmp_path / "g.h5"),
    ):
        with (
            injected(_Unreadable(".journal", refused)),
            pytest.raises((ooc.ResourceError, ooc.StoreError)) as caught,
        ):
            use()
        assert os.strerror(refused) in caught.value.message
        assert (tmp_path / ".g.h5.journal").exists()
    with ooc.open_store(tmp_path / "g.h5") as store:
        np.testing.assert_array_equal(store.read(0, store.n), rows[: store.n])
        assert store.n >= 500


class _Unreadable:
    """Files whose names end so cannot be read."""

    def __init__(self, ending: str, refused: int) -> None:
        self._ending, self._refused = ending, refused

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if operation == "read" and path.name.endswith(self._ending):
            raise OSError(self._refused, os.strerror(self._refused), str(path))
        return call(*args)


def test_an_unfinished_conversion_whose_record_cannot_be_opened_now_is_kept(
    base: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    stop.set()
    out = tmp_path / "y.zarr"
    with pytest.raises(ooc.Stopped):
        ooc.convert(base, out, chunk_rows=100, stop=stop)
    left = sorted(path.name for path in tmp_path.iterdir())
    with (
        injected(_Unreadable(".convert.json", errno.EMFILE)),
        pytest.raises(ooc.ResourceError, match="Too many open files"),
    ):
        ooc.convert(base, out, chunk_rows=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    ooc.convert(base, out, chunk_rows=100)


def test_an_index_that_cannot_be_opened_for_its_files_says_so(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        ooc.open_index(index)
    assert caught.value.kind == "io"


def test_a_scratch_directory_that_cannot_be_removed_now_is_removed_later(base: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    watcher = Refuse(errno.EIO, ("remove-directory",), times=None)
    with injected(watcher), pytest.raises(ooc.ResourceError):
        ooc.build(base, tmp_path / "j.ooc", factory=CODE, scratch=scratch)
    assert watcher.refused
    with ooc.open_index(tmp_path / "j.ooc") as opened:  # it was published before
        assert opened.generation == 1
    ooc.build(base, tmp_path / "j.ooc", factory=CODE, scratch=scratch)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_what_cannot_be_read_of_a_file_with_a_journal_is_told(
    rows: FloatArray, tmp_path: Path, compression: str
) -> None:
    """HDF5 is not told of it and gets nothings: they were served as rows."""
    path, copy = tmp_path / "x.h5", tmp_path / "y.h5"
    with ooc.create_store(path, d=D, chunk_rows=64, compression=compression) as writer:
        writer.append(rows[:100])
        writer.flush()
        writer.append(rows[100:300])
        shutil.copy(path, copy)
        shutil.copy(path.with_name(".x.h5.journal"), copy.with_name(".y.h5.journal"))
    told = 0
    for at in itertools.count():
        refuse = Refuse(errno.EIO, ("read",), at, times=1)
        try:
            with injected(refuse), ooc.open_store(copy) as store:
                read = np.array(store.read(0, store.n))
            np.testing.assert_array_equal(read, rows[: len(read)])
        except ooc.OocError:
            told += 1
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(copy)]
        if refuse.count <= at:
            break
    assert told > 5


def test_a_writer_of_hdf5_tells_what_it_could_not_read_and_lets_go(rows: FloatArray, tmp_path: Path) -> None:
    source = tmp_path / "x.npy"
    np.save(source, rows)
    for at in itertools.count():
        refuse = Refuse(errno.EIO, ("read",), at, times=1)
        destination = tmp_path / f"{at}.h5"
        failed = False
        try:
            with injected(refuse):
                ooc.convert(source, destination, chunk_rows=100, compression="gzip")
        except ooc.OocError as error:
            failed = True
            assert "Input/output error" in str(error)  # noqa: PT017
        gc.collect()
        assert not [fd for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(source)]
        if failed:
            ooc.convert(source, destination, chunk_rows=100, compression="gzip")
        if refuse.count <= at:
            break
    assert at > 5
