"""A search, or planning, that is asked to end: at many points, and the same answers where it is not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.build.pipeline import plan
from ooc.build.plan import Options
from ooc.search import exact, scan, stages
from ooc.types import FloatArray


class After(threading.Event):
    """Is set from the ``count``-th time on that it is looked at."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left, self._counting = count, threading.Lock()

    def is_set(self) -> bool:
        with self._counting:
            self._left -= 1
            return self._left < 0


def points(work: Callable[[threading.Event], Any], most: int = 60) -> int:
    """At how many points ``work`` can be ended, each of which is tried, up to ``most``."""
    for count in range(most):
        try:
            work(After(count))
        except ooc.Stopped:
            continue
        return count
    return most


@pytest.fixture(scope="module")
def index(npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ended") / "i.ooc"
    ooc.build(npy, path, factory="IVF64,SQ8")
    return path


@pytest.mark.parametrize("memory", [None, "64MiB"])
@pytest.mark.parametrize("options", [{"nprobe": 20}, {"recall": 1.0}, {"nprobe": 20, "filter": range(3000)}])
def test_a_search_ends_at_many_points_and_else_finds_the_same(
    index: Path, xq: FloatArray, memory: str | None, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(scan, "_PIECE_QUERIES", 3)
    monkeypatch.setattr(stages, "_PIECE_QUERIES", 7)
    monkeypatch.setattr(exact, "_SWEEP_BYTES", 100_000)
    with ooc.open_index(index, memory=memory) as opened:
        found, ids = opened.search(xq, 10, **options)
        again, same = opened.search_until(threading.Event(), xq, 10, **options)
        np.testing.assert_array_equal(ids, same)
        np.testing.assert_array_equal(found, again)
        assert points(lambda stop: opened.search_until(stop, xq, 10, **options)) >= 6


def test_an_explanation_ends(index: Path, xq: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(scan, "_PIECE_QUERIES", 3)
    with ooc.open_index(index) as opened:
        before = opened.explain(xq, nprobe=20)
        after = opened.explain(xq, nprobe=20, stop=threading.Event())
        for name in ("lists", "entries", "candidates", "rows"):
            assert getattr(before, name) == getattr(after, name)
        assert points(lambda stop: opened.explain(xq, nprobe=20, stop=stop)) >= 6


def test_a_stopped_search_to_a_file_leaves_none(index: Path, npy: Path, tmp_path: Path) -> None:
    def search(stop: threading.Event) -> None:
        with ooc.open_index(index) as opened:
            opened.search_to(npy, tmp_path / "r.npz", first=1500, batch=500, overwrite=True, stop=stop)

    told = set()
    for count in range(100):
        try:
            search(After(count))
        except ooc.Stopped as error:
            assert not list(tmp_path.iterdir())
            told.add(error.message.partition(" queries")[0])
        else:
            break
    assert told == {f"stopped after {done} of 1 500" for done in ("0", "500", "1 000")}
    assert (tmp_path / "r.npz").exists()


def test_exact_search_ends_between_tiles_of_queries(npy: Path, tmp_path: Path) -> None:
    def search(stop: threading.Event) -> None:
        ooc.exact(npy, npy, k=3, out=tmp_path / "e.npz", overwrite=True, threads=1, stop=stop)

    with pytest.raises(ooc.Stopped, match="after 0 of 5 000 rows"):
        search(After(5))
    assert not list(tmp_path.iterdir())
    # Ten tiles of 512 for each of the pieces of the store.
    assert points(search, 25) == 25


def test_planning_ends(npy: Path) -> None:
    before = plan(npy, Options())
    assert points(lambda stop: plan(npy, Options(), stop=stop), 10) == 10
    assert plan(npy, Options(), stop=threading.Event()).identity == before.identity
