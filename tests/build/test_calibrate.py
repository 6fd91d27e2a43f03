"""The recall that a build measures: true neighbours found while filling, and a table that holds."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ooc
from ooc.build.scans import MOST_CANDIDATES, Ranks, rank_among
from ooc.build.shards import shards_done
from ooc.build.witness import DEEP, NEAR, Witnesses, neighbours_found
from ooc.durable import read_json
from ooc.index.layout import BuildLayout
from ooc.search.sweep import Sweep
from ooc.types import FloatArray, Metric
from tests.helpers import embeddings, exact_search, recall

METRICS: tuple[Metric, ...] = ("l2", "ip", "cosine")
WIDE = 300

#: The rank of what was not found.
FAR = np.inf


@pytest.fixture(scope="module")
def wide() -> FloatArray:
    """12 000 rows of enough dimensions for few directions to be looked at first."""
    return embeddings(12_000, WIDE)


def build_layout(index: Path) -> BuildLayout:
    (root,) = (index / "build").iterdir()
    return BuildLayout(root)


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_found_while_filling_are_the_true_ones(
    wide: FloatArray, tmp_path: Path, metric: Metric
) -> None:
    store, index = tmp_path / "x.npy", tmp_path / "i.ooc"
    np.save(store, wide)
    ooc.train(store, index, metric=metric, factory="IVF32,SQ8", shard_rows=4096)
    # By several processes, as it were: each knows of what was on disk when it began.
    ooc.fill(store, index, shards=[1])
    ooc.fill(store, index, shards=[0, 2])
    build = build_layout(index)
    witnesses = Witnesses.load(build)
    assert witnesses is not None
    assert (len(witnesses.own), witnesses.deep) == (1375, 375)
    nearest = neighbours_found(shards_done(build), witnesses.depth)
    for own, group, some in (
        (witnesses.own[375:], NEAR, slice(375, None)),
        (witnesses.own[:375], DEEP, slice(0, 375)),
    ):
        distances, ids = ooc.exact(store, metric=metric, rows=own, k=group.depth)
        for rest in range(group.every if group.every > 1 else 0):  # of every so-manieth row alone
            of = slice(rest, None, group.every)
            there = np.where(own[of] % group.every == rest, own[of] // group.every, -1)
            rows = np.ascontiguousarray(wide[of])
            near = ooc.exact(rows, wide[own[of]], metric=metric, rows=there, k=group.depth)
            distances[of], ids[of] = near[0], near[1] * group.every + rest
        found = nearest.rows[some, : group.depth]
        assert (found == ids).mean() > 0.999  # rows that are equally near but for rounding
        keys = distances if metric == "l2" else -distances
        np.testing.assert_allclose(nearest.keys[some, : group.depth], keys, rtol=1e-4, atol=1e-5)
        assert (nearest.rows[some, group.depth :] == -1).all()
    ooc.merge(store, index)
    with ooc.open_index(index) as opened:
        lists = {
            int(i): number for number in range(32) for i in opened._view().segments.ids(np.array([number]))
        }
    assert all(lists[int(r)] == n for r, n in zip(found[:, 0], nearest.lists[some, 0, 0], strict=True))


def directions(x: FloatArray) -> FloatArray:
    """The 40 in which rows have most of their length."""
    return np.ascontiguousarray(np.linalg.svd(x, full_matrices=False)[2][:40].T)


@given(
    metric=st.sampled_from(("l2", "ip")),
    k=st.integers(1, 30),
    every_rest=st.sampled_from([(1, 0), (4, 0), (4, 3)]),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
    decay=st.sampled_from([0.0, 0.5, 2.0]),
    order=st.randoms(use_true_random=False),
)
def test_a_sweep_by_few_directions_finds_what_all_dimensions_do(
    metric: Metric, k: int, every_rest: tuple[int, int], scale: float, decay: float, order: Any
) -> None:
    rng, (every, rest) = np.random.default_rng(k), every_rest
    spectrum = scale * np.arange(1, WIDE + 1) ** -decay
    x = ((rng.standard_normal((3000, WIDE)) + 0.3) * spectrum).astype(np.float32)
    x[7] = x[5]
    x[11] = np.nan
    xq = x[rng.choice(np.arange(20, 3000), 50, replace=False)] * np.float32(1.01)
    own = np.full(50, -1)
    own[3] = 8
    wide, narrow = (Sweep(xq, k, metric, own, basis=basis) for basis in (None, directions(x[20:])))
    starts = list(range(0, len(x), 500))
    for sweep in (wide, narrow):
        order.shuffle(starts)
        for start in starts:
            block = x[start : start + 500]
            bad = np.flatnonzero(np.isnan(block[:, 0]))
            sweep.take(sweep.look_at(start, np.nan_to_num(block), bad, every=every, rest=rest))
    assert (wide.result()[1][3] != 8).all()
    assert (wide.result()[1] % every == rest)[wide.result()[1] >= 0].all()
    for one, other in zip(wide.result(), narrow.result(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_few_directions_rule_most_rows_out(wide: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    exact = Sweep._exact
    monkeypatch.setattr(
        Sweep, "_exact", lambda self, query, *rest: compared.append(len(query)) or exact(self, query, *rest)
    )
    sweep = Sweep(np.ascontiguousarray(wide[:100]), 10, "l2", np.arange(100), basis=directions(wide))
    for start in range(0, len(wide), 1000):
        sweep.take(sweep.look_at(start, wide[start : start + 1000], np.empty(0, np.int64)))
    assert sum(compared[6:]) < 0.05 * 100 * 6000


@pytest.mark.parametrize("metric", METRICS)
def test_promised_recall_holds_for_rows_that_were_no_witnesses(
    wide: FloatArray, tmp_path: Path, metric: Metric
) -> None:
    index = tmp_path / "i.ooc"
    ooc.build(wide, index, metric=metric, copy_vectors="always", factory="HR,IVF128,RaBitQ")
    rows = np.setdiff1d(np.arange(0, len(wide), 11), _drawn(wide, metric).own)
    for k in (1, 10, 100):
        _, truth = ooc.exact(wide, rows=rows, k=k, metric=metric)
        for target in (0.8, 0.9, 0.95, 0.99):
            with ooc.open_index(index) as opened:
                setting, kept = opened.promise.setting(target, k)
                _, ids = opened.search(
                    wide[rows], k + 1, nprobe=setting.nprobe, rerank=max(setting.candidates, k + 1)
                )
            got = recall(_without(ids, rows, k), truth)
            assert kept
            assert setting.low >= target
            # Both are measured, by some hundred queries.
            error = 0.05 if k == 1 else 0.04
            assert abs(got - setting.recall) < error
            assert got > target - error


def _without(ids: Any, own: Any, k: int) -> Any:
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=1)


def _drawn(x: FloatArray, metric: Metric) -> Witnesses:
    """The witnesses of a build of these rows."""
    count = ooc.plan(x, metric=metric, factory="HR,IVF128,RaBitQ").witnesses
    return Witnesses.draw(ooc.open_store(x), n=len(x), count=count, metric=metric, seed=0, on_bad="stop")


def test_more_bytes_keep_more_recall(wide: FloatArray, tmp_path: Path) -> None:
    index = tmp_path / "i.ooc"
    ooc.build(wide, index, copy_vectors="always", spill="on")
    with ooc.open_index(index) as opened:
        promise = opened.promise
        assert promise is not None
        assert set(promise.settings()) == {1, 10, 100}
        for k, lines in promise.settings().items():
            costs = [line.list_bytes + line.row_bytes for line in lines]
            assert costs == sorted(costs)
            assert all(a.low < b.low for a, b in itertools.pairwise(lines))
            assert all(k <= line.candidates and 1 <= line.nprobe <= opened.nlist for line in lines)
            assert all(0 <= line.low <= line.recall <= 1 for line in lines)
            assert lines[-1].low > 0.97


def test_an_interrupted_build_measures_the_same(wide: FloatArray, tmp_path: Path) -> None:
    store = tmp_path / "x.npy"
    np.save(store, wide)
    ooc.build(store, tmp_path / "a.ooc", threads=1)
    stop = threading.Event()

    def observer(event: ooc.events.Event) -> None:
        if isinstance(event, ooc.events.Progress) and event.stage in ("fill", "calibrate"):
            stop.set()

    for _ in range(2):  # once while filling, once while calibrating
        with pytest.raises(ooc.Stopped):
            ooc.build(store, tmp_path / "b.ooc", shard_rows=2048, observer=observer, stop=stop)
        stop.clear()
    ooc.build(store, tmp_path / "b.ooc", threads=3)
    one, other = (
        read_json(tmp_path / name / "generations" / "1.json", what="it") for name in ("a.ooc", "b.ooc")
    )
    assert one["calibration"]["settings"]["10"]
    assert json.dumps(one["calibration"]) == json.dumps(other["calibration"])


def test_few_rows_and_equal_rows(tmp_path: Path) -> None:
    x = np.ones((40, 8), np.float32)
    ooc.build(x, tmp_path / "i.ooc", copy_vectors="always")
    with ooc.open_index(tmp_path / "i.ooc") as opened:
        assert opened.promise is not None
        assert set(opened.promise.settings()) == {1, 10}
        assert (opened.search(x[:2], 3)[0] == 0).all()
    ooc.build(x[:1], tmp_path / "one.ooc", copy_vectors="always")
    with ooc.open_index(tmp_path / "one.ooc") as opened:
        assert opened.search(x[:2], 3)[1].tolist() == [[0, -1, -1]] * 2


def test_rows_that_are_left_out_are_no_witnesses(tmp_path: Path) -> None:
    x = embeddings(3000, 16)
    x[::3] = np.nan
    x[1::3] = 0
    ooc.build(x, tmp_path / "i.ooc", copy_vectors="always", on_bad="skip", metric="cosine")
    with ooc.open_index(tmp_path / "i.ooc") as opened:
        promise = opened.promise
        assert promise is not None
        assert 380 < promise.queries < 540
        truth = exact_search(x[2::3], x[2:300:3], 10, "cosine")[1] * 3 + 2
        assert recall(opened.search(x[2:300:3], 10, recall=0.99)[1], truth) > 0.97


@pytest.mark.parametrize("twice", [True, False])
def test_ranks_are_places(twice: bool) -> None:
    keys = [np.float32([3, 1, 2]), np.float32([0, 2, 2, 9])]
    ids = [np.array([4, 7, 9]), np.array([5, 8, 1, 2])]
    # 7 9 4; then 5 7 1 8 9 4 2: of rows as near the lower number comes first.
    rank = rank_among(keys, ids, np.array([9, 5, 4, 8, 3, -1]), twice=twice)
    assert rank.tolist() == [[1, FAR, 2, FAR, FAR, FAR], [4, 0, 5, 3, FAR, FAR]]


def test_ranks_where_a_row_comes_twice() -> None:
    keys = [np.float32([3, 1, 2]), np.float32([0, 5, 2])]
    ids = [np.array([4, 7, 9]), np.array([4, 7, 8])]
    assert rank_among(keys, ids, np.array([4, 7, 9]), twice=True).tolist() == [[2, 0, 1], [0, 1, 3]]


def test_ranks_beyond_all_candidates_are_as_good_as_none() -> None:
    n = 2 * MOST_CANDIDATES
    near = np.arange(n, dtype=np.float32)
    rank = rank_among([near], [np.arange(n)], np.array([5, MOST_CANDIDATES, n - 1]), twice=False)
    assert rank.tolist() == [[5, FAR, FAR]]


def test_ranks_between_scans_lie_between() -> None:
    stops = np.array([4, 8])
    within = np.array([[1, 2, 6]])
    ranks = Ranks(stops, np.array([[[0, 10, FAR]], [[0, 40, 7]]]), within, 64)
    between = ranks.at(np.array([6]))[0]
    assert between[0] == 0
    assert 10 < between[1] < 40
    assert 0 < between[2] < 7  # fewer lists hold fewer rows that look nearer
    assert ranks.at(np.array([8]))[0].tolist() == [0, 40, 7]
    assert ranks.at(np.array([4]))[0, :2].tolist() == [0, 10]
    assert 40 < ranks.at(np.array([32]))[0, 1] < FAR


def test_neighbours_in_lists_that_were_not_scanned_have_ranks_of_others_as_far() -> None:
    rng = np.random.default_rng(0)
    within = np.concatenate([np.full((1, 500), 1), np.full((1, 50), 7), np.full((1, 50), 40)], axis=1)
    rank = np.where(within == 1, 0, rng.integers(100, 200, within.shape)).astype(float)
    before = np.where(within == 1, 0, FAR)
    ranks = Ranks(np.array([4, 8]), np.stack((before, np.where(within > 8, FAR, rank))), within, 64)
    lent = ranks.at(np.array([40]))[0, 550:]
    assert 99 <= lent.min() < lent.max() < 250
    assert len(np.unique(lent)) > 20


def test_ranks_of_witnesses_that_were_not_scanned_as_far_grow_as_those_of_others_do() -> None:
    rng = np.random.default_rng(0)
    few, many, k = 40, 200, 12
    near = np.exp(rng.uniform(0, 5, (few + many, k)))
    # Some grow eight times as fast as the mean.
    far = near * np.where(rng.random(near.shape) < 0.1, 8, 1) * rng.uniform(1, 1.2, near.shape)
    rank = np.stack((near, far))
    rank[1, few:] = np.nan
    within = np.full(near.shape, 2)
    within[:few, :4] = within[few:, :4] = 30  # and some come late
    rank[0][within == 30] = FAR
    ranks = Ranks(np.array([4, 64]), rank, within, 64)
    np.testing.assert_allclose(ranks.at(np.full(few + many, 4))[:, 4:], near[:, 4:], atol=0.5)
    lent = ranks.at(np.full(few + many, 64))
    np.testing.assert_allclose(lent[:few], far[:few], atol=0.5)
    for most in (50, 100, 200, 500):
        # Of those that come late it is known of the few alone.
        for columns, within_by in ((slice(0, 4), 0.08), (slice(4, k), 0.04)):
            share = (far[:, columns] < most).mean()
            assert abs((lent[few:, columns] < most).mean() - share) < within_by


def test_a_neighbour_of_every_fourth_row_stands_for_four(wide: FloatArray, tmp_path: Path) -> None:
    """recall@100 as it is told by a quarter of the rows is that of all rows."""
    x, queries = wide[:11_000], wide[11_000:11_375]
    ooc.build(x, tmp_path / "i", factory="HR,IVF64,RaBitQ", copy_vectors="always", queries=queries)
    _, truth = ooc.exact(x, queries, k=100)
    with ooc.open_index(tmp_path / "i") as index:
        promise = index.promise
        assert promise is not None
        assert promise.queries == 375  # all of them tell of a hundred
        for wanted in (0.8, 0.9, 0.95):
            setting, _ = promise.setting(wanted, 100)
            found = recall(index.search(queries, 100, recall=wanted)[1], truth)
            # Where candidates are hardly more than the hundred it says a little less than there is.
            assert abs(found - setting.recall) < (0.01 if setting.candidates > 110 else 0.02)


def test_recall_is_measured_by_queries_where_they_are_given(wide: FloatArray, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    # Unlike the rows: between topics.
    queries = (wide[rng.choice(12_000, 1400)] + wide[rng.choice(12_000, 1400)]).astype(np.float32) / 2
    given, held = queries[:700], queries[700:]
    store = tmp_path / "x.npy"
    np.save(store, wide)
    ooc.build(store, tmp_path / "rows.ooc", factory="HR,IVF128,RaBitQ")
    ooc.build(store, tmp_path / "asked.ooc", factory="HR,IVF128,RaBitQ", queries=given)
    _, truth = ooc.exact(store, held, k=10)
    with ooc.open_index(tmp_path / "rows.ooc") as rows, ooc.open_index(tmp_path / "asked.ooc") as asked:
        assert rows.promise is not None
        assert asked.promise is not None
        assert (rows.promise.by, asked.promise.by, asked.promise.queries) == ("rows", "queries", 700)
        for target in (0.8, 0.95):
            got = recall(asked.search(held, recall=target)[1], truth)
            assert got > target - 0.02
            assert recall(rows.search(held, recall=target)[1], truth) < got
    assert ooc.build(store, tmp_path / "asked.ooc", factory="HR,IVF128,RaBitQ", queries=given)[
        "already_built"
    ]
    with pytest.raises(ooc.ConflictError, match="queries"):
        ooc.build(store, tmp_path / "asked.ooc", factory="HR,IVF128,RaBitQ", queries=held)


def test_given_queries_go_with_a_build_in_stages(wide: FloatArray, tmp_path: Path) -> None:
    store, queries, index = tmp_path / "x.npy", tmp_path / "q.npy", tmp_path / "i.ooc"
    np.save(store, wide)
    np.save(queries, wide[:50] * 2)
    ooc.train(store, index, queries=queries)
    ooc.fill(store, index)
    ooc.merge(store, index)
    ooc.build(store, tmp_path / "j.ooc", queries=queries, workers=2)
    one, other = (
        read_json(tmp_path / name / "generations" / "1.json", what="it") for name in ("i.ooc", "j.ooc")
    )
    assert one["calibration"] == other["calibration"]
    assert one["calibration"]["by"] == "queries"


@pytest.mark.parametrize("count", [1, 40, 900, 1200, 1375])
def test_few_queries_tell_of_ten_rows_and_of_a_hundred(count: int) -> None:
    x = np.arange(count, dtype=np.float32)[:, None]
    made = Witnesses.of(x, 0, 1375)
    assert made.count == count
    assert len(made.x) == len(made.own) <= 1375
    deep, near = made.x[: made.deep, 0], made.x[made.deep :, 0]
    assert len(deep) == min(count, 375)
    assert len(near) == min(count, 1000)
    assert len(np.unique(deep)) == len(deep)
    assert len(np.unique(near)) == len(near)
    assert set(deep) | set(near) == set(range(count))


def test_more_queries_than_rows(tmp_path: Path) -> None:
    x, queries = embeddings(300, 16), embeddings(800, 16, seed=1)[:500]
    ooc.build(x, tmp_path / "i", queries=queries, copy_vectors="always")
    with ooc.open_index(tmp_path / "i") as index:
        assert index.promise is not None
        assert index.promise.queries == 500


@pytest.mark.parametrize(
    ("queries", "said"),
    [(np.ones((5, 7)), "7 dimensions, and the rows 300"), (np.full((5, WIDE), np.nan), "query 0 .* NaN")],
)
def test_given_queries_that_cannot_be_used(
    wide: FloatArray, tmp_path: Path, queries: FloatArray, said: str
) -> None:
    with pytest.raises(ooc.DataError, match=said):
        ooc.build(wide, tmp_path / "i.ooc", queries=queries)
    assert not (tmp_path / "i.ooc").exists()


@pytest.mark.parametrize("which", ["witnesses.npz", "shards/000000000000.npz"])
def test_what_was_cut_short_is_said_and_made_anew_when_it_is_removed(
    wide: FloatArray, tmp_path: Path, which: str
) -> None:
    store, index = tmp_path / "x.npy", tmp_path / "i.ooc"
    np.save(store, wide)
    ooc.train(store, index, factory="IVF32,SQ8", shard_rows=4096)
    ooc.fill(store, index, shards=[0])
    file = build_layout(index).root / which
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ooc.IndexDirError, match="cannot be read") as error:
        ooc.build(store, index, factory="IVF32,SQ8")
    assert error.value.kind == "shard-damaged"
    file.unlink()
    ooc.build(store, index, factory="IVF32,SQ8")
    ooc.build(store, tmp_path / "j.ooc", factory="IVF32,SQ8")
    one, other = (
        read_json(tmp_path / name / "generations" / "1.json", what="it") for name in ("i.ooc", "j.ooc")
    )
    assert one["calibration"] == other["calibration"]
