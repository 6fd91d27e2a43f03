"""Stores of many parts."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ooc.errors import ArgumentError, StoreError
from ooc.stores import multi, open_store
from ooc.stores.array import ArrayStore
from ooc.stores.mapped import MappedStore
from ooc.types import AnyArray, IntArray

X = np.random.default_rng(8).standard_normal((90, 4)).astype(np.float32)


def gzip_parts(directory: Path) -> str:
    for i in range(9):
        with h5py.File(directory / f"p{i}.h5", "w") as file:
            file.create_dataset("x", data=X[i * 10 : i * 10 + 10], chunks=(4, 4), compression="gzip")
    return f"{directory}/p*.h5::/x"


def test_few_decoded_parts_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multi, "_OPEN_PARTS", 2)
    with open_store(gzip_parts(tmp_path)) as store:
        assert isinstance(store, multi.MultiStore)
        for _ in range(2):
            np.testing.assert_array_equal(store.read(0, 90), X)
            np.testing.assert_array_equal(store.take(np.arange(90)[::-1]), X[::-1])
            assert len(store._recent) <= 2
        assert store.chunk_starts.tolist()[:5] == [0, 4, 8, 10, 14]
    with pytest.raises(StoreError, match="was closed"):
        store.read(0, 90)


def test_part_that_changed_is_noticed_when_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multi, "_OPEN_PARTS", 1)
    with open_store(gzip_parts(tmp_path)) as store:
        with h5py.File(tmp_path / "p3.h5", "w") as file:
            file.create_dataset("x", data=X[:5], chunks=(4, 4), compression="gzip")
        with pytest.raises(StoreError, match=r"p3\.h5.* changed") as caught:
            store.read(30, 40)
        assert caught.value.kind == "store-changed"


def test_rows_within_a_part_are_not_copied() -> None:
    with open_store([X[:50], X[50:]]) as store:
        assert np.shares_memory(store.read(10, 50), X)
        assert np.shares_memory(store.read(50, 51), X)
        assert not np.shares_memory(store.read(49, 51), X)


def test_what_was_opened_is_closed_when_a_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(ArrayStore, "close", lambda self: closed.append(self.n))
    with pytest.raises(StoreError):
        open_store([X[:5], X[:6], X[:, :2]])
    assert sorted(closed) == [5, 6, 90]
    closed.clear()
    with pytest.raises(ArgumentError):
        open_store([X[:5], 7])  # type: ignore[list-item]
    assert closed == [5]


def test_all_parts_are_asked_before_the_first_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    will_take, gather = MappedStore.will_take, MappedStore.gather

    def noted_will_take(self: MappedStore, rows: IntArray) -> int:
        calls.append("ask")
        return will_take(self, rows)

    def noted_gather(self: MappedStore, rows: IntArray) -> AnyArray:
        calls.append("read")
        return gather(self, rows)

    monkeypatch.setattr(MappedStore, "will_take", noted_will_take)
    monkeypatch.setattr(MappedStore, "gather", noted_gather)
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", X[i * 30 : i * 30 + 30])
    with open_store(tmp_path) as store:
        np.testing.assert_array_equal(store.take(np.array([80, 2, 31])), X[[80, 2, 31]])
    assert calls == ["ask"] * 3 + ["read"] * 3


def test_long_list_is_described_by_its_ends(tmp_path: Path) -> None:
    names = [tmp_path / f"{i}.npy" for i in range(5)]
    for name in names:
        np.save(name, X[:3])
    with open_store(names) as store:
        assert f"5 parts from {names[0]} to {names[4]} (npy, 15 x 4 float32, mapped)" in repr(store)
        with open_store(store.uri) as again:
            assert again.uri == store.uri
            assert again.n == 15
