"""How far a search looks under a filter, held against the law told list by list."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ooc.search import widen
from ooc.search.filters import Filter
from ooc.search.widen import AllowedInLists, compares_all, widened
from ooc.types import FloatArray, IntArray


class Lists:
    """Lists of rows on a line: list ``j`` lies at ``j``, a query at any number."""

    def __init__(self, sizes: IntArray, per_row: int = 1) -> None:
        self.sizes, self.nlist = sizes, len(sizes)
        ids = np.random.default_rng(len(sizes)).permutation(int(sizes.sum())) // per_row
        self.all_ids = np.split(ids.astype(np.int64), np.cumsum(sizes)[:-1])
        self.read: list[int] = []
        self.asked: list[tuple[int, int]] = []

    def ids(self, list_nos: IntArray) -> IntArray:
        self.read += list_nos.tolist()
        return np.concatenate([self.all_ids[j] for j in list_nos])

    def coarse(self, y: FloatArray, m: int) -> tuple[FloatArray, IntArray]:
        self.asked.append((len(y), m))
        distances = np.abs(y - np.arange(self.nlist, dtype=np.float32))
        lists = np.argsort(distances, axis=1, kind="stable")[:, :m]
        found = np.take_along_axis(distances, lists, axis=1)
        if 1 < m < self.nlist:  # as a graph does that finds fewer
            lists[:, -1] = -1
        return found, lists


def told(order: list[int], held: IntArray, sizes: IntArray, nprobe: int, entries: int) -> list[int]:
    """The law, list by list."""
    taken, probed, seen = [], 0.0, 0
    for j in order:
        if held[j] and (probed < nprobe - 1e-6 or seen < entries):
            taken.append(j)
        probed += math.sqrt(held[j] / max(sizes[j], 1))
        seen += held[j]
    return taken


@settings(max_examples=200)
@given(data=st.data())
def test_lists_are_those_of_the_law(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    nlist = data.draw(st.integers(1, 120))
    lists = Lists(rng.integers(0, data.draw(st.sampled_from([2, 40])), nlist))
    n = int(lists.sizes.sum())
    mask = rng.random(n) < data.draw(st.sampled_from([0, 0.02, 0.2, 1]))
    if data.draw(st.booleans()):  # nothing in the lists of one side
        for j in range(nlist // 2):
            mask[lists.all_ids[j]] = False
    nprobe, entries = data.draw(st.integers(1, nlist)), data.draw(st.integers(0, 50))
    y = rng.uniform(0, nlist, (data.draw(st.integers(0, 7)), 1)).astype(np.float32)
    allowed = AllowedInLists(Filter.of(mask, n), lists.sizes, lists.ids)
    distances, found = widened(y, lists.coarse, allowed, nlist=nlist, nprobe=nprobe, entries=entries)
    held = np.array([mask[ids].sum() for ids in lists.all_ids])
    assert distances.shape == found.shape
    for query, its, far in zip(y, found, distances, strict=True):
        order = np.argsort(np.abs(query - np.arange(nlist, dtype=np.float32)), kind="stable").tolist()
        expected = told(order, held, lists.sizes, nprobe, entries)
        if nprobe == nlist:
            assert sorted(expected) == np.flatnonzero(held).tolist()
        assert its[: len(expected)].tolist() == expected
        assert (its[len(expected) :] == -1).all()
        np.testing.assert_array_equal(far[: len(expected)], np.abs(query - np.array(expected, np.float32)))
    assert len(lists.read) == len(set(lists.read))  # the ids of a list are read once


def test_where_all_is_allowed_the_lists_are_the_nearest() -> None:
    lists = Lists(np.full(60, 30))
    allowed = AllowedInLists(Filter.of(range(1800), 1800), lists.sizes, lists.ids)
    y = np.array([[3.2], [40.4]], np.float32)
    _, found = widened(y, lists.coarse, allowed, nlist=60, nprobe=60 // 4, entries=10)
    # The stand-in of a graph finds one list fewer than it is asked for, so that it is asked once more.
    np.testing.assert_array_equal(found, lists.coarse(y, 16)[1][:, :15])


def test_entries_are_seen_though_the_probes_are_made() -> None:
    lists = Lists(np.full(64, 8))
    allowed = AllowedInLists(Filter.of(range(512), 512), lists.sizes, lists.ids)
    y = np.array([[10.1]], np.float32)
    _, few = widened(y, lists.coarse, allowed, nlist=64, nprobe=1, entries=0)
    _, many = widened(y, lists.coarse, allowed, nlist=64, nprobe=1, entries=100)
    _, every = widened(y, lists.coarse, allowed, nlist=64, nprobe=1, entries=1000)
    assert [few.shape[1], many.shape[1], every.shape[1]] == [1, 13, 64]


def test_only_queries_that_lack_lists_look_further() -> None:
    """Lists far away hold all that is allowed for three of five."""
    lists = Lists(np.full(100, 20))
    mask = np.zeros(2000, bool)
    for j in range(50):
        mask[lists.all_ids[j]] = True
    allowed = AllowedInLists(Filter.of(mask, 2000), lists.sizes, lists.ids)
    y = np.array([[5], [6], [95], [96], [97]], np.float32)
    _, found = widened(y, lists.coarse, allowed, nlist=100, nprobe=4, entries=1)
    assert [m for _, m in lists.asked] == [4, 16, 64]
    assert [queries for queries, _ in lists.asked] == [5, 5, 3]
    assert found[:, :4].tolist()[2:] == [[49, 48, 47, 46]] * 3
    assert np.unique(found[found >= 0]).tolist() == [3, 4, 5, 6, 7, 46, 47, 48, 49]


def test_looking_far_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = Lists(np.full(100, 20))
    allowed = AllowedInLists(Filter.of([], 2000), lists.sizes, lists.ids)
    monkeypatch.setattr(widen, "_HELD_PAIRS", 200)
    y = np.zeros((50, 1), np.float32)
    distances, found = widened(y, lists.coarse, allowed, nlist=100, nprobe=4, entries=1)
    assert distances.shape == found.shape == (50, 0)
    assert max(queries * m for queries, m in lists.asked) <= 200
    assert lists.asked[-1] == (2, 100)


def test_few_rows_are_all_compared() -> None:
    def most(row_bytes: int = 4096, nprobe: int = 128, queries: int = 1) -> int:
        """The largest number of allowed rows that are all compared; there is one."""
        does = [
            compares_all(
                count,
                10**6,
                nprobe=nprobe,
                nlist=4096,
                list_bytes=244 * 144,
                candidates=100,
                row_bytes=row_bytes,
                queries=queries,
            )
            for count in range(0, 10**5, 50)
        ]
        assert does == sorted(does, reverse=True)
        return 50 * (sum(does) - 1)

    # As the page of filters says.
    assert 6400 < most() < 6600
    assert 40_000 < most(queries=1000) < 45_000
    assert most(row_bytes=128) == most()  # a row takes a page to read at the least
    assert most(row_bytes=4097) == most(row_bytes=8192) < most()
    assert most(nprobe=1) < most() < most(nprobe=512)
    # As many as would be re-ranked anyway.
    assert compares_all(100, 10**9, nprobe=1, nlist=1, list_bytes=0, candidates=100, row_bytes=10**6)
