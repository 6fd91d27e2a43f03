"""``ooc eval --update``: recall is measured anew, and another generation says so."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc import events
from ooc.durable import read_json, write_sealed
from ooc.evaluation import update as update_module
from ooc.index import layout as layout_module
from ooc.index.layout import Layout
from ooc.index.lock import publisher
from ooc.types import FloatArray, Metric
from tests.cli.process import run
from tests.helpers import embeddings, recall, tree, unsealed

WIDE = 300


@pytest.fixture(scope="module")
def wide() -> FloatArray:
    return embeddings(12_000, WIDE)


@pytest.fixture(scope="module")
def made(wide: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``x.npy`` and ``my.ooc``, which has as many lists as are found by a sketch."""
    root = tmp_path_factory.mktemp("update")
    np.save(root / "x.npy", wide)
    ooc.build(root / "x.npy", root / "my.ooc", factory="HR,IVF2048,RaBitQ")
    return root


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """A copy to be updated."""
    return Path(shutil.copytree(made / "my.ooc", tmp_path / "my.ooc"))


@pytest.fixture(scope="module")
def asked(wide: FloatArray) -> FloatArray:
    """1 400 queries between topics: unlike the rows."""
    rng = np.random.default_rng(5)
    return (wide[rng.choice(12_000, 1400)] + wide[rng.choice(12_000, 1400)]).astype(np.float32) / 2


def record(index: Path, number: int) -> dict[str, Any]:
    return dict(read_json(index / "generations" / f"{number}.json", what="it"))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("options", [{}, {"spill": "on"}, {"copy_dtype": "int8"}], ids=str)
def test_the_same_rows_tell_the_same_as_while_building(
    wide: FloatArray, tmp_path: Path, metric: Metric, options: dict[str, Any]
) -> None:
    """By one pass over the rows, and the ids of the lists: what the build knew from its shards."""
    store, index = tmp_path / "x.npy", tmp_path / "i.ooc"
    np.save(store, wide[:6000])
    ooc.build(store, index, metric=metric, factory="HR,IVF64,RaBitQ", **options)
    figures = ooc.evaluate(index, update=True, threads=3)
    one, two = record(index, 1), record(index, 2)
    assert two["generation"] == figures["generation"] == 2
    for key in ("calibration", "order", "plan", "rows", "store"):
        assert one[key] == two[key]
    assert one["calibrated"] == {**two["calibrated"], "generation": 1}
    assert one["calibration"]["settings"]["10"]


def test_a_sketch_is_made_anew_and_published_files_stay(index: Path) -> None:
    before = tree(index)
    report = (index / "generations/1.report.json").read_bytes()
    figures = ooc.evaluate(index, update=True, seed=7)
    after = tree(index)
    assert {name for name in after if after[name] != before.get(name)} == {
        "CURRENT",
        "generations/2.json",
        "generations/2.sketch.faiss",
    }
    assert before.keys() <= after.keys()
    assert (index / "generations/1.report.json").read_bytes() == report
    assert figures["queries"] == {
        "count": 1375,
        "drawn": True,
        "seed": 7,
        "store": record(index, 1)["store"]["uri"],
    }
    # Another draw: near to the one before, and not the same.
    one, two = (record(index, n)["calibration"]["settings"]["10"] for n in (1, 2))
    assert one != two
    assert abs(len(one) - len(two)) < len(one) / 2


def test_searches_keep_their_promise_by_what_was_measured_anew(
    index: Path, wide: FloatArray, asked: FloatArray
) -> None:
    given, held = asked[:700], asked[700:]
    _, truth = ooc.exact(wide, held, k=10)
    with ooc.open_index(index) as reader:
        with pytest.warns(ooc.RecallWarning, match="lie farther"):
            found = reader.search(held, recall=0.9)[1]
        before = recall(found, truth)
        figures = ooc.evaluate(index, given, update=True)
        # Who has it open goes on with what it opened.
        np.testing.assert_array_equal(reader.search(held, recall=0.9)[1], found)
        assert reader.generation == 1
    assert (figures["recall"]["by"], figures["recall"]["queries"]) == ("queries", 700)
    with ooc.open_index(index) as renewed:
        assert renewed.generation == 2
        assert recall(renewed.search(held, recall=0.9)[1], truth) > max(before, 0.88)
        assert renewed.info()["recall"] == figures["recall"]
        assert renewed.info()["report"]["stages"]["fill"]["seconds"] > 0
    # What the build was, it still is.
    assert ooc.build(record(index, 1)["store"]["uri"], index, factory="HR,IVF2048,RaBitQ")["already_built"]


def test_as_many_queries_are_used_as_are_asked_for(index: Path, asked: FloatArray) -> None:
    for number, count in ((2, 50), (3, 1400)):
        figures = ooc.evaluate(index, asked, update=True, count=count)
        assert (figures["generation"], figures["recall"]["queries"]) == (number, count)


def test_times_are_in_the_report_and_nowhere_else(index: Path) -> None:
    ooc.evaluate(index, update=True)
    for number in (1, 2):
        times = json.loads((index / f"generations/{number}.report.json").read_text())["times"]
        assert {line["k"] for line in times} == {1, 10, 100}
        assert all(0 < line["p50_seconds"] < 10 and line["queries"] >= 1 for line in times)
        assert "seconds" not in json.dumps(record(index, number))
    with ooc.open_index(index) as opened:
        assert all(line["p50_seconds"] > 0 for line in opened.info()["recall"]["settings"])
    (index / "generations/2.report.json").unlink()
    with ooc.open_index(index) as opened:
        assert {line["p50_seconds"] for line in opened.info()["recall"]["settings"]} == {None}
        assert opened.info()["report"]["stages"]["fill"]["seconds"] > 0


@pytest.mark.parametrize("stage", ["exact", "calibrate"])
def test_a_stop_leaves_the_index_as_it_was(index: Path, stage: str) -> None:
    before, stop = tree(index), threading.Event()

    def observer(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.stage == stage:
            stop.set()

    with pytest.raises(ooc.Stopped):
        ooc.evaluate(index, update=True, observer=observer, stop=stop)
    still = tree(index)
    assert {name: still[name] for name in before} == before
    assert still.keys() - before.keys() <= {"generations/2.sketch.faiss"}
    assert ooc.evaluate(index, update=True)["generation"] > 1


@pytest.mark.parametrize("name", ["2.report.json", "2.json", "CURRENT"])
def test_a_failure_at_each_file_leaves_the_index_as_it_was(
    index: Path, made: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before it is of no generation, and gone with the next change."""
    before = tree(index)

    def failing(write: Any) -> Any:
        def one(path: Path, *rest: Any, **named: Any) -> Any:
            if path.name == name:
                raise OSError(28, "No space left on device", str(path))
            return write(path, *rest, **named)

        return one

    with monkeypatch.context() as patched:
        for function in ("write_json", "write_sealed", "write_bytes"):
            patched.setattr(layout_module, function, failing(getattr(layout_module, function)))
        with pytest.raises(ooc.ResourceError, match="disk is full"):
            ooc.evaluate(index, update=True)
    assert [one["generation"] for one in ooc.generations(index)] == [1]
    still = tree(index)
    assert {key: still[key] for key in before} == before
    with ooc.open_index(index) as opened:
        assert opened.generation == 1
    assert ooc.evaluate(index, update=True)["generation"] == 2
    with ooc.open_index(index) as opened:
        assert opened.generation == 2


def test_nothing_is_changed_where_the_store_is_gone(index: Path, wide: FloatArray, tmp_path: Path) -> None:
    np.save(tmp_path / "moved.npy", wide)
    before = tree(index)
    path = index / "generations/1.json"
    write_sealed(path, json.loads(json.dumps(unsealed(path)).replace("x.npy", "gone.npy")))
    changed = tree(index)
    with pytest.raises(ooc.StoreError):
        ooc.evaluate(index, update=True)
    assert tree(index) == changed != before
    assert ooc.evaluate(index, update=True, store=tmp_path / "moved.npy")["generation"] == 2


def test_one_process_publishes(index: Path) -> None:
    with publisher(Layout.of(index).lock), pytest.raises(ooc.ConflictError) as error:
        ooc.evaluate(index, update=True)
    assert error.value.kind == "locked"
    with ooc.open_index(index) as opened:
        assert ooc.evaluate(opened, update=True)["generation"] == 2
        with pytest.raises(ooc.ConflictError) as error:
            ooc.evaluate(opened, update=True)
    assert error.value.kind == "index-changed"


def test_rows_that_were_left_out_are_no_neighbours(tmp_path: Path) -> None:
    x = embeddings(3000, 16)
    x[::3] = np.nan
    np.save(tmp_path / "x.npy", x)
    ooc.build(tmp_path / "x.npy", tmp_path / "i.ooc", on_bad="skip")
    ooc.evaluate(tmp_path / "i.ooc", update=True)
    one, two = (record(tmp_path / "i.ooc", number) for number in (1, 2))
    assert one["calibration"] == two["calibration"]


@pytest.mark.parametrize(
    "options",
    [
        {"k": 5},
        {"nprobe": [4]},
        {"candidates": [40]},
        {"html": "x.html"},
        {"plot": "x.svg"},
        {"ground_truth": np.zeros((1, 10), int), "queries": np.ones((1, WIDE))},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_makes_a_grid_is_refused(index: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ooc.ArgumentError, match="grid") as error:
        ooc.evaluate(index, update=True, **options)
    assert error.value.kind == next(iter(options))
    assert not (index / "generations/2.json").exists()


@pytest.mark.parametrize(
    ("options", "error", "kind"),
    [
        ({"memory": "100MiB"}, ooc.PlanError, "memory-too-small"),
        ({"queries": np.ones((5, 7))}, ooc.DataError, "query-shape"),
        ({"queries": np.full((5, WIDE), np.nan)}, ooc.DataError, "query-values"),
        ({"count": 0}, ooc.ArgumentError, "count"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_measured(
    index: Path, options: dict[str, Any], error: type[ooc.OocError], kind: str
) -> None:
    before = tree(index)
    with pytest.raises(error) as caught:
        ooc.evaluate(index, update=True, **options)
    assert caught.value.kind == kind
    assert tree(index) == before


def test_the_command_shows_the_table(index: Path, asked: FloatArray, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", asked)
    done = run("eval", "my.ooc", "q.npy", "--update", "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "my.ooc: generation 2, recall measured anew" in lines[0]
    assert "p50" in lines[1]
    assert " ms" in lines[2]
    assert lines[-1] == "  measured with 1 375 queries that were given"
    shown = run("info", "my.ooc", cwd=tmp_path).stdout
    assert "generation 2" in " ".join(shown.replace("generation      ", "generation ").split())
    assert all(line in shown for line in lines[2:])
    done = run("eval", "my.ooc", "--update", "--queries-count", "100", "--json", "--quiet", cwd=tmp_path)
    assert json.loads(done.stdout)["queries"]["count"] == 100
    done = run("eval", "my.ooc", "--update", "--nprobe", "4", cwd=tmp_path)
    assert done.returncode == 2
    assert "--nprobe" in done.stderr


@pytest.fixture
def changed(wide: FloatArray, tmp_path: Path) -> Path:
    """An index that was appended to, of which rows were replaced and deleted."""
    np.save(tmp_path / "x.npy", wide[:5000])
    np.save(tmp_path / "more.npy", wide[5000:8000])
    ooc.build(tmp_path / "x.npy", tmp_path / "i", factory="HR,IVF64,RaBitQ")
    ooc.append(tmp_path / "i", tmp_path / "more.npy")
    ooc.upsert(tmp_path / "i", np.arange(100, 200), wide[8000:8100])
    ooc.delete(tmp_path / "i", np.arange(1000, 1500))
    return tmp_path / "i"


def true_ids(wide: FloatArray, xq: FloatArray, k: int, own: Any = None) -> Any:
    """Of what ``changed`` holds."""
    ids = np.setdiff1d(np.arange(8000), np.arange(1000, 1500))
    rows = wide[:8000].copy()
    rows[100:200] = wide[8000:8100]
    there = None if own is None else np.searchsorted(ids, own)
    return ids[ooc.exact(rows[ids], xq, k=k, rows=there)[1]]


def test_an_index_that_was_changed_is_evaluated_as_it_is(changed: Path, wide: FloatArray) -> None:
    given = wide[9000:9050] + np.float32(0.01)
    grid: dict[str, Any] = {"nprobe": [2, 64], "candidates": [20, 8000]}
    figures = ooc.evaluate(changed, given, **grid)
    by = {(p["nprobe"], p["candidates"]): p["recall"] for p in figures["points"]}
    assert by[64, 8000] == 1
    truth = true_ids(wide, given, 10)
    with ooc.open_index(changed) as index:
        for nprobe in (2, 64):
            found = index.search(given, 10, nprobe=nprobe, rerank=20)[1]
            assert by[nprobe, 20] == pytest.approx(recall(found, truth))
    # A ground truth is of ids.
    assert ooc.evaluate(changed, given, ground_truth=truth, **grid)["points"][0]["recall"] == by[2, 20]
    drawn = ooc.evaluate(changed, count=300, nprobe=[64], candidates=[8000])
    assert drawn["points"][0]["recall"] == 1
    assert 270 < drawn["queries"]["count"] < 330


def test_an_index_that_was_changed_is_measured_anew(changed: Path, wide: FloatArray) -> None:
    before = record(changed, 4)
    figures = ooc.evaluate(changed, update=True)
    after = record(changed, figures["generation"])
    assert figures["rows"] == 7500
    different = {"generation", "before", "order", "calibration", "calibrated"}
    assert {k: v for k, v in before.items() if k not in different} == {
        k: v for k, v in after.items() if k not in different
    }
    assert [one["name"] for one in after["calibrated"]["segments"]] == ["s1", "s2", "s3"]
    asked = wide[9000:9400]
    truth = true_ids(wide, asked, 10)
    with ooc.open_index(changed) as index:
        for target in (0.8, 0.95):
            assert recall(index.search(asked, recall=target)[1], truth) > target - 0.03
        assert all(line["p50_seconds"] for line in index.info()["recall"]["settings"])
    # What comes later goes on with it, and with its times.
    ooc.compact(changed)
    with ooc.open_index(changed) as index:
        info = index.info()
        assert index.generation == figures["generation"] + 1
        assert info["recall"] == figures["recall"]
        assert recall(index.search(asked, recall=0.95)[1], truth) > 0.92
        assert info["segments"][0]["assignment_error"] > 0
    assert ooc.evaluate(changed, asked, update=True)["recall"]["queries"] == 400


def test_witnesses_and_neighbours_are_live_rows(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    measure = update_module.calibrate

    def calibrate(*arguments: Any, **named: Any) -> Any:
        seen.append(arguments[4:6])
        return measure(*arguments, **named)

    monkeypatch.setattr(update_module, "calibrate", calibrate)
    ooc.evaluate(changed, update=True)
    ((witnesses, nearest),) = seen
    dead = np.concatenate((np.arange(100, 200), np.arange(1000, 1500)))
    assert not np.isin(witnesses.own, dead).any()
    assert not np.isin(nearest.rows, dead).any()
    assert 1250 < len(witnesses.own) < 1500
    assert nearest.rows.max() > 8000
    assert (nearest.lists[nearest.rows >= 0] >= 0).all()


def test_rows_of_another_kind_make_the_table_stale_until_it_is_measured_anew(
    wide: FloatArray, tmp_path: Path
) -> None:
    ooc.build(wide[:6000], tmp_path / "i", copy_vectors="always")

    def stale() -> Any:
        with ooc.open_index(tmp_path / "i") as index:
            return index.info()["recall"]["stale"]

    ooc.append(tmp_path / "i", wide[6000:9000], copy_vectors="always")
    assert stale() is None
    ooc.append(tmp_path / "i", embeddings(1000, WIDE, seed=9), copy_vectors="always")
    assert "segment s3" in stale()
    ooc.compact(tmp_path / "i")
    assert ooc.evaluate(tmp_path / "i", update=True)["recall"]["stale"] is None
    assert stale() is None


def test_an_index_of_more_lists_than_rows_is_measured_and_one_without_rows_is_not(tmp_path: Path) -> None:
    path = tmp_path / "i.ooc"
    ooc.build(embeddings(3000, 16), path, factory="IVF128,SQ8", copy_vectors="always")
    ooc.delete(path, np.arange(50, 3000))
    ooc.compact(path)
    assert ooc.evaluate(path, update=True)["rows"] == 50
    with ooc.open_index(path) as index:
        assert index.info()["recall"]["settings"]
    ooc.delete(path, np.arange(50))
    before = tree(path)
    for _ in range(2):
        with pytest.raises(ooc.DataError, match="no live rows") as caught:
            ooc.evaluate(path, update=True)
        assert caught.value.kind == "no-rows"
        assert tree(path) == before
        ooc.compact(path)
        before = tree(path)
