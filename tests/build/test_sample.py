"""The sample on disk: what is in it, and that training may begin before all of it is there."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc.build.draw import draw_sample
from ooc.build.plan import Plan
from ooc.build.sample import Sample, sampled
from ooc.build.sizes import held_out
from ooc.build.workers import workers
from ooc.events import Event, StageFinished
from ooc.stores import Store, open_store
from ooc.types import AnyArray, FloatArray
from ooc.vectors import narrow, widen
from tests.helpers import embeddings

N = 40_000


@pytest.fixture
def path(npy_of: Callable[[AnyArray], Path]) -> Path:
    return npy_of(embeddings(N, 24))


def planned(store: Path, **settings: object) -> Plan:
    return ooc.plan(store, metric="l2", factory="IVF64,SQ8", **{"memory": "400MiB", **settings})


def taken(store: Store, plan: Plan, path: Path) -> FloatArray:
    with workers(2) as pool, sampled(store, plan, path, pool) as sample:
        return sample.take(np.arange(sample.n))


def test_its_first_eighth_quarter_and_half_are_spread_over_the_store(path: Path, tmp_path: Path) -> None:
    plan = planned(path)
    assert plan.overlapped
    with open_store(path) as store:
        sample = taken(store, plan, tmp_path / "s")
        rows = draw_sample(N, plan.sample_rows, plan.seed, held_out(N))
        x = widen(narrow(np.load(path)[rows]))
    m = len(rows)
    order = np.concatenate([np.arange(m)[first::step] for first, step in ((0, 8), (4, 8), (2, 4), (1, 2))])
    np.testing.assert_array_equal(sample, x[order])


@pytest.mark.parametrize("every", [0, 7])
def test_it_is_the_same_however_much_of_it_is_read_meanwhile(
    every: int, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    x = embeddings(N, 24)
    if every:
        x[::every] = np.nan
    path = npy_of(x)
    plan = planned(path, on_bad="skip")
    assert plan.overlapped
    with open_store(path) as store:
        one = taken(store, plan, tmp_path / "one")
        two = taken(store, dataclasses.replace(plan, overlapped=False), tmp_path / "two")
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, two)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_without_room_for_both_the_sample_is_read_before_training(tmp_path: Path) -> None:
    path = tmp_path / "wide.npy"
    np.save(path, np.zeros((40_000, 1024), np.float16))
    least = next(m for m in range(100, 400) if plannable(path, f"{m}MiB"))
    small, large = (ooc.plan(path, memory=f"{m}MiB") for m in (least, least + 200))
    assert large.overlapped
    assert large.memory_by_stage["train"] > small.memory_by_stage["train"]
    for plan in (small, large):
        assert max(plan.memory_by_stage.values()) <= plan.memory_bytes


def plannable(path: Path, memory: str) -> bool:
    try:
        ooc.plan(path, memory=memory)
    except ooc.PlanError:
        return False
    return True


def test_a_row_is_waited_for(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(path)
    may, swept = threading.Event(), threading.Event()
    with open_store(path) as store, workers(2) as pool:
        real = store.gather

        def gather(rows: AnyArray) -> AnyArray:
            if swept.is_set():  # the first sweep is over: this is the thread
                assert may.wait(20)
            return real(rows)

        def told(event: Event) -> None:
            if isinstance(event, StageFinished):
                swept.set()

        monkeypatch.setattr(store, "gather", gather)
        with sampled(store, plan, tmp_path / "s", pool, observer=told) as sample:
            eighth = -(-sample.n // 8)
            assert sample.take(np.arange(eighth)).any(axis=1).all()
            assert not (tmp_path / "s").exists()
            threading.Timer(0.2, may.set).start()
            blocks = [load() for load in sample.iterate(1000, first=sample.n, backwards=False)]
            assert np.concatenate(blocks).any(axis=1).all()
        assert (tmp_path / "s").exists()


def test_a_bad_row_that_is_read_meanwhile_ends_the_build_and_leaves_nothing(
    npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    x = embeddings(N, 24)
    path = npy_of(x)
    plan = planned(path)
    row = int(draw_sample(N, plan.sample_rows, plan.seed, held_out(N))[8 * 700 + 1])  # of the last sweep
    x[row] = np.nan
    path = npy_of(x)
    with pytest.raises(ooc.DataError, match=f"row {row} of .* holds NaN"):
        ooc.build(path, tmp_path / "i", factory="IVF64,SQ8", memory="400MiB")
    assert not (tmp_path / "i").exists()


def test_leaving_early_ends_the_thread_and_removes_the_file(path: Path, tmp_path: Path) -> None:
    before = threading.active_count()

    def leave(sample: Sample) -> None:
        raise RuntimeError(f"{sample.n} rows are enough")

    with (
        open_store(path) as store,
        workers(2) as pool,
        pytest.raises(RuntimeError, match="enough"),
        sampled(store, planned(path), tmp_path / "s", pool) as sample,
    ):
        leave(sample)
    assert threading.active_count() <= before
    assert list(tmp_path.glob("s*")) == []


def test_rows_that_are_decoded_are_read_in_one_sweep(tmp_path: Path) -> None:
    x = embeddings(20_000, 24)
    with ooc.create_store(tmp_path / "z.zarr", d=24, compression="zstd") as store:
        store.append(x)
    plan = planned(tmp_path / "z.zarr")
    np.save(tmp_path / "x.npy", x)
    with open_store(tmp_path / "z.zarr") as opened, open_store(tmp_path / "x.npy") as mapped:
        assert not opened.mapped
        assert not plan.overlapped
        one = taken(opened, plan, tmp_path / "one")
        two = taken(mapped, planned(tmp_path / "x.npy"), tmp_path / "two")
    np.testing.assert_array_equal(one, two)
