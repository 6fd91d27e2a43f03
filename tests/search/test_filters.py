"""Filters, held against a numpy mask of the same rows; and selectors, against what they let faiss find."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap, BitMap64, FrozenBitMap

import ooc
from ooc.errors import ArgumentError
from ooc.search import filters
from ooc.search.filters import Filter
from ooc.types import AnyArray, IntArray
from tests.helpers import embeddings


def agrees(made: Filter, mask: AnyArray) -> None:
    """The filter allows what the mask does, asked in every way."""
    n = len(mask)
    ids = np.flatnonzero(mask)
    assert (made.n, made.count) == (n, len(ids))
    assert made.ids().dtype == np.int64
    np.testing.assert_array_equal(made.ids(), ids)
    for limit in (0, 1, len(ids) // 2, len(ids) + 1):
        np.testing.assert_array_equal(made.ids(limit), ids[:limit])
    asked = np.arange(-2, n + 9)
    expected = np.zeros(n + 11, bool)
    expected[2 : n + 2] = mask
    np.testing.assert_array_equal(made.contains(asked), expected)
    np.testing.assert_array_equal(made.contains(asked.reshape(1, -1)), expected[None])
    native = made.selector().native
    assert [bool(native.is_member(int(i))) for i in asked] == expected.tolist()


@st.composite
def masks(draw: st.DrawFn) -> AnyArray:
    """Masks of all sorts: none, all, one run, a few far apart, many."""
    n = draw(st.integers(0, 1500))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = rng.random(n) < draw(st.sampled_from([0, 0.002, 0.05, 0.5, 1]))
    if draw(st.booleans()):
        first, stop = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
        mask[:first] = mask[stop:] = False
    return mask


@settings(max_examples=150)
@given(mask=masks(), window=st.sampled_from([8, 64, 1 << 22]), seed=st.integers(0, 99))
def test_every_way_to_say_it_allows_the_same_rows(mask: AnyArray, window: int, seed: int) -> None:
    n, ids = len(mask), np.flatnonzero(mask)
    rng = np.random.default_rng(seed)
    repeated = rng.permutation(np.concatenate((ids, ids[: len(ids) // 2])))
    ways: list[Any] = [
        mask,
        mask[::-1][::-1],
        ids,
        repeated,
        repeated.astype(np.int16),
        ids.astype(np.uint64),
        set(ids.tolist()),
        frozenset(ids.tolist()),
        repeated.tolist(),
        tuple(ids.tolist()),
        BitMap(ids),
        FrozenBitMap(ids),
        BitMap64(ids),
    ]
    if n:
        ways.append(mask.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_WINDOW", window)
        for way in ways:
            agrees(Filter.of(way, n), mask)


@settings(max_examples=150)
@given(
    data=st.data(),
    n=st.integers(1, 900),
    step=st.integers(-90, 90).filter(bool),
    window=st.sampled_from([8, 64, 1 << 22]),
)
def test_ranges_of_any_step(data: st.DataObject, n: int, step: int, window: int) -> None:
    first = data.draw(st.integers(0, n - 1))
    last = data.draw(st.integers(first, n - 1) if step > 0 else st.integers(0, first))
    rows = range(first, last + (1 if step > 0 else -1), step)
    mask = np.zeros(n, bool)
    mask[list(rows)] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "_WINDOW", window)
        agrees(Filter.of(rows, n), mask)


def test_a_filter_is_its_own() -> None:
    made = Filter.of(range(3), 10)
    assert Filter.of(made, 10) is made
    assert made.selector() is made.selector()
    with pytest.raises(ArgumentError, match="for 10 rows, and this index has 11"):
        Filter.of(made, 11)


def test_what_was_given_may_change_afterwards() -> None:
    mask = np.arange(900) % 2 == 0
    ids = np.array([3, 500, 899])
    of_mask, of_ids = Filter.of(mask, 900), Filter.of(ids, 900)
    mask[:], ids[:] = False, 0
    assert of_mask.count == len(of_mask.ids()) == 450
    assert of_ids.ids().tolist() == [3, 500, 899]
    of_ids.ids()[:] = 7
    assert of_ids.ids().tolist() == [3, 500, 899]


@pytest.mark.parametrize(
    "nothing", [[], (), set(), range(0), range(99, 5), BitMap(), BitMap64(), np.empty(0, int)], ids=repr
)
def test_nothing_may_be_allowed(nothing: object) -> None:
    for n in (0, 8, 1000):
        agrees(Filter.of(nothing, n), np.zeros(n, bool))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.ones(9, bool), "a mask of 9 rows, and this index has 10"),
        ([True] * 11, "a mask of 11 rows"),
        (np.ones((10, 1), bool), r"of shape \(10, 1\)"),
        (np.zeros((2, 2), int), r"of shape \(2, 2\)"),
        (np.arange(3.0), "float64: neither"),
        ([0.5], "a list of float64: neither"),
        ({1.5}, "a set of float64: neither"),
        ({True, False}, "a set of bool: neither"),
        (["a"], "neither a mask of booleans nor whole numbers"),
        ([[1], [2, 3]], "neither a mask of booleans nor whole numbers"),
        ([2**70], "neither a mask of booleans nor whole numbers"),
        (5, "an int: it must be"),
        ("abc", "a str: it must be"),
        (None, "a NoneType: it must be"),
        ([10], "allows id 10, and this index has ids 0 to 9"),
        ([3, -1], "allows id -1"),
        (np.array([2**64 - 1], np.uint64), f"allows id {2**64 - 1}"),
        (range(11), "allows id 10"),
        (range(-1, 4), "allows id -1"),
        (range(10, 0, -2), "allows id 10"),
        (BitMap([10]), "allows id 10"),
        (BitMap64([2**63 + 1]), f"allows id {2**63 + 1}"),
    ],
    ids=repr,
)
def test_what_is_no_filter_is_refused(wrong: object, says: str) -> None:
    with pytest.raises(ArgumentError, match=says) as caught:
        Filter.of(wrong, 10)
    assert caught.value.kind == "filter"
    assert caught.value.hint


def test_rows_of_an_empty_index_are_not_there() -> None:
    with pytest.raises(ArgumentError, match="this index has no rows"):
        Filter.of([0], 0)


def test_memory_is_the_least_of_the_three_forms() -> None:
    n = 1 << 20

    def held(made: Filter) -> int:
        return sum(x.nbytes for x in (made._bits, made._few) if x is not None)

    assert held(Filter.of(range(5, n), n)) == 0
    assert held(Filter.of(np.arange(n) >= 5, n)) == 0
    assert held(Filter.of(BitMap(range(5, n)), n)) == 0
    assert held(Filter.of(range(0, n, 2), n)) == n // 8
    assert held(Filter.of(BitMap(range(0, n, 2)), n)) == n // 8
    few: IntArray = np.arange(0, n, 1024)
    for way in (few, few.tolist(), range(0, n, 1024), BitMap(few), np.isin(np.arange(n), few)):
        assert held(Filter.of(way, n)) == few.nbytes


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "x.npy"
    np.save(path, embeddings(1500, 32))
    return path


@pytest.mark.parametrize("spill", ["off", "on"])
@pytest.mark.parametrize("code", ["Flat", "SQ8", "PQ8", "RaBitQ", "RaBitQ2", "EDEN2"])
def test_scans_of_lists_on_disk_keep_to_the_filter(
    small: Path, tmp_path: Path, code: str, spill: Literal["off", "on"]
) -> None:
    """Every code finds under a filter what it finds without, less the rows that are not allowed."""
    n, nprobe = 1500, 5
    factory = f"HR,IVF12,{code}" if code.startswith(("RaBitQ", "EDEN")) else f"IVF12,{code}"
    ooc.build(small, tmp_path / "i", factory=factory, spill=spill)
    y = embeddings(6, 32, seed=1)
    with ooc.open_index(tmp_path / "i") as index:
        segment = index._view().segments
        y = segment.transform(y)
        coarse, lists = segment.coarse(y, nprobe)
        every = segment.scan(y, lists, coarse, segment.entries)
        radius = float(np.median(every[0][every[1] >= 0]))
        lims, _, near = segment.range_scan(y, lists, coarse, radius)
        rng = np.random.default_rng(0)
        for mask in (rng.random(n) < 0.4, rng.random(n) < 0.01, np.arange(n) // 300 == 2, np.zeros(n, bool)):
            made = Filter.of(mask, n)
            found, ids = segment.scan(y, lists, coarse, segment.entries, made.selector())
            its_lims, _, its_near = segment.range_scan(y, lists, coarse, radius, made.selector())
            for i in range(len(y)):
                keep = made.contains(every[1][i])
                assert np.sort(ids[i][ids[i] >= 0]).tolist() == np.sort(every[1][i][keep]).tolist()
                np.testing.assert_allclose(
                    np.sort(found[i][ids[i] >= 0]), np.sort(every[0][i][keep]), rtol=1e-5
                )
                expected = near[lims[i] : lims[i + 1]]
                expected = np.sort(expected[made.contains(expected)])
                assert np.sort(its_near[its_lims[i] : its_lims[i + 1]]).tolist() == expected.tolist()
