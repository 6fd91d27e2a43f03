"""Training anew: another template for the same rows, under the same ids, while readers go on."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.build.status import read_status
from ooc.cli.main import main
from ooc.engine import sketch
from ooc.events import Event, StageFinished
from ooc.index.layout import Layout
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


def test_a_generation_that_was_trained_anew_says_that_a_reader_must_know_of_its_template(
    tmp_path: Path, rows: FloatArray
) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(rows[:600], path, factory="IVF8,SQ8", copy_vectors="always")
    for change, said in (
        (lambda: ooc.delete(path, [3]), None),
        (lambda: ooc.compact(path, retrain=True), ["own-template"]),
        (lambda: ooc.delete(path, [5]), ["own-template"]),
        (lambda: ooc.rollback(path, 2), None),
        (lambda: ooc.delete(path, [7]), None),
    ):
        change()
        live = Layout.of(path).published()
        assert json.loads((path / f"generations/{live}.json").read_text()).get("features") == said


@pytest.mark.parametrize("anew", [False, True])
def test_others_see_how_far_it_is(tmp_path: Path, rows: FloatArray, anew: bool) -> None:
    path, seen = tmp_path / "i.ooc", []
    ooc.build(rows[:600], path, factory="IVF8,SQ8", copy_vectors="always")
    ooc.append(path, rows[600:700])

    def observe(event: Event) -> None:
        if isinstance(event, StageFinished):
            seen.append(read_status(path))

    ooc.compact(path, retrain=anew, observer=observe)
    told = [one for one in seen if one is not None]
    assert {one.operation for one in told} == {"compact --retrain" if anew else "compact"}
    assert {one.state for one in told} == {"running"}
    assert "merge" in {stage.name for one in told for stage in one.stages}
    assert read_status(path) is None
    assert not (path / "build").exists()


def test_stores_that_were_moved_are_named(tmp_path: Path, rows: FloatArray) -> None:
    path, model = tmp_path / "i.ooc", Model(rows[:700], "l2")
    for name, some in (("base", rows[:600]), ("more", rows[600:700])):
        np.save(tmp_path / f"{name}.npy", some)
    ooc.build(tmp_path / "base.npy", path, factory="IVF8,SQ8", copy_vectors="never")
    ooc.append(path, tmp_path / "more.npy")
    moved = {}
    for name in ("base", "more"):
        moved[str(tmp_path / f"{name}.npy")] = str(tmp_path / f"{name}-moved.npy")
        (tmp_path / f"{name}.npy").rename(tmp_path / f"{name}-moved.npy")
    with pytest.raises(ooc.StoreError):
        ooc.compact(path, retrain=True)
    with pytest.raises(ooc.ArgumentError, match=r"elsewhere\.npy"):
        ooc.compact(path, retrain=True, store={"elsewhere.npy": moved[str(tmp_path / "base.npy")]})
    with pytest.raises(ooc.ArgumentError, match="no store is read"):
        ooc.compact(path, store=moved)
    for name in moved:  # one of them is not enough
        with pytest.raises(ooc.StoreError):
            ooc.compact(path, retrain=True, store={name: moved[name]})
    named = [word for pair in moved.items() for word in ("--store", *pair)]
    assert main(["compact", str(path), "--retrain", *named]) == 0
    assert ooc.generations(path)[-1]["operation"] == "retrain"
    with ooc.open_index(path, store=moved) as index:
        model.check(index, rows[::97] + np.float32(0.01))
