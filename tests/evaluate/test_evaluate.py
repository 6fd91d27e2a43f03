"""``ooc.evaluate`` and ``ooc eval``: what is measured, the page and the curve, and what is refused."""

from __future__ import annotations

import json
import re
import threading
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc import events
from ooc.evaluation.page import cheapest, page
from ooc.evaluation.plot import curve
from ooc.evaluation.png import png
from ooc.evaluation.svg import recall_axis, time_axis
from ooc.types import FloatArray
from tests.cli.process import run


@pytest.fixture(scope="module")
def built(x: FloatArray, xq: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``x.npy``, ``q.npy``, ``truth.h5`` and ``my.ooc``."""
    root = tmp_path_factory.mktemp("evaluate")
    np.save(root / "x.npy", x)
    np.save(root / "q.npy", xq)
    ooc.exact(root / "x.npy", root / "q.npy", k=20, out=root / "truth.h5")
    ooc.build(root / "x.npy", root / "my.ooc", factory="HR,IVF32,RaBitQ")
    return root


def test_a_grid_is_measured_against_given_neighbours(built: Path, xq: FloatArray) -> None:
    figures = ooc.evaluate(
        built / "my.ooc",
        built / "q.npy",
        ground_truth=built / "truth.h5",
        nprobe=[4, 1],
        candidates=[100, 10],
    )
    json.dumps(figures, allow_nan=False)
    assert [(p["nprobe"], p["candidates"]) for p in figures["points"]] == [
        (1, 10),
        (1, 100),
        (4, 10),
        (4, 100),
    ]
    assert figures["queries"] == {
        "count": 40,
        "drawn": False,
        "seed": None,
        "store": str(built / "q.npy"),
    }
    with ooc.open_index(built / "my.ooc") as index:
        _, true = index.search(xq, 10, nprobe=32, rerank=index.n)
        for point in figures["points"]:
            _, ids = index.search(xq, 10, nprobe=point["nprobe"], rerank=point["candidates"])
            found = np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, true, strict=True)]) / 10
            assert point["recall"] == pytest.approx(found)
            assert point["recall_low"] <= point["recall"] <= point["recall_high"]
            one = [index.explain(q, 10, nprobe=point["nprobe"], rerank=point["candidates"]) for q in xq]
            assert point["list_bytes"] == np.mean([explained.list_bytes for explained in one])
            assert point["row_bytes"] == np.mean([explained.row_bytes for explained in one])
            times = point["latency_seconds"]
            assert 0 < times["p50"] <= times["p95"] <= times["p99"]
            assert point["queries_per_second"] > 0


def test_rows_that_are_drawn_are_left_out_of_their_own_answers(built: Path, x: FloatArray) -> None:
    """A list that holds nothing but the query itself finds nothing: no row is its own neighbour."""
    figures = ooc.evaluate(built / "my.ooc", count=50, nprobe=[1, 32], candidates=[5000], seed=3)
    assert figures["queries"]["count"] == 50
    assert figures["ground_truth"] is None
    own = np.sort(np.random.default_rng(3).choice(len(x), 50, replace=False))
    _, true = ooc.exact(x, rows=own, k=10)
    with ooc.open_index(built / "my.ooc") as index:
        _, ids = index.search(x[own], 11, nprobe=1, rerank=5000)
    kept = [[i for i in line if i != row][:10] for line, row in zip(ids.tolist(), own, strict=True)]
    found = np.mean([len(np.intersect1d(a, b)) for a, b in zip(kept, true, strict=True)]) / 10
    assert figures["points"][0]["recall"] == pytest.approx(found)
    assert figures["points"][1]["recall"] == 1


def test_the_same_seed_gives_the_same_recalls_and_bytes(built: Path) -> None:
    options: dict[str, Any] = {"count": 60, "nprobe": [2, 8], "candidates": [20], "seed": 5}
    with ooc.open_index(built / "my.ooc") as index:
        one, two = (ooc.evaluate(index, **options) for _ in range(2))
    keys = ("recall", "recall_low", "recall_high", "list_bytes", "row_bytes", "entries", "best")
    assert [[p[key] for key in keys] for p in one["points"]] == [
        [p[key] for key in keys] for p in two["points"]
    ]


def test_best_points_are_those_that_no_other_beats(built: Path) -> None:
    points = ooc.evaluate(built / "my.ooc", count=100)["points"]
    size = {id(p): p["list_bytes"] + p["row_bytes"] for p in points}
    for p in points:
        beaten = any(
            q["recall"] >= p["recall"]
            and size[id(q)] <= size[id(p)]
            and (q["recall"], -size[id(q)]) != (p["recall"], -size[id(p)])
            for q in points
        )
        if p["best"]:
            assert not beaten
        elif not beaten:
            assert any(
                q["best"] and q["recall"] == p["recall"] and size[id(q)] == size[id(p)] for q in points
            )
    met = cheapest(points, 0.8)
    assert met is not None
    assert all(size[id(p)] >= size[id(met)] for p in points if p["recall_low"] >= 0.8)
    assert cheapest(points, 1.0) is None


def test_a_smaller_copy_of_the_rows_costs_recall_that_is_counted(x: FloatArray, tmp_path: Path) -> None:
    """Against the store, not against the copy's own order; without the store against ids alone."""
    rows = x + np.float32(40)  # int8 keeps little of what is far from the origin
    np.save(tmp_path / "x.npy", rows)
    ooc.build(tmp_path / "x.npy", tmp_path / "x.ooc", factory="IVF16,SQ8", copy_dtype="int8")
    xq = rows[:60] + np.float32(0.01)
    ooc.exact(rows, xq, k=10, out=tmp_path / "truth.npy")
    options: dict[str, Any] = {"ground_truth": tmp_path / "truth.npy", "nprobe": [16], "candidates": [5000]}
    figures = ooc.evaluate(tmp_path / "x.ooc", xq, **options)
    assert figures["ties"] == "distances"
    assert 0.05 < figures["points"][0]["recall"] < 0.999
    (tmp_path / "x.npy").unlink()
    without = ooc.evaluate(tmp_path / "x.ooc", xq, **options)
    assert without["ties"] == "ids"
    assert without["points"][0]["recall"] == pytest.approx(figures["points"][0]["recall"], abs=1e-6)
    with pytest.raises(ooc.StoreError):
        ooc.evaluate(tmp_path / "x.ooc", xq)


def test_skipped_rows_are_no_neighbours(x: FloatArray, tmp_path: Path) -> None:
    bad = x[:1500].copy()
    bad[::100] = np.nan
    np.save(tmp_path / "x.npy", bad)
    ooc.build(tmp_path / "x.npy", tmp_path / "x.ooc", factory="IVF8,SQ8", on_bad="skip")
    figures = ooc.evaluate(tmp_path / "x.ooc", count=1500, nprobe=[8], candidates=[1500])
    assert figures["queries"]["count"] == 1485
    assert figures["points"][0]["recall"] == 1


def test_events_and_a_stop(built: Path, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    stop = threading.Event()
    ooc.evaluate(built / "my.ooc", count=20, nprobe=[1, 2], candidates=[10], observer=seen.append)
    assert [e.stage for e in seen if isinstance(e, events.StageStarted)] == ["exact", "search"]
    done = [e.done for e in seen if isinstance(e, events.Progress) and e.stage == "search"]
    assert done == [20, 40]

    def observer(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.stage == "search":
            stop.set()

    with pytest.raises(ooc.Stopped):
        ooc.evaluate(
            built / "my.ooc",
            nprobe=[1, 2],
            candidates=[10],
            observer=observer,
            stop=stop,
            html=tmp_path / "x.html",
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "error", "kind"),
    [
        ({"k": 0}, ooc.ArgumentError, "k"),
        ({"count": 0}, ooc.ArgumentError, "count"),
        ({"nprobe": []}, ooc.ArgumentError, "nprobe"),
        ({"nprobe": [0]}, ooc.ArgumentError, "nprobe"),
        ({"candidates": [9]}, ooc.ArgumentError, "candidates"),
        ({"candidates": [20, 2.5]}, ooc.ArgumentError, "candidates"),
        ({"ground_truth": "truth.h5"}, ooc.ArgumentError, "ground_truth"),
        ({"html": "page.txt"}, ooc.ArgumentError, "out-name"),
        ({"plot": "curve.gif"}, ooc.ArgumentError, "out-name"),
        ({"plot": "curve.jpg"}, ooc.ArgumentError, "out-name"),
        ({"html": "/nowhere/page.html"}, ooc.ArgumentError, "directory-missing"),
        ({"queries": np.ones((3, 47))}, ooc.DataError, "query-shape"),
        ({"queries": np.ones((3, 48)), "ground_truth": "gone.npy"}, ooc.StoreError, "store-missing"),
        (
            {"queries": np.ones((3, 48)), "ground_truth": np.zeros((2, 10), int)},
            ooc.DataError,
            "ground-truth",
        ),
        ({"queries": np.ones((3, 48)), "ground_truth": np.zeros((3, 9), int)}, ooc.DataError, "ground-truth"),
        (
            {"queries": np.ones((3, 48)), "ground_truth": np.full((3, 10), 5000)},
            ooc.DataError,
            "ground-truth",
        ),
        ({"queries": np.ones((3, 48)), "ground_truth": np.full((3, 10), -2)}, ooc.DataError, "ground-truth"),
        ({"queries": np.ones((3, 48)), "ground_truth": np.ones((3, 10))}, ooc.DataError, "ground-truth"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_is_refused(built: Path, options: dict[str, Any], error: type[ooc.OocError], kind: str) -> None:
    with pytest.raises(error) as caught:
        ooc.evaluate(built / "my.ooc", **options)
    assert caught.value.kind == kind


def test_what_is_there_is_not_replaced_unasked(built: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 5, "nprobe": [1], "candidates": [10], "html": tmp_path / "x.html"}
    (tmp_path / "x.html").write_text("mine")
    with pytest.raises(ooc.ConflictError) as caught:
        ooc.evaluate(built / "my.ooc", **options)
    assert caught.value.kind == "out-exists"
    assert (tmp_path / "x.html").read_text() == "mine"
    ooc.evaluate(built / "my.ooc", overwrite=True, **options)
    assert (tmp_path / "x.html").read_text().startswith("<!doctype html>")


class _Page(HTMLParser):
    """What is open, and every address, script or style from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


@pytest.fixture(scope="module")
def evaluated(built: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with ooc.open_index(built / "my.ooc") as index:
        return ooc.evaluate(index, count=50), index.info()


def test_the_page_is_whole_and_loads_nothing(evaluated: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, info = evaluated
    text = page(figures, info)
    parsed = _Page()
    parsed.feed(text)
    assert parsed.open == []
    assert parsed.addresses == []
    assert not parsed.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"url\(|@import|javascript:", text)
    assert set(re.findall(r"https?://[^\"]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "prefers-color-scheme:dark" in text
    assert parsed.titles == [
        "Recall and time", "What a recall takes", "Recall and bytes", "Sizes of lists", "Bytes by part",
        "Time of the build", "Settings", "All that was measured",
    ]  # fmt: skip
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ET.fromstring(svg)
    for wanted in ("s1/lists.ivfdata", "merge", "seed 0", "HR,IVF32,RaBitQ"):
        assert wanted in text
    assert all(f"{point['recall']:.4f}" in text for point in figures["points"])


def test_names_are_escaped(evaluated: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, info = evaluated
    text = page({**figures, "index": "/x/<b>&.ooc"}, info)
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;.ooc" in text


def test_a_page_without_the_report_of_the_build(evaluated: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, info = evaluated
    assert "Time of the build" not in page(figures, {**info, "report": None})


def test_the_curve_has_a_point_for_each_setting(evaluated: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, _ = evaluated
    for text in (curve(figures), curve(figures, "bytes")):
        drawn = ET.fromstring(text)
        dots = [e for e in drawn.iter() if e.get("class") == "fill"]
        assert len(dots) == len(figures["points"])
        rings = [e for e in drawn.iter() if e.get("class") == "best"]
        assert len(rings) == sum(p["best"] for p in figures["points"]) + 1  # and one explains them
        for dot in dots:
            assert 0 <= float(dot.get("cx", "-1")) <= 860
            assert 0 <= float(dot.get("cy", "-1")) <= 460


def test_the_curve_as_png(built: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    plot = tmp_path / "curve.png"
    ooc.evaluate(built / "my.ooc", count=20, nprobe=[1, 4, 32], candidates=[10, 100], plot=plot)
    drawn = imread(plot)
    assert drawn.shape[:2] == (768, 1376)
    assert len(np.unique(drawn.reshape(-1, 4), axis=0)) > 20


def test_a_png_without_its_extra_is_refused_before_the_work(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    seen: list[events.Event] = []
    with pytest.raises(ooc.MissingExtraError, match=r"ooc\[plot\]"):
        ooc.evaluate(built / "my.ooc", plot=tmp_path / "c.png", observer=seen.append)
    assert not seen
    ooc.evaluate(built / "my.ooc", count=5, nprobe=[1], candidates=[10], plot=tmp_path / "c.svg")


@pytest.mark.parametrize("recall", [0.0, 1.0])
def test_one_point_can_be_drawn(recall: float, evaluated: tuple[dict[str, Any], dict[str, Any]]) -> None:
    figures, info = evaluated
    point = {**figures["points"][0], "recall": recall, "recall_low": recall, "recall_high": recall}
    ET.fromstring(curve({**figures, "points": [point]}))
    assert png({**figures, "points": [point]}).startswith(b"\x89PNG")
    assert "not reached" in page({**figures, "points": [{**point, "recall_low": 0.0}]}, info)


def test_axes_place_values_in_order() -> None:
    y = recall_axis([0.3, 0.9, 0.99, 1.0], 100, 0)
    places = [y(r) for r in (0.3, 0.9, 0.99, 1.0)]
    assert places == sorted(places, reverse=True)
    assert places[-1] == 0
    assert y.ticks[0] == (1.0, "1")
    x = time_axis([1e-3, 1e-1], 0, 100)
    assert [words for _, words in x.ticks] == ["1", "2", "5", "10", "20", "50", "100"]


def test_the_command_prints_a_table_and_writes_the_files(built: Path, tmp_path: Path) -> None:
    page_file, plot_file = str(tmp_path / "r.html"), str(tmp_path / "c.svg")
    done = run(
        "eval", "my.ooc", "q.npy", "--ground-truth", "truth.h5", "--nprobe", "1,4", "--candidates", "10,100",
        "--html", page_file, "--plot", plot_file, "--quiet", cwd=built,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "my.ooc: 40 queries, metric l2" in lines[0]
    assert "recall@10" in lines[1]
    assert len([line for line in lines if re.match(r"  [ *]\s+[14]\s+10", line)]) == 4
    assert lines[-2:] == [f"html: {page_file}", f"plot: {plot_file}"]
    assert Path(page_file).stat().st_size > 10_000
    ET.parse(plot_file)


def test_the_command_prints_json(built: Path) -> None:
    done = run("eval", "my.ooc", "--queries-count", "30", "--nprobe", "2", "--json", "--quiet", cwd=built)
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads(done.stdout)
    assert figures["queries"]["drawn"]
    assert {p["nprobe"] for p in figures["points"]} == {2}


def test_exact_on_the_command_line(built: Path, x: FloatArray, tmp_path: Path) -> None:
    out = str(tmp_path / "n.ivecs")
    done = run("exact", "x.npy", "q.npy", "-k", "5", "--out", out, "--quiet", cwd=built)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{out}: 5 neighbours each of 40 queries among 5 000 rows" in done.stdout
    own = str(tmp_path / "own.npy")
    done = run("exact", "x.npy", "--self", "-k", "2", "--out", own, "--json", "--quiet", cwd=built)
    assert json.loads(done.stdout)["nq"] == 5000
    ids = np.load(own)
    assert (ids != np.arange(5000)[:, None]).all()
    np.testing.assert_array_equal(ids, ooc.exact(x, rows=range(5000), k=2)[1])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("exact", "x.npy", "--out", "o.npz"), 2, "QUERIES are missing"),
        (("exact", "x.npy", "q.npy"), 2, "--out"),
        (("eval", "my.ooc", "--nprobe", "1;2"), 2, "--nprobe must be whole numbers"),
        (("eval", "gone.ooc"), 6, "gone.ooc"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], code: int, words: str, built: Path) -> None:
    done = run(*arguments, cwd=built)
    assert done.returncode == code
    assert words in done.stderr
