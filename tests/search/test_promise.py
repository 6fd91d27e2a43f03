"""What a caller asks of recall, and what a search does about it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.durable import read_json
from ooc.search.promise import CONFIDENCE, lower
from ooc.types import FloatArray
from tests.helpers import embeddings, exact_search, recall


@pytest.fixture(scope="module")
def path(x: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("promise") / "i.ooc"
    ooc.build(x, index, copy_vectors="always", factory="IVF64,EDEN2")
    return index


@pytest.fixture
def index(path: Path) -> Iterator[ooc.Index]:
    with ooc.open_index(path) as opened:
        yield opened


def test_the_default_is_a_recall_of_95(index: ooc.Index, xq: FloatArray) -> None:
    assert index.settings(10) == index.settings(10, recall=0.95)
    for one, other in zip(index.search(xq), index.search(xq, 10, recall=0.95), strict=True):
        np.testing.assert_array_equal(one, other)
    asked = index.explain(xq, recall=0.9)
    assert (asked.nprobe, asked.rerank) == index.settings(10, recall=0.9)


def test_more_recall_takes_more(index: ooc.Index) -> None:
    assert index.promise is not None
    settings = [index.promise.setting(recall, 10)[0] for recall in (0.5, 0.8, 0.9, 0.95, 0.99)]
    costs = [setting.list_bytes + setting.row_bytes for setting in settings]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_recall_1_compares_all_rows(index: ooc.Index, x: FloatArray, xq: FloatArray) -> None:
    expected = exact_search(x, xq, 10, "l2")[1]
    assert (index.search(xq, 10, recall=1)[1] == expected).mean() > 0.999
    assert index.settings(10, recall=1.0) == (index.nlist, index.n)


def test_where_fewer_rows_live_than_were_measured_lists_are_those_of_more_results(
    index: ooc.Index,
) -> None:
    promise = index.promise
    assert promise is not None
    assert promise.setting(0.9, 10, 1.0) == promise.setting(0.9, 10)
    all_live, _ = promise.setting(0.9, 10)
    tenth, _ = promise.setting(0.9, 10, 0.1)
    hundred, _ = promise.setting(0.9, 100)
    assert (tenth.nprobe, tenth.reach) == (hundred.nprobe, hundred.reach)
    assert all_live.candidates <= tenth.candidates <= max(all_live.candidates, hundred.candidates // 10 + 1)
    lives = [promise.setting(0.9, 100, live)[0] for live in (1, 0.9, 0.5, 0.1, 0.01)]  # beyond the table
    assert sorted(setting.nprobe for setting in lives) == [setting.nprobe for setting in lives]
    assert lives[-1].nprobe > lives[1].nprobe > 0


@pytest.mark.parametrize("compacted", [False, True])
def test_the_recall_is_kept_where_rows_were_deleted(tmp_path: Path, compacted: bool) -> None:
    made = embeddings(16_200, 48, seed=4)  # of one kind
    x, xq = made[:16_000], made[16_000:]
    ooc.build(x, tmp_path / "i", copy_vectors="always", factory="IVF256,EDEN2")
    with ooc.open_index(tmp_path / "i") as index:
        before = index.explain(xq, 10)
    left = np.sort(np.random.default_rng(0).choice(len(x), len(x) // 10, replace=False))
    ooc.delete(tmp_path / "i", np.setdiff1d(np.arange(len(x)), left))
    if compacted:
        ooc.compact(tmp_path / "i")
    with ooc.open_index(tmp_path / "i") as index:
        for k, least in ((10, 0.95), (50, 0.94)):  # by the lists of all rows .94 and .91
            expected = left[exact_search(x[left], xq, k, "l2")[1]]
            assert recall(index.search(xq, k)[1], expected) >= least
        assert index.explain(xq, 10).lists > before.lists
        assert "1600 are left" in index.info()["recall"]["stale"]
        ooc.evaluate(tmp_path / "i", update=True)
    with ooc.open_index(tmp_path / "i") as index:
        assert index.info()["recall"]["stale"] is None
        expected = left[exact_search(x[left], xq, 10, "l2")[1]]
        assert recall(index.search(xq, 10)[1], expected) > 0.94


def test_between_the_k_that_were_measured_lies_the_setting(index: ooc.Index) -> None:
    settings = [index.settings(k, recall=0.9) for k in (1, 2, 5, 10, 11, 30, 60, 100)]
    candidates = [rerank for _, rerank in settings]
    assert candidates == sorted(candidates)
    assert settings[4][1] <= settings[3][1] + 5
    assert all(rerank >= k for k, (_, rerank) in zip((1, 2, 5, 10, 11, 30, 60, 100), settings, strict=True))
    lists = [nprobe for nprobe, _ in settings]
    assert min(lists[3], lists[7]) <= lists[5] <= max(lists[3], lists[7])


@pytest.mark.parametrize("k", [3, 25, 70])
def test_recall_is_kept_between_the_k_that_were_measured(
    index: ooc.Index, x: FloatArray, xq: FloatArray, k: int
) -> None:
    expected = exact_search(x, xq, k, "l2")[1]
    assert recall(index.search(xq, k, recall=0.95)[1], expected) > 0.92


def test_beyond_the_largest_k_candidates_grow_and_nothing_is_promised(index: ooc.Index) -> None:
    nprobe, rerank = index.settings(100)
    with pytest.warns(ooc.RecallWarning, match="k = 250"):
        assert index.settings(250) == (nprobe, int(np.ceil(2.5 * rerank)))


def test_a_recall_that_nothing_keeps_is_said(index: ooc.Index, xq: FloatArray) -> None:
    with pytest.warns(ooc.RecallWarning, match=r"0\.9999.*keeps 0\.\d+.*recall=1"):
        index.search(xq, 10, recall=0.9999)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search(xq, 10, recall=0.9999, rerank=0)  # of codes alone nothing is promised anyway


def test_candidates_may_be_named_beside_a_recall(index: ooc.Index) -> None:
    assert index.settings(10, recall=0.9, rerank=77) == (index.settings(10, recall=0.9)[0], 77)
    assert index.settings(10, nprobe=7) == (7, 100)
    assert index.settings(10, nprobe=10**6, rerank=0) == (64, 0)


@pytest.mark.parametrize("recall", [0, -0.1, 1.01, float("nan"), True, "0.9", [0.9]])
def test_a_recall_is_above_0_and_at_most_1(index: ooc.Index, xq: FloatArray, recall: Any) -> None:
    with pytest.raises(ooc.ArgumentError, match="above 0 and at most 1"):
        index.search(xq, recall=recall)


def test_recall_and_nprobe_are_not_given_together(index: ooc.Index, xq: FloatArray) -> None:
    with pytest.raises(ooc.ArgumentError, match="both given"):
        index.search(xq, recall=0.9, nprobe=3)


def test_an_index_without_a_table_has_the_old_defaults(path: Path, xq: FloatArray, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "i.ooc"
    shutil.copytree(path, copy)
    file = copy / "generations" / "1.json"
    record = read_json(file, what="it")
    for calibration in (
        {},
        {"queries": "x"},
        {"by": "rows", "queries": 1, "scanned": 1, "settings": {"10": [[1]]}},
    ):
        file.write_text(json.dumps({**record, "calibration": calibration}))
        if calibration:
            with pytest.raises(ooc.IndexDirError, match="damaged"):
                ooc.open_index(copy)
            continue
        with ooc.open_index(copy) as index:
            assert index.promise is None
            assert index.settings(10) == (16, 100)
            assert index.info()["recall"] is None
            index.search(xq)
            with pytest.raises(ooc.ArgumentError, match="no measured recall"):
                index.search(xq, recall=0.9)


def test_lists_of_a_range_search_are_at_least_one(index: ooc.Index, xq: FloatArray) -> None:
    with pytest.raises(ooc.ArgumentError, match="nprobe must be a whole number of at least 1"):
        index.range_search(xq[:1], 1.0, nprobe=0)


def test_what_is_recorded_under_a_filter_is_what_was_searched(
    index: ooc.Index, xq: FloatArray, tmp_path: Path
) -> None:
    queries = tmp_path / "q.npy"
    np.save(queries, xq)
    for allowed in (range(4000), range(5000)):  # some rows, and all
        told = index.search_to(queries, tmp_path / f"{allowed.stop}.npz", filter=allowed)
        did = index.explain(xq, filter=allowed)
        assert (told["nprobe"], told["rerank"]) == (did.nprobe, did.rerank)
    assert index.settings(10, filter=range(4000)) != index.settings(10)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ooc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line_takes_a_recall(path: Path, xq: FloatArray, tmp_path: Path) -> None:
    queries = tmp_path / "q.npy"
    np.save(queries, xq)
    done = run("search", path, queries, "--recall", "0.8", "--json")
    assert done.returncode == 0, done.stderr
    with ooc.open_index(path) as index:
        record = json.loads(done.stdout)
        assert (record["nprobe"], record["rerank"]) == index.settings(10, recall=0.8)
    done = run("search", path, queries, "--recall", "0.9999", "--out", tmp_path / "h.npz", "--quiet")
    assert done.returncode == 0
    assert done.stderr.count("warning: no setting of") == 1
    done = run("search", path, queries, "--recall", "0.9", "--nprobe", "3")
    assert done.returncode == 2
    assert "Recall" in run("info", path).stdout


@pytest.mark.parametrize("queries", [100, 400])
@pytest.mark.parametrize("losing", [0.03, 0.1, 0.5])
def test_four_of_five_measurements_have_their_bound_below_the_truth(queries: int, losing: float) -> None:
    """Most queries find all, and few lose much: what recall is like."""
    rng = np.random.default_rng(3)
    right, gaps = 0, []
    for _ in range(1500):
        met = 1 - (rng.random(queries) < losing) * rng.beta(1, 4, queries)
        lost = (rng.random((queries // 2, 1)) < 0.05) * rng.beta(1, 6, (queries // 2, 1))
        bound = lower(met, lost, np.array([0.1]))[0]
        truth = 1 - losing / 5 - 0.05 / 7
        right += bound <= truth
        gaps.append(truth - bound)
    assert abs(right / 1500 - CONFIDENCE) < 0.08
    # And it is not far below.
    assert 0 < np.mean(gaps) < 0.35 / np.sqrt(queries)


def test_a_bound_where_nothing_was_missed() -> None:
    one = np.array([0.1, 1.0])
    none = np.zeros((50, 2))
    bounds = [lower(np.ones(n), none, one) for n in (1, 10, 100, 1000)]
    assert all((a < b).all() for a, b in itertools.pairwise(bounds))
    assert all(0.4 < b[1] < b[0] < 1 for b in bounds)
    # What was lost counts against it, as what was not met does.
    some = none.copy()
    some[0] = one
    assert (lower(np.ones(100), some, one) < bounds[2]).all()
    assert (lower(np.append(np.ones(99), 0.5), none, one) < bounds[2]).all()
