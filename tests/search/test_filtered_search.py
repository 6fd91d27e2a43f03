"""Searching under a filter: only what is allowed, as many as there are, and hardly worse than without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ooc
from ooc import build
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from tests.helpers import embeddings, exact_search, recall


@pytest.fixture(scope="module", params=["l2", "ip", "cosine", "spilled"])
def made(request: pytest.FixtureRequest, npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filtered") / "i"
    spilled = request.param == "spilled"
    metric = "l2" if spilled else request.param
    build(npy, path, memory="400MiB", metric=metric, spill="on" if spilled else "off", factory="IVF64,SQ8")
    return path


def nearest_allowed(x: FloatArray, xq: FloatArray, k: int, metric: Metric, ids: IntArray) -> IntArray:
    """By numpy: the k nearest of the allowed, -1 where there are fewer."""
    _, rows = exact_search(x[ids], xq, min(k, len(ids)), metric)
    out = np.full((len(xq), k), -1, np.int64)
    out[:, : rows.shape[1]] = ids[rows]
    return out


@settings(max_examples=40)
@given(data=st.data())
def test_only_the_allowed_and_as_many_as_there_are(
    made: Path, x: FloatArray, xq: FloatArray, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 2**31))
    count = data.draw(st.sampled_from([0, 1, 3, 9, 10, 11, 50, 400, 2500, 4999, 5000]))
    ids = np.sort(np.random.default_rng(seed).choice(5000, count, replace=False))
    mask = np.isin(np.arange(5000), ids)
    k, rerank = data.draw(st.sampled_from([1, 10, 60])), data.draw(st.sampled_from([0, 100, 5000]))
    nprobe = data.draw(st.sampled_from([1, 8, 64]))
    given_as: Any = data.draw(st.sampled_from([mask, ids, ids.tolist()])) if count else mask
    with ooc.open_index(made) as index:
        found, got = index.search(xq[:5], k, nprobe=nprobe, rerank=rerank, filter=given_as)
        assert np.isin(got[got >= 0], ids).all()
        if count < 5000:  # to allow all is no filter
            assert ((got >= 0).sum(axis=1) == min(k, count)).all()
        for row in got.tolist():
            kept = [i for i in row if i >= 0]
            assert len(set(kept)) == len(kept)
        assert np.isinf(found[got < 0]).all()
        if rerank == 5000 and nprobe == 64:
            expected = nearest_allowed(x, xq[:5], k, index.metric, ids)
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03, 0.01, 0.001])
def test_recall_holds_at_every_share(made: Path, x: FloatArray, xq: FloatArray, share: float) -> None:
    rng = np.random.default_rng(0)
    scattered = np.sort(rng.choice(5000, int(share * 5000), replace=False))
    far = np.sort(np.argsort(((x - x[np.argmax((x**2).sum(axis=1))]) ** 2).sum(axis=1))[: int(share * 5000)])
    with ooc.open_index(made) as index:
        for ids in (scattered, far):
            expected = nearest_allowed(x, xq, 10, index.metric, ids)
            _, got = index.search(xq, 10, filter=ids)
            there = min(10, len(ids))
            assert recall(got[:, :there], expected[:, :there]) >= 0.95


def test_a_filter_is_made_once_for_many_searches(made: Path, xq: FloatArray) -> None:
    with ooc.open_index(made) as index:
        even = index.filter(range(0, 5000, 2))
        batch = index.search(xq, 5, filter=even)
        for i in range(5):
            alone = index.search(xq[i], 5, filter=even)
            np.testing.assert_array_equal(alone[1][0], batch[1][i])
        everything = index.search(xq, 5, filter=np.ones(5000, bool))
        np.testing.assert_array_equal(everything[1], index.search(xq, 5)[1])


@pytest.mark.parametrize("nq", [1, 2])
def test_where_nothing_is_allowed_nothing_is_found(made: Path, xq: FloatArray, nq: int) -> None:
    nothing: tuple[Any, ...] = ([], range(0), np.zeros(5000, bool))
    options: tuple[dict[str, Any], ...] = ({}, {"recall": 1}, {"nprobe": 1}, {"rerank": 0})
    with ooc.open_index(made) as index:
        for allowed in (*nothing, index.filter([])):
            for more in options:
                found, ids = index.search(xq[:nq], 3, filter=allowed, **more)
                assert (ids == np.full((nq, 3), -1)).all()
                assert np.isinf(found).all()
                assert index.explain(xq[:nq], 3, filter=allowed, **more).rows == 0
            assert not len(index.range_search(xq[:nq], 1.0, filter=allowed)[2])


def test_comparing_all_is_exact_far_from_the_origin(tmp_path: Path) -> None:
    far = np.random.default_rng(5).standard_normal((4000, 32), dtype=np.float32) + np.float32(1000)
    # Of both kinds: what lies between them is the mean, and near to none.
    x, xq = np.concatenate((far[:3950], -far[:50])), np.concatenate((far[3950:], -far[3950:3960]))
    build(x[:3950], tmp_path / "i", memory="400MiB", copy_vectors="always", factory="IVF16,SQ8")
    ooc.append(tmp_path / "i", x[3950:])
    with ooc.open_index(tmp_path / "i") as index:
        for ids in (np.arange(4000), np.arange(0, 4000, 7)):
            expected = nearest_allowed(x, xq, 10, "l2", ids)
            options: dict[str, Any] = {"nprobe": 16, "rerank": 4000, "filter": ids}
            for found in (
                index.search(xq, 10, **options)[1],
                np.concatenate([index.search(one, 10, **options)[1] for one in xq]),
            ):
                # Distances of float32 tell few apart of those that are as near.
                assert recall(found, expected) >= 0.99


def test_range_search_under_a_filter(made: Path, x: FloatArray, xq: FloatArray) -> None:
    odd = np.arange(1, 5000, 2)
    with ooc.open_index(made) as index:
        exact, rows = exact_search(x[odd], xq, 40, index.metric)
        radius = float(np.median(exact[:, 20]))
        lims, found, ids = index.range_search(xq, radius, nprobe=index.nlist, filter=odd)
        assert (ids % 2 == 1).all()
        for i in range(len(xq)):
            some = ids[lims[i] : lims[i + 1]]
            shared = min(len(some), 40)
            np.testing.assert_array_equal(some[:shared], odd[rows[i, :shared]])
        near = found < radius if index.metric == "l2" else found > radius
        assert near.all()
        _, _, by_code = index.range_search(xq, radius, nprobe=index.nlist, rerank=False, filter=odd)
        assert (by_code % 2 == 1).all()
        assert len(by_code)
        none = index.range_search(xq, radius, filter=[])
        assert none[0].tolist() == [0] * (len(xq) + 1)


def test_rows_that_were_left_out_are_never_found(
    x: FloatArray, xq: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    bad = x.copy()
    bad[[3, 4]] = np.nan
    build(npy_of(bad), tmp_path / "i", memory="400MiB", factory="IVF32,SQ8", on_bad="skip")
    with ooc.open_index(tmp_path / "i") as index:
        for allowed in ([2, 3, 4, 5], range(5000), np.arange(5000) < 6):
            _, ids = index.search(xq, 3, filter=allowed)
            assert not np.isin(ids, [3, 4]).any()
        _, ids = index.search(xq[:2], 10, filter=[2, 3, 4, 5])
        assert (np.sort(ids, axis=1)[:, -2:] == [2, 5]).all()


def test_what_is_no_filter_is_refused(made: Path, xq: FloatArray) -> None:
    with ooc.open_index(made) as index:
        for wrong in (np.ones(4999, bool), [5000], [-1], np.array([0.5]), "odd", np.ones((2, 2), bool)):
            with pytest.raises(ooc.ArgumentError) as error:
                index.search(xq, 5, filter=wrong)
            assert error.value.kind == "filter"


def test_a_large_collection_is_scanned_and_small_filters_are_compared(tmp_path: Path) -> None:
    x = embeddings(60_000, 32)
    build(x, tmp_path / "i", memory="400MiB", copy_vectors="always", factory="IVF256,SQ8")
    with ooc.open_index(tmp_path / "i") as index:
        for count in (20_000, 6_000, 600, 20):
            ids = np.sort(np.random.default_rng(count).choice(60_000, count, replace=False))
            expected = nearest_allowed(x, x[:40] + np.float32(0.01), 10, "l2", ids)
            _, got = index.search(x[:40] + np.float32(0.01), 10, filter=ids)
            assert recall(got, expected) >= 0.95
