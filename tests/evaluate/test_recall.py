"""Recall: ties, intervals, and what may never happen when a search looks further."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ooc
from ooc.evaluation.recall import drop_own, interval, limits, recalls
from ooc.stores.array import ArrayStore
from ooc.types import FloatArray, IntArray, Metric
from tests.helpers import embeddings

_METRICS: tuple[Metric, ...] = ("l2", "ip", "cosine")


def shares(
    index: ooc.Index, xq: FloatArray, truth: IntArray, limit: FloatArray, **options: int
) -> FloatArray:
    found, ids = index.search(xq, 10, **options)
    return recalls(ids, found, truth, limit, 10, index.metric)


def test_a_row_as_near_as_the_last_true_one_counts() -> None:
    x = np.array([[0], [1], [-1], [1], [5]], np.float32)
    xq = np.zeros((1, 1), np.float32)
    truth = np.array([[0, 1]])
    limit = limits(xq, truth, 2, ArrayStore(x), "l2")
    for ids, expected in (([0, 1], 1), ([0, 2], 1), ([2, 3], 1), ([0, 4], 0.5), ([4, -1], 0), ([-1, -1], 0)):
        found = np.array([[np.inf if i < 0 else float(x[i, 0] ** 2) for i in ids]], np.float32)
        by_distance = recalls(np.array([ids]), found, truth, limit, 2, "l2")
        assert by_distance.tolist() == [expected], ids
    assert recalls(np.array([[2, 3]]), None, truth, None, 2, "l2").tolist() == [0]
    assert recalls(np.array([[0, 2]]), None, truth, None, 2, "l2").tolist() == [0.5]


def test_similarities_count_where_they_are_not_smaller() -> None:
    x = np.array([[3], [2], [2], [1]], np.float32)
    xq = np.ones((1, 1), np.float32)
    limit = limits(xq, np.array([[0, 1]]), 2, ArrayStore(x), "ip")
    assert limit.tolist() == [2]
    found = np.array([[3, 2]], np.float32)
    assert recalls(np.array([[0, 2]]), found, np.array([[0, 1]]), limit, 2, "ip").tolist() == [1]
    found = np.array([[3, 1]], np.float32)
    assert recalls(np.array([[0, 3]]), found, np.array([[0, 1]]), limit, 2, "ip").tolist() == [0.5]


def test_of_fewer_rows_than_k_all_are_wanted_and_no_more() -> None:
    truth = np.array([[2, 0, -1], [-1, -1, -1]])
    ids = np.array([[0, 2, -1], [-1, -1, -1]])
    assert recalls(ids, None, truth, None, 3, "l2").tolist() == [1, 1]
    x = np.array([[1], [5], [0]], np.float32)
    limit = limits(np.zeros((2, 1), np.float32), truth, 3, ArrayStore(x), "l2")
    assert limit[0] == 1


def test_the_own_row_is_dropped_wherever_it_is() -> None:
    ids = np.array([[7, 1, 2], [1, 7, 2], [1, 2, 3]])
    found = np.array([[0, 1, 2], [0, 0, 2], [0, 1, 2]], np.float32)
    kept, kept_ids = drop_own(found, ids, np.array([7, 7, 7]), 2)
    assert kept_ids.tolist() == [[1, 2], [1, 2], [1, 2]]
    assert kept.tolist() == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize("k", [1, 10, 100])
def test_of_few_that_found_all_recall_is_not_certain(k: int) -> None:
    low, high = interval(np.ones(200), k=k)
    assert 0.97 < low < 0.99
    assert high == 1


def test_the_interval_of_single_neighbours_is_that_of_wilson() -> None:
    """100 trials, 90 hits: from .8256 to .9448 (as in any table of Wilson's interval)."""
    low, high = interval(np.repeat([1.0, 0.0], [90, 10]), k=1)
    assert (low, high) == pytest.approx((0.8256, 0.9448), abs=2e-4)


@given(seed=st.integers(0, 1000), nq=st.integers(2, 300), k=st.integers(1, 100), p=st.floats(0, 1))
def test_intervals_hold_the_mean_and_narrow_with_queries(seed: int, nq: int, k: int, p: float) -> None:
    some = np.random.default_rng(seed).binomial(k, p, nq) / k
    low, high = interval(some, k=k)
    assert 0 <= low <= some.mean() + 1e-9
    assert some.mean() - 1e-9 <= high <= 1
    more_low, more_high = interval(np.tile(some, 4), k=k)
    assert more_high - more_low < high - low


def test_one_query_that_missed_does_not_make_it_more_certain() -> None:
    """What all-found would promise is not exceeded by a sample in which something was missed."""
    for k in (1, 10, 100):
        shares_found = np.ones(500)
        best_low, _ = interval(shares_found, k=k)
        shares_found[0] -= 1 / k
        assert interval(shares_found, k=k)[0] <= best_low


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_the_interval_holds_the_truth_as_often_as_it_says(spread: float) -> None:
    """Queries of different difficulty, whose neighbours are missed together."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        p = np.clip(rng.normal(0.9, spread, 300), 0, 1)
        low, high = interval(rng.binomial(10, p) / 10, k=10)
        expected = np.clip(rng.normal(0.9, spread, 20_000), 0, 1).mean()
        held += low <= expected <= high
    assert held >= 925


CODES = {
    "l2": "IVF32,SQ8",
    "ip": "HR,IVF32,RaBitQ",
    "cosine": "HR,IVF48,EDEN2",
}


@pytest.fixture(scope="module", params=[*_METRICS, "spill"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ooc.Index]:
    x = embeddings(3000, 24, seed=3)
    x[100:120] = x[100]  # the same vector many times
    path = tmp_path_factory.mktemp("recall") / "x.ooc"
    spill = request.param == "spill"
    metric: Metric = "l2" if spill else request.param
    factory = "HR,IVF40,EDEN2" if spill else CODES[metric]
    ooc.build(x, path, metric=metric, factory=factory, spill="on" if spill else "off", copy_vectors="always")
    with ooc.open_index(path) as index:
        yield index


@given(
    seed=st.integers(0, 2**32 - 1),
    nprobe=st.integers(1, 48),
    counts=st.lists(st.integers(10, 3000), min_size=2, max_size=4),
    spread=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_recall_never_falls_when_candidates_rise(
    opened: ooc.Index, seed: int, nprobe: int, counts: list[int], spread: float
) -> None:
    xq, truth, limit = asked(opened, seed, spread)
    before = np.zeros(len(xq), np.float32)
    for count in sorted(counts):
        now = shares(opened, xq, truth, limit, nprobe=nprobe, rerank=count)
        assert (now >= before).all(), (count, now, before)
        before = now


@given(
    seed=st.integers(0, 2**32 - 1),
    nprobes=st.lists(st.integers(1, 48), min_size=2, max_size=5),
    spread=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_recall_never_falls_when_nprobe_rises_and_all_are_compared(
    opened: ooc.Index, seed: int, nprobes: list[int], spread: float
) -> None:
    xq, truth, limit = asked(opened, seed, spread)
    before = np.zeros(len(xq), np.float32)
    for nprobe in [*sorted(nprobes), opened.nlist]:
        now = shares(opened, xq, truth, limit, nprobe=nprobe, rerank=opened.n)
        assert (now >= before).all(), (nprobe, now, before)
        before = now
    assert (before == 1).all()


def asked(index: ooc.Index, seed: int, spread: float) -> tuple[FloatArray, IntArray, FloatArray]:
    """Queries near rows of the index, their true neighbours, and the distance of the last of these."""
    rng = np.random.default_rng(seed)
    rows = index.rows()
    xq = rows.take(rng.integers(0, index.n, 6)) + spread * rng.standard_normal((6, index.d))
    xq = xq.astype(np.float32)
    _, truth = ooc.exact(rows, xq, k=10, metric=index.metric)
    unit = xq / np.linalg.norm(xq, axis=1, keepdims=True) if index.metric == "cosine" else xq
    return xq, truth, ooc.exact(rows, unit, k=10, metric=index.metric)[0][:, -1]


def test_rows_are_those_of_the_store_even_where_the_index_has_a_copy(x: FloatArray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    ooc.build(tmp_path / "x.npy", tmp_path / "x.ooc", factory="IVF16,SQ8", copy_dtype="int8")
    some = np.array([3, 1])
    with ooc.open_index(tmp_path / "x.ooc") as index:
        assert (index.rows().take(some) != x[some]).any()
        assert (index.rows(original=True).take(some) == x[some]).all()
    with pytest.raises(ooc.ArgumentError):
        index.rows()
    (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    with ooc.open_index(tmp_path / "x.ooc") as index, pytest.raises(ooc.StoreError):
        index.rows(original=True)
    with ooc.open_index(tmp_path / "x.ooc", store=tmp_path / "y.npy") as index:
        assert (index.rows(original=True).take(some) == x[some]).all()
