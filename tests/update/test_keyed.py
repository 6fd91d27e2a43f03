"""Rows named by key: searches return keys, changes take them, and one live row at most has each."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import ooc
from ooc.types import FloatArray
from tests.helpers import embeddings, tree
from tests.update.model import Key, Model

N, D = 2000, 16


def names(first: int, stop: int, kind: str) -> list[Key]:
    return [i * 1000 - 5 if kind == "int64" else f"doc-{i}" * (1 + i % 3) for i in range(first, stop)]


@pytest.fixture(scope="module", params=["str", "int64"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    return embeddings(N + 500, D, seed=5)


@pytest.fixture
def built(tmp_path: Path, rows: FloatArray, kind: str) -> tuple[Path, Model]:
    np.save(tmp_path / "base.npy", rows[:N])
    keys = names(0, N, kind)
    ooc.build(tmp_path / "base.npy", tmp_path / "i.ooc", factory="IVF16,SQ8", keys=keys)
    return tmp_path / "i.ooc", Model(rows[:N], "l2", keys)


def check(path: Path, model: Model, xq: FloatArray, others: list[Key] | None = None) -> None:
    with ooc.open_index(path) as index:
        model.check(index, xq)
        model.check_keys(index, others or [])
        _, ids, keys = index.search(xq, 7, recall=1.0, return_keys=True)
        assert keys.tolist() == [[model.keys[i] for i in line] for line in ids.tolist()]


def test_searches_return_keys(built: tuple[Path, Model], rows: FloatArray, kind: str) -> None:
    path, model = built
    check(path, model, rows[::400], names(N, N + 9, kind))
    with ooc.open_index(path) as index:
        assert index.key_kind == kind
        distances, ids, keys, vectors = index.search(rows[:3], 4, return_keys=True, return_vectors=True)
        assert (distances.shape, ids.shape, keys.shape, vectors.shape) == ((3, 4), (3, 4), (3, 4), (3, 4, D))
        np.testing.assert_array_equal(vectors, index.reconstruct(ids.reshape(-1)).reshape(vectors.shape))
        np.testing.assert_array_equal(vectors[0], index.reconstruct(keys=keys[0]))
        assert index.keys(ids).tolist() == keys.tolist()
        # Where fewer than k are found there is no key.
        _, ids, keys = index.search(rows[0], 3, filter=[5], return_keys=True)
        missing = -1 if kind == "int64" else None
        assert keys.tolist() == [[names(5, 6, kind)[0], missing, missing]]
        assert index.info()["keys"]["kind"] == kind
        with pytest.raises(ooc.ArgumentError, match="no row has key") as caught:
            index.reconstruct(keys=names(0, 2, kind) + names(N, N + 1, kind))
        assert caught.value.kind == "keys"
        with pytest.raises(ooc.ArgumentError, match="not in this index"):
            index.keys([N])
        with pytest.raises(ooc.ArgumentError, match="ids, or keys"):
            index.reconstruct(ids[0], keys=keys[0])
        with pytest.raises(ooc.ArgumentError, match="the keys here are"):
            index.ids_of([1] if kind == "str" else ["a"])


def test_keys_move_with_their_rows(built: tuple[Path, Model], rows: FloatArray, kind: str) -> None:
    path, model = built
    xq = rows[::400]
    more = names(N, N + 100, kind)
    figures = ooc.append(path, rows[N : N + 100], keys=more)
    assert figures["first_id"] == N
    model.append(rows[N : N + 100], more)
    check(path, model, xq)
    # Two that are there, one of the store and one appended; and two new ones, in an order of the caller's.
    some = [more[50], *names(N + 900, N + 901, kind), *names(3, 4, kind), *names(N + 800, N + 801, kind)]
    figures = ooc.upsert(path, keys=some, vectors=xq[:4])
    assert (figures["added"], figures["replaced"], figures["first_id"]) == (4, 2, N + 100)
    model.upsert_keys(some, xq[:4])
    assert model.ids_of(some).tolist() == [N + 50, N + 100, 3, N + 101]
    check(path, model, xq)
    gone = [*some[1:3], *names(10, 300, kind), *names(N + 700, N + 704, kind)]
    figures = ooc.delete(path, keys=gone)
    assert (figures["deleted"], figures["unknown"]) == (292, 4)
    model.delete_keys(gone)
    check(path, model, xq, gone)
    with ooc.open_index(path) as index, pytest.raises(ooc.ArgumentError, match="deleted"):
        index.keys([3])
    # What was deleted can be given again: to a new row, or by an upsert.
    ooc.append(path, rows[N + 100 : N + 102], keys=gone[:2])
    model.append(rows[N + 100 : N + 102], gone[:2])
    ooc.upsert(path, keys=gone[2:5], vectors=xq[1:4])
    model.upsert_keys(gone[2:5], xq[1:4])
    check(path, model, xq, gone)
    # By id a row keeps its key.
    ids = model.ids_of([gone[0], some[0], gone[3]])
    ooc.upsert(path, ids, xq[2:5])
    model.upsert(ids, xq[2:5])
    check(path, model, xq, gone)
    before = tree(path)
    with pytest.raises(ooc.ArgumentError, match="was deleted, and its key with it"):
        ooc.upsert(path, np.array([20]), xq[:1])
    assert tree(path) == before


def test_keys_outlive_compaction_and_collection(
    built: tuple[Path, Model], rows: FloatArray, kind: str, tmp_path: Path
) -> None:
    path, model = built
    xq = rows[::400]
    np.save(tmp_path / "more.npy", rows[N : N + 40])
    more = names(N, N + 40, kind)
    ooc.append(path, tmp_path / "more.npy", keys=more)  # of a store: the index has their keys and no vectors
    model.append(rows[N : N + 40], more)
    ooc.upsert(path, keys=more[:3], vectors=xq[:3])
    model.upsert_keys(more[:3], xq[:3])
    ooc.delete(path, keys=more[2:9])
    model.delete_keys(more[2:9])
    before = ooc.generations(path)[-1]["generation"]
    for _ in range(2):
        ooc.compact(path)
        ooc.gc(path)
        check(path, model, xq, more)
        kept = {p.name for p in (path / "segments" / "s2").iterdir()}
        own = {"keys.npy"} if kind == "int64" else {"keys.utf8", "key_offsets.npy"}
        assert kept == {*own, "key_hashes.npy", "key_rows.npy", "blocks.xxh3", "segment.json"}
        ooc.append(path, rows[N + 40 : N + 41], keys=more[2:3])
        ooc.delete(path, keys=more[2:3])
        model.id_end += 1
    assert before < ooc.generations(path)[0]["generation"]
    check(path, model, xq, more)


def test_the_same_rows_can_come_again_after_compaction(
    built: tuple[Path, Model], rows: FloatArray, kind: str
) -> None:
    """Of a segment whose lists are gone the vectors and keys are in use: no change takes it for its own."""
    path, model = built
    more = names(N, N + 9, kind)
    for _ in range(3):
        ooc.append(path, rows[N : N + 9], keys=more)
        ooc.compact(path)
        ooc.gc(path)
        ooc.delete(path, keys=more[:-1])
        model.append(rows[N : N + 9], more)
        model.delete_keys(more[:-1])
        ooc.upsert(path, keys=more[-1:], vectors=rows[N : N + 1])
        model.upsert_keys(more[-1:], rows[N : N + 1])
        ooc.delete(path, keys=more)
        model.delete_keys(more)
        check(path, model, rows[::400], more)


def test_going_back_brings_keys_back(built: tuple[Path, Model], rows: FloatArray, kind: str) -> None:
    path, model = built
    gone = names(0, 5, kind)
    ooc.delete(path, keys=gone)
    ooc.append(path, rows[N : N + 5], keys=gone)
    ooc.rollback(path, 1)
    check(path, model, rows[::400], names(N, N + 5, kind))
    with pytest.raises(ooc.DataError, match="already"):
        ooc.append(path, rows[N : N + 5], keys=gone)


def test_what_is_refused_leaves_everything_as_it_was(
    built: tuple[Path, Model], rows: FloatArray, kind: str, tmp_path: Path
) -> None:
    path, _ = built
    more = names(N, N + 4, kind)
    before = tree(path)
    attempts: list[tuple[type[ooc.OocError], str, str, Any]] = [
        (ooc.ArgumentError, "keys", "have keys, and none are given", lambda: ooc.append(path, rows[:4])),
        (ooc.ArgumentError, "keys", "3 keys in the keys, and 4 rows",
         lambda: ooc.append(path, rows[:4], keys=more[:3])),
        (ooc.DataError, "duplicate-key", "given twice",
         lambda: ooc.append(path, rows[:4], keys=[*more[:3], more[0]])),
        (ooc.DataError, "duplicate-key", f"already: id {N - 1} has it",
         lambda: ooc.append(path, rows[:4], keys=[*more[:3], *names(N - 1, N, kind)])),
        (ooc.ArgumentError, "keys", "the keys here are",
         lambda: ooc.append(path, rows[:1], keys=[5] if kind == "str" else ["a"])),
        (ooc.DataError, "duplicate-key", "given twice",
         lambda: ooc.upsert(path, keys=[more[0], more[0]], vectors=rows[:2])),
        (ooc.DataError, "duplicate-key", "given twice",
         lambda: ooc.upsert(path, keys=[*names(4, 5, kind), more[0], *names(4, 5, kind)], vectors=rows[:3])),
        (ooc.ArgumentError, "ids", "2 keys and 3 vectors",
         lambda: ooc.upsert(path, keys=more[:2], vectors=rows[:3])),
        (ooc.ArgumentError, "ids", "neither", lambda: ooc.upsert(path, vectors=rows[:3])),
        (ooc.ArgumentError, "ids", "by ids and by keys",
         lambda: ooc.upsert(path, np.array([1]), rows[:1], keys=more[:1])),
        (ooc.ArgumentError, "store", "no vectors", lambda: ooc.upsert(path, keys=more[:1])),
        (ooc.ArgumentError, "ids", "neither", lambda: ooc.delete(path)),
        (ooc.ArgumentError, "ids", "by ids and by keys", lambda: ooc.delete(path, [1], keys=more[:1])),
        (ooc.ArgumentError, "keys", "the keys here are",
         lambda: ooc.delete(path, keys=[5] if kind == "str" else ["a"])),
    ]  # fmt: skip
    for error, said, match, attempt in attempts:
        with pytest.raises(error, match=match) as caught:
            attempt()
        assert caught.value.kind == said
        assert tree(path) == before
    assert ooc.delete(path, keys=more)["deleted"] == 0
    assert tree(path) == before


def test_an_index_without_keys_takes_none(tmp_path: Path, rows: FloatArray) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(rows[:N], path, factory="IVF16,SQ8")
    before = tree(path)
    with ooc.open_index(path) as index:
        assert index.key_kind is None
        assert index.info()["keys"] is None
        attempts: list[Any] = [
            lambda: ooc.append(path, rows[:2], keys=["a", "b"]),
            lambda: ooc.upsert(path, keys=["a", "b"], vectors=rows[:2]),
            lambda: ooc.delete(path, keys=["a"]),
            lambda: index.ids_of(["a"]),
            lambda: index.keys([1]),
            lambda: index.search(rows[:1], return_keys=True),
            lambda: index.reconstruct(keys=["a"]),
        ]
        for attempt in attempts:
            with pytest.raises(ooc.ArgumentError, match="have no keys") as caught:
                attempt()
            assert caught.value.kind == "keys"
    assert tree(path) == before


def test_a_build_is_of_its_keys(tmp_path: Path, rows: FloatArray, kind: str) -> None:
    np.save(tmp_path / "base.npy", rows[:N])
    store, path, keys = tmp_path / "base.npy", tmp_path / "i.ooc", names(0, N, kind)
    options: dict[str, Any] = {"factory": "IVF16,SQ8", "shard_rows": 1024}
    with pytest.raises(ooc.DataError, match="twice"):
        ooc.build(store, path, keys=[*keys[:-1], keys[0]], **options)
    with pytest.raises(ooc.ArgumentError, match="1999 keys in the keys, and 2000 rows"):
        ooc.build(store, path, keys=keys[:-1], **options)
    assert not path.exists()
    plan = ooc.plan(store, keys=keys, **options)
    stop = threading.Event()

    def observer(event: ooc.events.Event) -> None:
        if isinstance(event, ooc.events.Progress) and event.stage == "fill":
            stop.set()

    with pytest.raises(ooc.Stopped):
        ooc.build(store, path, keys=keys, observer=observer, stop=stop, **options)
    for others in (None, [*keys[:-1], names(N, N + 1, kind)[0]]):
        with pytest.raises(ooc.ConflictError, match="another plan: keys"):
            ooc.build(store, path, keys=others, **options)
    np.save(tmp_path / "keys.npy", np.array(keys))
    assert not ooc.build(store, path, keys=tmp_path / "keys.npy", **options)["already_built"]
    assert ooc.build(store, path, keys=keys, **options)["already_built"]
    with pytest.raises(ooc.ConflictError, match="another plan: keys"):
        ooc.build(store, path, **options)
    files = (path / "segments" / "s1").glob("key*")
    size = sum(file.stat().st_size for file in files)
    assert size - 1024 < plan.index_bytes["keys"] < size
    once = tmp_path / "once.ooc"
    ooc.build(store, once, keys=keys, **options)
    assert tree(once) == tree(path)
    check(path, Model(rows[:N], "l2", keys), rows[::400])


def test_stages_by_themselves_keep_the_keys(tmp_path: Path, rows: FloatArray, kind: str) -> None:
    np.save(tmp_path / "base.npy", rows[:N])
    store, path, keys = tmp_path / "base.npy", tmp_path / "i.ooc", names(0, N, kind)
    ooc.train(store, path, factory="IVF16,SQ8", keys=keys)
    ooc.fill(store, path)
    (files,) = (path / "build").glob("*/segment")
    record = files.parent / "keys.json"
    said = record.read_bytes()
    record.unlink()
    with pytest.raises(ooc.IndexDirError, match="keys of the rows are not whole") as caught:
        ooc.merge(store, path)
    assert caught.value.kind == "keys-missing"
    record.write_bytes(said)
    ooc.merge(store, path)
    check(path, Model(rows[:N], "l2", keys), rows[::400])


def test_a_stopped_change_goes_on_with_its_keys(
    built: tuple[Path, Model], rows: FloatArray, kind: str
) -> None:
    path, model = built
    more = names(N, N + 300, kind)
    stop = threading.Event()

    def observer(event: ooc.events.Event) -> None:
        if isinstance(event, ooc.events.StageFinished) and event.stage == "fill":
            stop.set()

    with pytest.raises(ooc.Stopped):
        ooc.append(path, rows[N : N + 300], keys=more, observer=observer, stop=stop)
    check(path, model, rows[::400], more)
    with pytest.raises(ooc.ConflictError, match="unfinished"):
        ooc.append(path, rows[N : N + 300], keys=names(N + 1, N + 301, kind))
    ooc.append(path, rows[N : N + 300], keys=more)
    model.append(rows[N : N + 300], more)
    check(path, model, rows[::400])
    stop.clear()
    with pytest.raises(ooc.Stopped):
        ooc.upsert(path, keys=more[5:9], vectors=rows[:4], observer=observer, stop=stop)
    check(path, model, rows[::400])
    ooc.upsert(path, keys=more[5:9], vectors=rows[:4])
    model.upsert_keys(more[5:9], rows[:4])
    check(path, model, rows[::400])


_KILLED = """
import os, sys
import numpy as np
import ooc
from ooc.update import publish

def die(*_): os._exit(9)

setattr(*((publish.Next, "publish", die) if sys.argv[2] == "placed" else (publish.Next, "add_segment", die)))
x = np.load(sys.argv[3])
ooc.append(sys.argv[1], x, keys=[f"new-{i}" for i in range(len(x))])
"""


@pytest.mark.parametrize("where", ["merged", "placed"])
def test_a_killed_append_goes_on_with_its_keys(where: str, tmp_path: Path, rows: FloatArray) -> None:
    path, keys = tmp_path / "i.ooc", [f"old-{i}" for i in range(N)]
    ooc.build(rows[:N], path, factory="IVF16,SQ8", keys=keys)
    np.save(tmp_path / "x.npy", rows[N : N + 50])
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), where, str(tmp_path / "x.npy")])
    assert done.returncode == 9
    model, more = Model(rows[:N], "l2", keys), [f"new-{i}" for i in range(50)]
    check(path, model, rows[::400], more)
    ooc.append(path, rows[N : N + 50], keys=more)
    model.append(rows[N : N + 50], more)
    check(path, model, rows[::400])


def test_a_store_that_grew_with_its_keys(
    built: tuple[Path, Model], rows: FloatArray, kind: str, tmp_path: Path
) -> None:
    path, model = built
    keys = names(0, N + 30, kind)
    for stop, given in ((N + 20, slice(0, N + 20)), (N + 30, slice(N + 20, N + 30))):
        np.save(tmp_path / "new.npy", rows[:stop])
        (tmp_path / "new.npy").replace(tmp_path / "base.npy")
        first = model.id_end
        ooc.append(path, tmp_path / "base.npy", keys=keys[given])  # of all rows; or of the new ones
        model.append(rows[first:stop], keys[first:stop])
        check(path, model, rows[::400])
    assert ooc.append(path, tmp_path / "base.npy", keys=keys)["added"] == 0


@pytest.mark.parametrize("name", ["hits.npz", "hits.h5", "hits.zarr", "hits.parquet"])
def test_keys_are_written_beside_ids(
    name: str, built: tuple[Path, Model], rows: FloatArray, kind: str, tmp_path: Path
) -> None:
    path, _ = built
    out = tmp_path / name
    ooc.delete(path, keys=names(30, N, kind))  # so that some queries find fewer than k
    with ooc.open_index(path) as index:
        _, ids, keys = index.search(rows[:70], 40, return_keys=True)
        for _ in range(2):
            index.search_to(rows[:70], out, k=40, batch=23, overwrite=True)
    found: Any
    if name.endswith("npz"):
        with np.load(out) as file:
            found = file["keys"]
        found = found if kind == "int64" else np.char.decode(found, "utf-8")
    elif name.endswith("h5"):
        with h5py.File(out) as file:
            found = file["keys"][:] if kind == "int64" else file["keys"].asstr()[:]
    elif name.endswith("zarr"):
        found = zarr.open_group(str(out), mode="r")["keys"][:]  # type: ignore[index]
    else:
        found = np.array(pq.read_table(out).column("keys").to_pylist(), object)
    expected = keys
    if kind == "str" and not name.endswith("parquet"):
        expected = np.where(ids < 0, "", keys)
    assert found.tolist() == expected.tolist()
    assert (ids < 0).any()


def test_longer_keys_than_there_were_end_a_search_into_a_file(tmp_path: Path, rows: FloatArray) -> None:
    path, out = tmp_path / "i.ooc", tmp_path / "hits.npz"
    ooc.build(rows[:N], path, factory="IVF16,SQ8", keys=[str(i) for i in range(N)])

    def observer(event: ooc.events.Event) -> None:
        if isinstance(event, ooc.events.Progress) and event.stage == "search":
            ooc.upsert(path, keys=["a" * 99], vectors=rows[60:61])

    with (
        ooc.open_index(path, follow=True) as index,
        pytest.raises(ooc.ConflictError, match="longer keys") as caught,
    ):
        index.search_to(rows[:70], out, k=3, batch=35, observer=observer)
    assert caught.value.kind == "index-changed"
    assert not out.exists()


def run(*args: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ooc", *args], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line(tmp_path: Path, rows: FloatArray, kind: str) -> None:
    np.save(tmp_path / "x.npy", rows[:N])
    np.save(tmp_path / "y.npy", rows[N : N + 3])
    np.save(tmp_path / "keys.npy", np.array(names(0, N, kind)))
    (tmp_path / "more.txt").write_text("".join(f"{key}\n" for key in names(N, N + 3, kind)))
    (tmp_path / "some.txt").write_text("".join(f"{key}\n" for key in names(N + 2, N + 5, kind)))
    assert "keys" in run("plan", "x.npy", "--keys", "keys.npy", cwd=tmp_path)
    run("build", "x.npy", "my.ooc", "--keys", "keys.npy", "--factory", "IVF16,SQ8", "--quiet", cwd=tmp_path)
    words = "strings" if kind == "str" else "whole numbers"
    assert f"keys            {words}" in run("info", "my.ooc", cwd=tmp_path)
    run("append", "my.ooc", "y.npy", "--keys", "more.txt", "--quiet", cwd=tmp_path)
    text = run("search", "my.ooc", "y.npy", "-k", "2", cwd=tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["query", "rank", "id", "key", "distance"]
    assert lines[1][:4] == ["0", "1", str(N), str(names(N, N + 1, kind)[0])]
    found = json.loads(run("search", "my.ooc", "y.npy", "-k", "1", "--json", cwd=tmp_path))
    assert [one["keys"] for one in found["results"]] == [[key] for key in names(N, N + 3, kind)]
    done = run("upsert", "my.ooc", "--keys", "some.txt", "y.npy", "--quiet", cwd=tmp_path)
    assert "1 rows replaced, 2 added; 2 005" in done
    done = run("delete", "my.ooc", "--keys", "some.txt", cwd=tmp_path)
    assert "3 rows deleted;" in done
    assert "0 rows deleted, 3 keys are of no row" in run(
        "delete", "my.ooc", "--keys", "some.txt", cwd=tmp_path
    )
