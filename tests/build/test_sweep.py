"""The nearest among rows of which many are as near, or equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ooc.search.sweep import Sweep
from ooc.types import METRICS, Metric
from ooc.vectors import normalise


@pytest.mark.parametrize("metric", METRICS)
@given(
    k=st.integers(1, 30),
    every_rest=st.sampled_from([(1, 0), (3, 0), (3, 2)]),
    kinds=st.sampled_from([1, 2, 40]),
    block=st.sampled_from([100, 700]),
    with_own=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_of_rows_as_near_those_with_lower_numbers_are_found_and_few_are_kept(
    metric: Metric, k: int, every_rest: tuple[int, int], kinds: int, block: int, with_own: bool, order: Any
) -> None:
    rng, (every, rest) = np.random.default_rng(k), every_rest
    # Whole numbers: distances have no rounding, and rows that differ are as near, too.
    x = rng.integers(-1, 2, (kinds, 6)).astype(np.float32)[rng.integers(0, kinds, 2100)]
    x[:, 0] = 2
    x[5] = x[1300] = x[1301] = np.nan
    there = np.flatnonzero(~np.isnan(x[:, 0]) & (np.arange(len(x)) % every == rest))
    xq = normalise(x[there[:60]])[0] if metric == "cosine" else x[there[:60]]
    own = there[:60] if with_own else None
    sweep = Sweep(xq, k, metric, own)
    starts = list(range(0, len(x), block * every))
    order.shuffle(starts)
    kept = []
    for start in starts:
        rows = x[start : start + block * every]
        bad = np.flatnonzero(np.isnan(rows[:, 0]))
        found = sweep.look_at(start, np.nan_to_num(rows), bad, every=every, rest=rest)
        kept.append(sum(len(query) for query, _, _ in found.tiles))
        sweep.take(found)
    unit = normalise(x[there])[0] if metric == "cosine" else x[there]
    product = xq.astype(np.float64) @ unit.T
    keys = (np.square(xq[:, None] - unit).sum(axis=2) if metric == "l2" else -product).astype(np.float32)
    if own is not None:
        keys[np.arange(60), np.searchsorted(there, own)] = np.inf
    best = np.lexsort((np.broadcast_to(there, keys.shape), np.round(keys, 5)))[:, :k]
    np.testing.assert_array_equal(sweep.result()[1], there[best])
    assert max(kept) <= 2 * 60 * k + 60


def test_equal_rows_are_compared_but_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    exact = Sweep._exact
    monkeypatch.setattr(
        Sweep, "_exact", lambda self, query, *rest: compared.append(len(query)) or exact(self, query, *rest)
    )
    x = np.ones((20_000, 8), np.float32)
    sweep = Sweep(x[:100], 10, "l2")
    for start in range(0, len(x), 2000):
        found = sweep.look_at(start, x[start : start + 2000], np.empty(0, np.int64))
        assert not start or not len(found.tiles[0][0])
        sweep.take(found)
    assert sum(compared) == 10 * 100 * 10
    assert (sweep.result()[1] == np.arange(10)).all()
