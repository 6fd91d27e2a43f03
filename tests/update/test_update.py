"""Rows appended, deleted, replaced and compacted: answers against exact search over what is live."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.cli.ids import read_ids
from ooc.types import FloatArray
from tests.helpers import embeddings, tree
from tests.update.model import Model

N, D = 3000, 24


@pytest.fixture(scope="module", params=["l2", "ip", "cosine"])
def metric(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    return embeddings(N + 2000, D, seed=3)


@pytest.fixture(scope="module")
def queries() -> FloatArray:
    return embeddings(N + 2000, D, seed=3)[::331] + np.float32(0.01)


@pytest.fixture
def built(tmp_path: Path, rows: FloatArray, metric: str) -> tuple[Path, Model]:
    np.save(tmp_path / "base.npy", rows[:N])
    ooc.build(tmp_path / "base.npy", tmp_path / "i.ooc", metric=metric, factory="HR,IVF64,RaBitQ")
    return tmp_path / "i.ooc", Model(rows[:N], metric)


def test_appended_rows_are_found_and_numbered_on(
    built: tuple[Path, Model], rows: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    path, model = built
    np.save(tmp_path / "more.npy", rows[N : N + 500])
    figures = ooc.append(path, tmp_path / "more.npy")
    assert (figures["added"], figures["first_id"], figures["segments"]) == (500, N, 2)
    model.append(rows[N : N + 500])
    model.check_at(path, queries)
    ooc.append(path, rows[N + 500 : N + 507])  # of an array the index keeps a copy
    model.append(rows[N + 500 : N + 507])
    model.check_at(path, queries)
    with ooc.open_index(path) as index:
        ids = np.array([0, N - 1, N, N + 499, N + 506])
        np.testing.assert_array_equal(index.reconstruct(ids), rows[ids])


def test_a_store_that_grew_is_appended_from_where_it_ended(
    built: tuple[Path, Model], rows: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    path, model = built
    np.save(tmp_path / "new.npy", rows[: N + 300])
    os.replace(tmp_path / "new.npy", tmp_path / "base.npy")
    assert ooc.append(path, tmp_path / "base.npy")["added"] == 300
    model.append(rows[N : N + 300])
    model.check_at(path, queries)
    again = ooc.append(path, tmp_path / "base.npy")
    assert (again["added"], again["generation"]) == (0, 2)


def test_a_store_elsewhere_is_the_same_only_if_all_rows_are(tmp_path: Path, rows: FloatArray) -> None:
    path, notes = tmp_path / "i.ooc", []
    other = rows.copy()
    other[50:54] += 1  # between the rows that a fingerprint looks at
    for name, x in (("base", rows[:N]), ("moved", rows), ("other", other)):
        np.save(tmp_path / f"{name}.npy", x)
    assert ooc.open_store(other).fingerprint(N) == ooc.open_store(rows).fingerprint(N)
    ooc.build(tmp_path / "base.npy", path, factory="IVF16,SQ8")
    assert ooc.append(path, tmp_path / "other.npy")["added"] == len(other)
    assert ooc.append(path, tmp_path / "other.npy")["added"] == 0
    assert ooc.append(path, tmp_path / "moved.npy", observer=notes.append)["added"] == len(rows) - N
    (tmp_path / "base.npy").unlink()
    (tmp_path / "moved.npy").rename(tmp_path / "again.npy")
    (tmp_path / "other.npy").rename(tmp_path / "other2.npy")
    assert not [one for one in notes if getattr(one, "kind", "") == "store-assumed"]
    assert ooc.append(path, tmp_path / "again.npy", observer=notes.append)["added"] == 0
    (assumed,) = {one.message for one in notes if getattr(one, "kind", "") == "store-assumed"}
    assert "cannot be read" in assumed


def test_a_store_that_grew_many_times_is_read_as_one(
    built: tuple[Path, Model], rows: FloatArray, queries: FloatArray, tmp_path: Path
) -> None:
    path, model = built
    for end in range(N + 100, N + 501, 100):
        np.save(tmp_path / "new.npy", rows[:end])
        os.replace(tmp_path / "new.npy", tmp_path / "base.npy")
        assert ooc.append(path, tmp_path / "base.npy")["added"] == 100
    model.append(rows[N : N + 500])
    with ooc.open_index(path) as index:
        assert index._view().source.rows().format == "npy"  # the store itself
        model.check(index, queries)
    ooc.append(path, rows[N + 500 : N + 600])
    np.save(tmp_path / "new.npy", rows[: N + 600])
    os.replace(tmp_path / "new.npy", tmp_path / "base.npy")
    model.append(rows[N + 500 : N + 600])
    assert ooc.append(path, tmp_path / "base.npy")["added"] == 100
    model.append(rows[N + 500 : N + 600])
    model.check_at(path, queries)
    # What its earlier rows are is seen by the last ones.
    np.save(tmp_path / "new.npy", rows[: N + 600][::-1])
    os.replace(tmp_path / "new.npy", tmp_path / "base.npy")
    with ooc.open_index(path) as index, pytest.raises(ooc.ConflictError, match="does not fit"):
        index.search(queries)


def test_few_rows_are_placed_as_many_are(tmp_path: Path) -> None:
    x = embeddings(6000, 512, seed=5)
    np.save(tmp_path / "x.npy", x[:4000])
    ooc.build(
        tmp_path / "x.npy", tmp_path / "i.ooc", metric="l2", factory="HR,IVF1024,RaBitQ", copy_vectors="never"
    )
    model = Model(x[:4000], "l2")
    for begin, end in ((4000, 4001), (4001, 4400), (4400, 6000)):  # with a sketch of centroids the last
        ooc.append(tmp_path / "i.ooc", x[begin:end])
    model.append(x[4000:])
    model.check_at(tmp_path / "i.ooc", x[::600])
    with ooc.open_index(tmp_path / "i.ooc") as index:
        found = index.search(x[4000:], 1, nprobe=8, rerank=100)[1][:, 0]
    own = found == np.arange(4000, 6000)
    # Of 1024 lists, in those that are looked into first.
    assert own[:400].mean() > 0.99
    assert own[400:].mean() > 0.98


def test_deleted_rows_are_not_found(built: tuple[Path, Model], rows: FloatArray, queries: FloatArray) -> None:
    path, model = built
    gone = np.unique(np.concatenate([model.search(queries, 4)[1].reshape(-1), np.arange(0, N, 7)]))
    assert ooc.delete(path, gone)["deleted"] == len(gone)
    model.delete(gone)
    model.check_at(path, queries)
    assert ooc.delete(path, gone)["deleted"] == 0  # twice is once
    with ooc.open_index(path) as index:
        assert index.generation == 2
        for options in ({}, {"nprobe": 1}, {"rerank": 0}, {"filter": np.arange(0, 100)}):
            _, ids = index.search(queries, 10, **options)  # type: ignore[call-overload]
            assert not np.isin(ids, gone).any(), options
            assert (ids >= 0).all(), options
        for rerank in (True, False):
            radius = 1e9 if index.metric == "l2" else -1e9
            _, _, ids = index.range_search(queries[:3], radius, nprobe=64, rerank=rerank)
            assert not np.isin(ids, gone).any()
        with pytest.raises(ooc.ArgumentError, match="deleted"):
            index.reconstruct(gone[:1])


def test_where_a_whole_region_was_deleted_k_rows_are_found_still(
    built: tuple[Path, Model], queries: FloatArray
) -> None:
    path, model = built
    gone = model.search(queries[:1], N - 40)[1][0]
    ooc.delete(path, gone)
    with ooc.open_index(path) as index:
        for options in ({"nprobe": 1}, {}, {"nprobe": 2, "rerank": 0}):
            _, ids = index.search(queries[:2], 40, **options)  # type: ignore[call-overload]
            assert (ids >= 0).all(), options
            assert not np.isin(ids, gone).any()


@pytest.mark.parametrize("left", [10, 60])
def test_where_few_rows_are_left_k_are_found_still(
    built: tuple[Path, Model], queries: FloatArray, left: int
) -> None:
    path, _ = built
    ooc.delete(path, np.delete(np.arange(N), np.arange(0, N, N // left)))
    options: tuple[dict[str, Any], ...] = ({}, {"rerank": 0}, {"nprobe": 1}, {"nprobe": 1, "rerank": 0})
    for compacted in (False, True):
        if compacted:
            ooc.compact(path)
            options = options[:2]  # one list is one list, of which nothing is dead
        with ooc.open_index(path) as index:
            for more in options:
                assert (index.search(queries, 10, **more)[1] >= 0).all(), (compacted, more)
                assert (index.search(queries[:1], 10, **more)[1] >= 0).all(), (compacted, more)


def test_replaced_rows_keep_their_ids(
    built: tuple[Path, Model], rows: FloatArray, queries: FloatArray
) -> None:
    path, model = built
    ooc.append(path, rows[N : N + 100])
    model.append(rows[N : N + 100])
    ids = np.array([N + 50, 5, 17, 2000])
    figures = ooc.upsert(path, ids, queries[:4])
    assert figures["first_id"] is None
    model.upsert(ids, queries[:4])
    model.check_at(path, queries)
    ooc.upsert(path, ids[:2], rows[:2])  # again, and one that was deleted comes back
    model.upsert(ids[:2], rows[:2])
    ooc.delete(path, ids[2:3])
    ooc.upsert(path, ids[2:3], rows[9:10])
    model.upsert(ids[2:3], rows[9:10])
    model.check_at(path, queries)
    ooc.append(path, rows[N + 100 : N + 120])
    model.append(rows[N + 100 : N + 120])
    model.check_at(path, queries)
    with ooc.open_index(path) as index:
        np.testing.assert_array_equal(index.reconstruct(ids[:2]), rows[:2])
        _, found, vectors = index.search(queries, 3, recall=1.0, return_vectors=True)
        np.testing.assert_array_equal(vectors[:, 0], index.reconstruct(found[:, 0]))
        allowed = np.array([5, 17, N + 50, N + 110])
        _, found = index.search(queries, 4, filter=allowed)
        assert (np.sort(found, axis=1) == allowed).all()


def test_compaction_changes_no_answer_and_drops_what_is_dead(
    built: tuple[Path, Model], rows: FloatArray, queries: FloatArray
) -> None:
    path, model = built
    for first in range(N, N + 600, 200):
        ooc.append(path, rows[first : first + 200])
        model.append(rows[first : first + 200])
    gone = np.arange(100, 900, 3)
    ooc.delete(path, gone)
    model.delete(gone)
    ooc.upsert(path, np.array([1, N + 1]), queries[:2])
    model.upsert(np.array([1, N + 1]), queries[:2])
    with ooc.open_index(path) as index:
        before = [index.search(queries, 10, nprobe=p, rerank=r) for p, r in ((4, 50), (64, 100), (8, 0))]
        figures = ooc.compact(path)
        after = [index.search(queries, 10, nprobe=p, rerank=r) for p, r in ((4, 50), (64, 100), (8, 0))]
        assert index.refresh()
        assert not index.refresh()
        later = [index.search(queries, 10, nprobe=p, rerank=r) for p, r in ((4, 50), (64, 100), (8, 0))]
        for answers in (after, later):
            for (d0, i0), (d1, i1) in zip(before, answers, strict=True):
                np.testing.assert_array_equal(i0, i1)
                np.testing.assert_array_equal(d0, d1)
    assert figures["dropped"] == len(gone) + 2
    model.check_at(path, queries)
    with ooc.open_index(path) as index:
        info = index.info()
        assert (len(info["segments"]), info["dead_rows"]) == (1, 0)
    assert ooc.compact(path)["compacted"] == 0
    ooc.delete(path, np.array([2]))
    model.delete(np.array([2]))
    ooc.append(path, rows[N + 700 : N + 710])
    model.append(rows[N + 700 : N + 710])
    model.check_at(path, queries)


def test_everything_may_be_deleted(built: tuple[Path, Model], rows: FloatArray, queries: FloatArray) -> None:
    path, model = built
    ooc.delete(path, np.arange(40))
    with ooc.open_index(path) as index:  # of what a filter allows
        assert (index.search(queries[0], 3, filter=range(40))[1] == -1).all()
    ooc.delete(path, np.arange(N))
    model.delete(np.arange(N))
    model.check_at(path, queries)
    model.check_at(path, queries[:1])
    ooc.compact(path)
    model.check_at(path, queries)
    model.check_at(path, queries[:1])
    ooc.append(path, rows[N : N + 50])
    model.append(rows[N : N + 50])
    model.check_at(path, queries)


def test_earlier_generations_can_be_gone_back_to_and_collected(
    built: tuple[Path, Model], rows: FloatArray, queries: FloatArray
) -> None:
    path, model = built
    ooc.delete(path, np.arange(10))
    ooc.append(path, rows[N : N + 40])
    ooc.compact(path)
    listed = ooc.generations(path)
    assert [one["operation"] for one in listed] == ["build", "delete", "append", "compact"]
    assert [one["live"] for one in listed] == [False, False, False, True]
    ooc.rollback(path, 1)
    model.check_at(path, queries)
    ooc.append(path, rows[N + 40 : N + 50])  # a branch: numbers are not given twice
    model.append(rows[N + 40 : N + 50])
    model.check_at(path, queries)
    with ooc.open_index(path) as held:
        assert held.generation == 5
        ooc.delete(path, np.array([3]))
        figures = ooc.gc(path)
        assert (figures["kept"], figures["removed"]) == ([5, 6], [1, 2, 3, 4])
        assert figures["freed_bytes"] > 0
        model.check(held, queries)
    model.delete(np.array([3]))
    assert ooc.gc(path)["kept"] == [6]
    model.check_at(path, queries)
    with pytest.raises(ooc.ArgumentError, match="no generation 1"):
        ooc.rollback(path, 1)


def test_a_following_reader_sees_what_is_published(
    built: tuple[Path, Model], rows: FloatArray, queries: FloatArray
) -> None:
    path, model = built
    with ooc.open_index(path, follow=True) as follows, ooc.open_index(path) as stays:
        ooc.append(path, rows[N : N + 10])
        follows.search(rows[N : N + 10], 1, recall=1.0)
        assert (follows.generation, stays.generation) == (2, 1)
        assert follows.n == N + 10
        model.check(stays, queries)
        model.append(rows[N : N + 10])
        model.check(follows, queries)


def test_a_following_reader_tries_again_where_a_generation_could_not_be_opened(
    built: tuple[Path, Model], rows: FloatArray
) -> None:
    path, _ = built
    with ooc.open_index(path, follow=True) as follows:
        ooc.append(path, rows[N : N + 10])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        # What is limited is the number that a file gets, which is the lowest that is free.
        gc.collect()
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
        try:
            for _ in range(2):
                with pytest.raises(ooc.ResourceError, match="open files"):
                    follows.search(rows[:1], 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert follows.generation == 2


def test_rows_that_cannot_be_indexed(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    bad = rows[:N].copy()
    bad[[3, 70]] = np.nan
    np.save(tmp_path / "base.npy", bad)
    path = tmp_path / "i.ooc"
    ooc.build(tmp_path / "base.npy", path, factory="IVF16,SQ8", on_bad="skip")
    more = rows[N : N + 50].copy()
    more[7] = np.inf
    before = tree(path)
    with pytest.raises(ooc.DataError):
        ooc.append(path, more)
    assert tree(path) == before
    ooc.append(path, more, on_bad="skip")
    model = Model(bad, "l2")
    model.append(more)
    model.delete(np.array([3, 70, N + 7]))
    model.check_at(path, queries)
    ooc.delete(path, np.array([3, 4, N + 7, N + 8]))  # some of them are in no list
    model.delete(np.array([4, N + 8]))
    model.check_at(path, queries)


def test_spilled_rows(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    np.save(tmp_path / "base.npy", rows[:N])
    path, model = tmp_path / "i.ooc", Model(rows[:N], "l2")
    ooc.build(tmp_path / "base.npy", path, factory="HR,IVF32,RaBitQ", spill="on")
    ooc.append(path, rows[N : N + 90])
    model.append(rows[N : N + 90])
    ooc.delete(path, np.arange(0, N, 9))
    model.delete(np.arange(0, N, 9))
    model.check_at(path, queries)
    assert ooc.compact(path)["dropped"] == len(np.arange(0, N, 9))
    model.check_at(path, queries)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([N], "never given"),
        ([-1], "never given"),
        ([0.5], "whole|integers"),
        ([[1]], "1-d"),
        ([1, 1], "twice"),
        ([1], "1 ids and 2 vectors"),
    ],
)
def test_ids_that_are_none(built: tuple[Path, Model], ids: Any, match: str, rows: FloatArray) -> None:
    path, _ = built
    before = tree(path)
    with pytest.raises(ooc.ArgumentError, match=match):
        ooc.upsert(path, np.array(ids), rows[:2])
    if "twice" not in match and "vectors" not in match:
        with pytest.raises(ooc.ArgumentError, match=match):
            ooc.delete(path, np.array(ids))
    assert tree(path) == before


def test_rows_of_another_width_and_a_changed_store(
    built: tuple[Path, Model], rows: FloatArray, tmp_path: Path
) -> None:
    path, _ = built
    before = tree(path)
    with pytest.raises(ooc.ArgumentError, match="dimensions"):
        ooc.append(path, np.zeros((5, D + 1), np.float32))
    np.save(tmp_path / "base.npy", rows[1000 : 1000 + N])
    with pytest.raises(ooc.ConflictError, match="other rows now"):
        ooc.append(path, tmp_path / "base.npy")
    assert tree(path) == before


@pytest.mark.parametrize("nlist", [32, 512, 4096])
def test_the_engine_knows_the_sizes_of_lists_in_every_segment(tmp_path: Path, nlist: int) -> None:
    """What it is told of them it reads where numpy has it, which must be there still."""
    rows = embeddings(2 * max(N, nlist), 16)
    half = len(rows) // 2
    ooc.build(rows[:half], tmp_path / "i", factory=f"IVF{nlist},SQ8", copy_vectors="always")
    ooc.append(tmp_path / "i", rows[half:])
    with ooc.open_index(tmp_path / "i") as index:
        lists = index._view().segments._lists
        for file, sizes in zip(lists._files, lists.in_file, strict=True):
            assert [file.list_size(i) for i in range(nlist)] == sizes.tolist()


def test_what_is_kept_are_generations_before_the_live_one(tmp_path: Path) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(embeddings(60, 8), path, factory="IVF1,Flat")
    for i in range(4):
        ooc.delete(path, [i])
    ooc.rollback(path, 3)
    assert ooc.gc(path, keep=1)["kept"] == [2, 3]
    ooc.delete(path, [10])
    assert ooc.gc(path, keep=5)["removed"] == []
    assert ooc.gc(path)["removed"] == [2, 3]


def test_what_was_lost_or_closed_is_said(tmp_path: Path) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(embeddings(60, 8), path, factory="IVF1,Flat")
    with ooc.open_index(path) as index:
        pass
    assert "closed" in repr(index)
    (path / "CURRENT").unlink()
    with pytest.raises(ooc.IndexDirError, match="CURRENT is missing") as caught:
        ooc.open_index(path)
    assert "--repair" in str(caught.value.hint)
    ooc.verify(path, repair=True)
    ooc.delete(path, np.arange(60))
    with pytest.raises(ooc.DataError, match="no live rows") as none:
        ooc.evaluate(path)
    assert none.value.kind == "no-rows"


@pytest.mark.parametrize("text", ["5-3", "1,9-2", ""])
def test_ids_on_the_command_line_that_are_none(text: str) -> None:
    with pytest.raises(ooc.ArgumentError) as caught:
        read_ids(text)
    assert caught.value.kind == "ids"
