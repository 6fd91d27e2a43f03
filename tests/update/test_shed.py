"""What a compaction does with the vectors, ids and keys of dead rows that an index keeps itself."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.events import Event, Progress, StageStarted
from ooc.types import FloatArray
from tests.update.model import Key, Model

N, D = 1500, 16


def vectors(n: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((n, D), dtype=np.float32)


def disk_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def segments(path: Path) -> set[str]:
    return {one.name for one in (path / "segments").iterdir()}


def see(path: Path, model: Model) -> None:
    """The index answers as the model does, by whatever way it is asked, and is sound."""
    xq, ids = vectors(5, 77), model.ids
    model.check_at(path, xq)
    with ooc.open_index(path) as index:
        if len(ids):
            np.testing.assert_array_equal(
                index.reconstruct(ids), np.stack([model.vectors[i] for i in ids.tolist()])
            )
        end = index.info()["ids"]
        assert end == model.id_end
        gone = np.setdiff1d(np.arange(end), ids)
        if len(gone):
            with pytest.raises(ooc.ArgumentError, match="was deleted"):
                index.reconstruct(gone[-1:])
        allowed = np.arange(0, end, 3)
        mask = np.zeros(end, bool)
        mask[allowed] = True
        inside = np.intersect1d(allowed, ids)
        lims, _, found = index.range_search(xq, radius=1e9, nprobe=index.nlist)
        for i in range(len(xq)):
            np.testing.assert_array_equal(np.sort(found[lims[i] : lims[i + 1]]), ids)
        for named in (allowed, mask):
            _, found = index.search(xq, len(allowed), nprobe=index.nlist, filter=named)
            for row in found:
                np.testing.assert_array_equal(np.sort(row[row >= 0]), inside)
        if model.keys:
            model.check_keys(index, [3 if index.key_kind == "int64" else "no such key"])
    assert ooc.verify(path, full=True)["findings"] == []


def keyed(kind: str | None, first: int, n: int) -> list[Key]:
    if kind is None:
        return []
    return [i * 7 if kind == "int64" else f"ключ {i}" for i in range(first, first + n)]


def named(keys: Sequence[Key]) -> dict[str, Any]:
    return {"keys": list(keys)} if keys else {}


@pytest.mark.parametrize("kind", [None, "int64", "str"])
def test_an_index_whose_rows_are_all_replaced_again_and_again_does_not_grow(
    tmp_path: Path, kind: str | None
) -> None:
    path, keys = tmp_path / "i.ooc", keyed(kind, 0, N)
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8", **named(keys))
    model, fresh = Model(vectors(N, 0), "l2", keys), disk_bytes(path)
    for i in range(1, 11):
        x = vectors(N, i)
        ooc.upsert(path, np.arange(N), x)
        model.upsert(np.arange(N), x)
        ooc.compact(path)
    ooc.gc(path)
    see(path, model)
    assert disk_bytes(path) < 1.3 * fresh
    assert len(segments(path)) < 4


@pytest.mark.parametrize("spill", ["off", "on"])
@pytest.mark.parametrize("copies", ["never", "always"])
@pytest.mark.parametrize("kind", [None, "str"])
def test_answers_ids_and_keys_stay(tmp_path: Path, kind: str | None, copies: Any, spill: Any) -> None:
    path, rng = tmp_path / "i.ooc", np.random.default_rng(5)
    np.save(tmp_path / "base.npy", vectors(N, 0))
    keys = keyed(kind, 0, N)
    options: dict[str, Any] = {"copy_vectors": copies, "spill": spill, "factory": "IVF16,SQ8"}
    ooc.build(tmp_path / "base.npy", path, **options, **named(keys))
    model = Model(vectors(N, 0), "l2", keys)
    past: dict[int, Model] = {}
    for i in range(1, 4):
        x, more = vectors(400, i), keyed(kind, N + 400 * i, 400)
        ooc.append(path, x, **named(more))
        model.append(x, more)
        ids = rng.choice(model.ids, 300, replace=False)
        ooc.upsert(path, ids, vectors(300, 10 + i))
        model.upsert(ids, vectors(300, 10 + i))
        # All rows of some, and of the last ones: their ids are not given again.
        ids = np.union1d(
            rng.choice(model.ids, 500, replace=False), np.arange(model.id_end - 30, model.id_end)
        )
        ooc.delete(path, ids)
        model.delete(ids)
        before = (ooc.generations(path)[-1]["generation"], disk_bytes(path))
        past[before[0]] = Model(np.empty((0, D), np.float32), "l2")
        past[before[0]].vectors, past[before[0]].keys = dict(model.vectors), dict(model.keys)
        past[before[0]].id_end = model.id_end
        ooc.compact(path)
        see(path, model)
    last = ooc.generations(path)[-1]["generation"]
    assert any(name.startswith("s") and name[-1].isalpha() for name in segments(path))
    for number, then in past.items():
        ooc.rollback(path, number)
        see(path, then)
    ooc.rollback(path, last)
    ooc.gc(path)
    see(path, model)
    ooc.compact(path, retrain=True)
    see(path, model)
    x, more = vectors(50, 99), keyed(kind, 9000, 50)
    assert ooc.append(path, x, **named(more))["first_id"] == model.id_end
    model.append(x, more)
    see(path, model)


@pytest.mark.parametrize("copy_dtype", ["store", "float16", "int8"])
def test_vectors_that_stay_are_the_same_bytes(tmp_path: Path, copy_dtype: Any) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8", copy_vectors="always", copy_dtype=copy_dtype)
    left = np.setdiff1d(np.arange(N), np.arange(0, N, 3))
    with ooc.open_index(path) as index:
        rows = index.reconstruct(left)
    ooc.delete(path, np.arange(0, N, 3))
    ooc.compact(path)
    ooc.gc(path)
    with ooc.open_index(path) as index:
        np.testing.assert_array_equal(index.reconstruct(left), rows)
        assert index.info()["ids"] == N
    assert segments(path) == {"s3", "s3a"}
    assert np.load(path / "segments/s3a/vectors.npy", mmap_mode="r").shape == (len(left), D)
    assert ooc.verify(path, full=True)["findings"] == []


@pytest.mark.parametrize(("copy_dtype", "some"), [("store", {"s3a"}), ("float16", {"s1"}), ("int8", {"s1"})])
def test_rounded_rows_of_a_store_stay_while_some_of_them_live(
    tmp_path: Path, copy_dtype: Any, some: set[str]
) -> None:
    path, base = tmp_path / "i.ooc", tmp_path / "base.npy"
    np.save(base, vectors(N, 0))
    ooc.build(base, path, factory="IVF16,SQ8", copy_vectors="always", copy_dtype=copy_dtype)
    ooc.delete(path, np.arange(0, N, 3))
    ooc.compact(path)
    ooc.gc(path)
    assert segments(path) == {"s3"} | some
    with ooc.open_index(path) as index:
        x = index.rows(original=True).take(np.arange(4))
    np.testing.assert_array_equal(x, vectors(N, 0)[[1, 2, 4, 5] if "s3a" in some else [0, 1, 2, 3]])
    assert ooc.append(path, base)["added"] == 0  # it is known still
    measured = ooc.evaluate(path, count=20, nprobe=[16])
    assert max(one["recall"] for one in measured["points"]) > 0.95


def test_few_dead_rows_are_kept(tmp_path: Path) -> None:
    path, model = tmp_path / "i.ooc", Model(vectors(N, 0), "l2")
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8")
    ids = np.arange(N // 5)
    ooc.delete(path, ids)
    model.delete(ids)
    ooc.compact(path)
    assert segments(path) == {"s1", "s3"}
    assert ooc.compact(path)["compacted"] == 0
    ooc.delete(path, [N - 1])
    model.delete(np.array([N - 1]))
    ooc.compact(path)
    assert segments(path) == {"s1", "s3", "s5", "s5a"}
    see(path, model)


def test_where_all_is_deleted_the_index_goes_on(tmp_path: Path) -> None:
    path, model = tmp_path / "i.ooc", Model(vectors(N, 0), "l2")
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8")
    ooc.append(path, vectors(100, 1))
    model.append(vectors(100, 1))
    ooc.delete(path, model.ids)
    model.delete(model.ids)
    ooc.compact(path)
    see(path, model)
    assert ooc.append(path, vectors(90, 2))["first_id"] == N + 100
    model.append(vectors(90, 2))
    ooc.upsert(path, np.arange(20), vectors(20, 3))
    model.upsert(np.arange(20), vectors(20, 3))
    see(path, model)
    ooc.compact(path)
    see(path, model)


def test_a_store_of_which_nothing_is_left_is_not_appended_again(tmp_path: Path) -> None:
    path, model = tmp_path / "i.ooc", Model(vectors(N, 0), "l2")
    np.save(tmp_path / "more.npy", vectors(200, 1))
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8")
    for copies in ("always", "never"):
        name = tmp_path / f"{copies}.npy"
        x = vectors(200, len(copies))
        np.save(name, x)
        ooc.append(path, name, copy_vectors=copies)  # type: ignore[arg-type]
        model.append(x)
        ids = np.arange(model.id_end - 200, model.id_end)
        ooc.delete(path, ids)
        model.delete(ids)
        ooc.compact(path)
        assert ooc.append(path, name)["added"] == 0
        with ooc.open_index(path, store={str(name): str(name)}) as index:
            assert index.n == N
        np.save(name, vectors(200, 50 + len(copies)))  # none of its rows is read any more
        assert ooc.append(path, name)["added"] == 200
        ids = np.arange(model.id_end, model.id_end + 200)
        ooc.delete(path, ids)
        model.append(vectors(200, 50 + len(copies)))
        model.delete(ids)
        ooc.compact(path)
        see(path, model)


def test_a_store_that_is_named_is_not_read_in_place_of_what_is_left_of_it(tmp_path: Path) -> None:
    path, model = tmp_path / "i.ooc", Model(vectors(N, 0), "l2")
    np.save(tmp_path / "base.npy", vectors(N, 0))
    ooc.build(tmp_path / "base.npy", path, factory="IVF16,SQ8", copy_vectors="always")
    ooc.delete(path, np.arange(N // 2))
    model.delete(np.arange(N // 2))
    ooc.compact(path)
    for store in (str(tmp_path / "base.npy"), {str(tmp_path / "base.npy"): str(tmp_path / "base.npy")}):
        with ooc.open_index(path, store=store) as index:
            model.check(index, vectors(5, 77))
    assert ooc.verify(path, full=True, store=tmp_path / "base.npy")["findings"] == []
    file = path / "segments/s3a/vectors.npy"
    data = bytearray(file.read_bytes())
    data[5000] ^= 255
    file.write_bytes(data)
    ooc.verify(path, full=True, repair=True)
    assert not ooc.verify(path, full=True)["sound"]  # which rows they were is not known


@pytest.mark.parametrize("name", ["vectors.npy", "ids.npy", "keys.utf8", "key_offsets.npy"])
def test_what_is_damaged_is_not_copied(tmp_path: Path, name: str) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8", keys=keyed("str", 0, N))
    ooc.upsert(path, np.arange(700), vectors(700, 1))
    ooc.delete(path, np.arange(0, 700, 3))
    file = path / "segments/s2" / name
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    with pytest.raises(ooc.IndexDirError, match=name):
        ooc.compact(path)
    assert ooc.generations(path)[-1]["generation"] == 3
    assert segments(path) == {"s1", "s2"}


def test_stopped_it_leaves_nothing(tmp_path: Path) -> None:
    path, stop = tmp_path / "i.ooc", threading.Event()
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8")
    ooc.delete(path, np.arange(700))
    told: list[Progress] = []

    def observe(event: Event) -> None:
        if isinstance(event, Progress):
            told.append(event)
            stop.set()

    with pytest.raises(ooc.Stopped):
        ooc.compact(path, observer=observe, stop=stop)
    assert told
    assert segments(path) == {"s1"}
    totals: list[int] = []

    def see_total(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "merge":
            totals.append(event.total)
        if isinstance(event, Progress) and event.stage == "merge":
            assert event.done <= totals[-1]

    ooc.compact(path, observer=see_total)
    assert segments(path) == {"s1", "s3", "s3a"}


def test_what_is_exported_answers_the_same(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    path, model = tmp_path / "i.ooc", Model(vectors(N, 0), "l2")
    ooc.build(vectors(N, 0), path, factory="IVF16,Flat")
    ooc.upsert(path, np.arange(900), vectors(900, 1))
    model.upsert(np.arange(900), vectors(900, 1))
    ooc.delete(path, np.arange(0, N, 2))
    model.delete(np.arange(0, N, 2))
    ooc.compact(path)
    ooc.export(path, tmp_path / "one.faiss")
    plain = faiss.read_index(str(tmp_path / "one.faiss"))
    plain.nprobe = 16
    xq = vectors(5, 77)
    np.testing.assert_array_equal(plain.search(xq, 10)[1], model.search(xq, 10)[1])


def test_with_auto_it_is_done_once(tmp_path: Path) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(vectors(N, 0), path, factory="IVF16,SQ8")
    ooc.append(path, vectors(10, 1))
    ooc.delete(path, np.arange(N, N + 9))  # most of the few
    assert ooc.compact(path, auto=True)["compacted"] == 0
    ooc.delete(path, np.arange(600))
    assert ooc.compact(path, auto=True)["compacted"] == 2
    assert ooc.compact(path, auto=True)["compacted"] == 0
    assert ooc.compact(path)["compacted"] == 0
    shutil.rmtree(path)
