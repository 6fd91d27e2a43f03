"""Training anew: another template for the same rows, under the same ids, while readers go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.engine import sketch
from ooc.events import Event, StageFinished
from ooc.types import FloatArray
from ooc.update import retrain
from tests.helpers import embeddings, tree
from tests.update.model import Model

N, D = 3000, 24
FACTORY = "HR,IVF64,RaBitQ"


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    return embeddings(N + 4000, D, seed=3)


@pytest.fixture(params=["l2", "ip", "cosine"])
def built(tmp_path: Path, rows: FloatArray, request: pytest.FixtureRequest) -> tuple[Path, Model]:
    np.save(tmp_path / "base.npy", rows[:N])
    ooc.build(tmp_path / "base.npy", tmp_path / "i.ooc", metric=request.param, factory=FACTORY)
    return tmp_path / "i.ooc", Model(rows[:N], request.param)


def changed(path: Path, model: Model, rows: FloatArray, directory: Path) -> None:
    """Rows of a store and of an array, some replaced, some gone."""
    np.save(directory / "more.npy", rows[N : N + 3000])
    ooc.append(path, directory / "more.npy")
    model.append(rows[N : N + 3000])
    ooc.append(path, rows[N + 3000 : N + 3100])
    model.append(rows[N + 3000 : N + 3100])
    ids = np.arange(5, 6000, 97)
    ooc.upsert(path, ids, rows[-len(ids) :])
    model.upsert(ids, rows[-len(ids) :])
    gone = np.arange(0, 6000, 11)
    ooc.delete(path, gone)
    model.delete(gone)


def test_answers_and_ids_stay_and_the_index_lives_on(
    built: tuple[Path, Model], rows: FloatArray, tmp_path: Path
) -> None:
    path, model = built
    changed(path, model, rows, tmp_path)
    queries = rows[::331] + np.float32(0.01)
    with ooc.open_index(path) as reader:
        figures = ooc.compact(path, retrain=True)
        assert figures["trained"]
        model.check(reader, queries)  # one that was opened before goes on
        assert reader.refresh()
        model.check(reader, queries)
        info = reader.info()
    assert (len(info["segments"]), info["rows"], info["dead_rows"]) == (1, len(model.vectors), 0)
    assert info["nlist"] != 64
    assert info["recall"] is not None
    assert info["recall"]["stale"] is None
    # It is changed, compacted, rolled back and collected as any.
    ooc.append(path, rows[N + 3100 : N + 3200])
    model.append(rows[N + 3100 : N + 3200])
    ids = np.array([5, 102, 3000])
    ooc.upsert(path, ids, rows[:3])
    model.upsert(ids, rows[:3])
    model.check_at(path, queries)
    ooc.compact(path)
    model.check_at(path, queries)
    ooc.rollback(path, 1)
    Model(rows[:N], model.metric).check_at(path, queries)
    ooc.rollback(path, ooc.generations(path)[-1]["generation"])
    ooc.gc(path)
    model.check_at(path, queries)
    assert [p.name for p in path.iterdir() if p.name.startswith("template")] == [
        f"template{figures['generation']}"
    ]
    assert not (path / "build").exists()
    assert not (path / "retrain").exists()
    with ooc.open_index(path) as index:
        assert (index.search(rows[N : N + 200], 1, recall=0.95)[1] >= 0).all()
    ooc.evaluate(path)


def test_an_index_without_deletions_that_is_trained_twice(
    built: tuple[Path, Model], rows: FloatArray
) -> None:
    path, model = built
    ooc.compact(path, retrain=True)
    ooc.compact(path, retrain=True)
    model.check_at(path, rows[::331])
    assert len(list(path.glob("template*"))) == 3
    ooc.gc(path)
    assert len(list(path.glob("template*"))) == 1
    model.check_at(path, rows[::331])


@pytest.mark.parametrize("stage", ["train", "fill", "merge", "calibrate"])
def test_interrupted_it_leaves_the_index_and_goes_on(tmp_path: Path, rows: FloatArray, stage: str) -> None:
    np.save(tmp_path / "base.npy", rows[:N])
    path, model = tmp_path / "i.ooc", Model(rows[:N], "l2")
    ooc.build(tmp_path / "base.npy", path, metric="l2", factory=FACTORY)
    changed(path, model, rows, tmp_path)
    queries = rows[::331]

    def fail(event: Event) -> None:
        if isinstance(event, StageFinished) and event.stage == stage:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        ooc.compact(path, retrain=True, observer=fail)
    model.check_at(path, queries)
    seen: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, StageFinished):
            seen.append(event.stage)

    ooc.compact(path, retrain=True, observer=note)
    model.check_at(path, queries)
    assert not (path / "build").exists()
    assert not (path / "retrain").exists()
    if stage != "train":
        assert "train" not in seen
    # A change between makes it begin anew.
    with pytest.raises(RuntimeError, match="interrupted"):
        ooc.compact(path, retrain=True, observer=fail)
    ooc.delete(path, [7])
    model.delete(np.array([7]))
    ooc.compact(path, retrain=True)
    model.check_at(path, queries)
    assert not (path / "build").exists()
    assert not (path / "retrain").exists()


@pytest.mark.parametrize("step", ["_renumber", "copy_files", "write_bytes", "add_segment", "publish"])
@pytest.mark.parametrize("after", [False, True])
def test_interrupted_while_publishing_it_goes_on(
    tmp_path: Path, rows: FloatArray, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    monkeypatch.setattr(sketch, "_SKETCH_FROM", 1)
    monkeypatch.setattr(sketch, "_SKETCH_FROM_NLIST", 16)
    x = rows[:4000]
    ooc.build(x[:2000], tmp_path / "i.ooc", metric="l2", factory="HR,IVF64,RaBitQ")
    ooc.append(tmp_path / "i.ooc", x[2000:])
    ooc.delete(tmp_path / "i.ooc", [1, 2, 3000])
    model = Model(x, "l2")
    model.delete(np.array([1, 2, 3000]))
    where: Any = retrain.Next if step in ("add_segment", "publish") else retrain
    real = getattr(where, step)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if after:
            real(*args, **kwargs)
        raise RuntimeError("interrupted")

    monkeypatch.setattr(where, step, failing)
    with pytest.raises(RuntimeError, match="interrupted"):
        ooc.compact(tmp_path / "i.ooc", retrain=True)
    monkeypatch.setattr(where, step, real)
    model.check_at(tmp_path / "i.ooc", x[::700])
    ooc.compact(tmp_path / "i.ooc", retrain=True)
    model.check_at(tmp_path / "i.ooc", x[::700])
    ooc.gc(tmp_path / "i.ooc")
    model.check_at(tmp_path / "i.ooc", x[::700])
    assert len(list((tmp_path / "i.ooc").glob("template*"))) == 1
    assert not (tmp_path / "i.ooc" / "retrain").exists()


def test_spilled_rows_and_rows_that_were_left_out(tmp_path: Path, rows: FloatArray) -> None:
    x = rows[:N].copy()
    x[17] = np.nan
    np.save(tmp_path / "x.npy", x)
    path = tmp_path / "i.ooc"
    ooc.build(tmp_path / "x.npy", path, metric="l2", factory=FACTORY, spill="on", on_bad="skip")
    model = Model(x, "l2")
    model.delete(np.array([17]))
    ooc.compact(path, retrain=True)
    model.check_at(path, rows[::331])
    ooc.delete(path, [3])
    model.delete(np.array([3]))
    model.check_at(path, rows[::331])


def test_auto_trains_where_rows_came_that_do_not_fit(tmp_path: Path, rows: FloatArray) -> None:
    np.save(tmp_path / "base.npy", rows[:N])
    path = tmp_path / "i.ooc"
    ooc.build(tmp_path / "base.npy", path, metric="l2", factory=FACTORY)
    before = tree(path)
    assert not ooc.compact(path, auto=True, retrain=True)["trained"]
    assert tree(path) == before
    ooc.append(path, 5 + 3 * np.random.default_rng(0).standard_normal((2000, D), dtype=np.float32))
    assert ooc.compact(path, auto=True, retrain=True)["trained"]
    assert not ooc.compact(path, auto=True, retrain=True)["trained"]


def test_where_nothing_lives_nothing_can_be_trained(tmp_path: Path, rows: FloatArray) -> None:
    ooc.build(rows[:100], tmp_path / "i.ooc", metric="l2")
    ooc.delete(tmp_path / "i.ooc", np.arange(100))
    with pytest.raises(ooc.DataError, match="no live rows"):
        ooc.compact(tmp_path / "i.ooc", retrain=True)


def test_stopped_it_says_so(tmp_path: Path, rows: FloatArray) -> None:
    ooc.build(rows[:N], tmp_path / "i.ooc", metric="l2", factory=FACTORY)
    stop: Any = threading.Event()
    stop.set()
    with pytest.raises(ooc.Stopped):
        ooc.compact(tmp_path / "i.ooc", retrain=True, stop=stop)
