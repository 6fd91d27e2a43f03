"""Recall of the first neighbour, from the few nearest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ooc.build.first import MOST_LOST, first_lost, first_met, one_lost
from ooc.types import AnyArray

CANDIDATES = np.array([1, 4, 7, 8, 15, 16, 31, 32, 2048])
#: Of how many nearest each of these is told by.
OF = np.array([1, 1, 1, 2, 2, 3, 3, 4, 4])


def lost_of(rates: AnyArray) -> AnyArray:
    """What is told of one query of which these shares of the nearest, of the second .. are missed."""
    means = np.cumsum(rates) / np.arange(1, len(rates) + 1)

    def lost(m: int, columns: slice) -> AnyArray:
        return np.full((1, columns.stop - columns.start), means[m - 1])

    return first_lost(lost, CANDIDATES, len(rates))[0]


def test_what_is_always_met_is_met() -> None:
    for k in (1, 2, 10, 16):
        np.testing.assert_allclose(first_met(np.ones((5, k), bool)), 1)
        np.testing.assert_allclose(first_met(np.zeros((5, k), bool)), 0)
    np.testing.assert_allclose(first_met(np.array([[True], [False]])), [1, 0])


@given(st.floats(0.3, 1), st.floats(0, 0.3), st.integers(2, 16))
def test_a_line_in_the_logarithm_of_the_rank_is_followed_to_its_beginning(
    begin: float, slope: float, k: int
) -> None:
    """In the mean: the estimate of the rates is that of the queries."""
    rates = np.clip(begin - slope * np.log(np.arange(1, k + 1)) / np.log(16), 0, 1)
    queries = np.random.default_rng(0).random((4000, k)) < rates
    assert first_met(queries).mean() == pytest.approx(begin, abs=0.06)
    # Without chance.
    weights = first_met(np.eye(k, dtype=bool))
    assert rates @ weights == pytest.approx(begin, abs=1e-9)


def test_ten_nearest_are_surer_than_the_first_alone() -> None:
    queries = np.random.default_rng(1).random((4000, 10)) < 0.9
    assert first_met(queries).std() < 0.85 * queries[:, 0].std()


def test_first_neighbours_that_are_unlike_the_next_count() -> None:
    rng = np.random.default_rng(2)
    rates = np.array([0.8] + [0.95] * 9)
    for queries, near in ((20_000, 0.01), (200, 0.08)):
        met = rng.random((queries, 10)) < rates
        assert first_met(met).mean() == pytest.approx(0.8, abs=near)
    # What chance would do is not followed.
    same = rng.random((50, 200, 10)) < 0.9
    told = np.array([first_met(met).mean() for met in same])
    assert told.std() < 0.85 * same[:, :, 0].mean(axis=1).std()


@given(st.floats(0, 0.01), st.floats(1, 3))
def test_what_the_code_misses_is_not_said_too_low(first: float, power: float) -> None:
    rates = first * np.arange(1, MOST_LOST + 1) ** power
    told = lost_of(rates)
    assert (told >= first - 1e-12).all()
    if power == 1:
        np.testing.assert_allclose(told, first)


def test_few_candidates_are_told_of_by_fewer() -> None:
    rates = np.array([0.0, 0, 0, 1])
    np.testing.assert_allclose(lost_of(rates), np.where(OF == 4, 0.1, 0))
    np.testing.assert_allclose(one_lost(CANDIDATES, MOST_LOST), 2 / (OF * (OF + 1)))
    np.testing.assert_allclose(one_lost(CANDIDATES, 2), 2 / (np.minimum(OF, 2) * (np.minimum(OF, 2) + 1)))
    # What one neighbour adds is what the estimate has when one is missed.
    for most in range(1, MOST_LOST + 1):
        told = first_lost(lambda m, at: np.full((1, at.stop - at.start), 1 / m), CANDIDATES, most)[0]
        np.testing.assert_allclose(told, one_lost(CANDIDATES, most))
