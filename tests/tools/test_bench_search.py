"""tools/bench search: the whole path on a small set, and figures that are what they say."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ooc

TOOLS = Path(__file__).parents[2] / "tools"
ROWS, DIM, LISTS, QUERIES, CANDIDATES = 3_000, 32, 8, 40, 400
IN_MEMORY = ("faiss-flat",)
ON_DISK = ("ooc", "faiss-mmap")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it measures through /proc")


@pytest.fixture(scope="module")
def tools() -> Iterator[SimpleNamespace]:
    """The tool's modules, by the last part of their names."""
    sys.path.insert(0, str(TOOLS))
    try:
        names = ("curve", "plot", "read_ahead", "worker")
        modules = {name: importlib.import_module(f"bench_search_{name}") for name in names}
        yield SimpleNamespace(search=importlib.import_module("bench_search"), **modules)
    finally:
        sys.path.remove(str(TOOLS))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "bench"), "search", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Ran:
    """A run: its result, what was printed, where its work is."""

    def __init__(self, work: Path) -> None:
        data, out = work / "rows.npy", work / "result.json"
        make = [sys.executable, str(TOOLS / "make_dataset"), "--rows", str(ROWS), "--dim", str(DIM)]
        make += ["--out", str(data), "--queries", str(QUERIES), "--shifted-queries", str(QUERIES)]
        subprocess.run(make, check=True, capture_output=True)
        self.directory = work / "work"
        where = ["--data", str(data), "--work", str(self.directory), "--cache", str(work), "--out", str(out)]
        sizes = ["--lists", str(LISTS), "--memory", "256MiB", "--queries", str(QUERIES), "--batch", "25"]
        # What a cgroup of 8 MiB has no room for is Python itself.
        what = [
            "--sides",
            ",".join((*ON_DISK, *IN_MEMORY)),
            "--limits",
            "8MiB",
            "--candidates",
            str(CANDIDATES),
        ]
        self.arguments = [*where, *sizes, *what, "--keep", "--no-plots"]
        done = bench(*self.arguments, "--modes", "single,batch", "--no-cold")
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout
        self.data = data
        self.result: dict[str, Any] = json.loads(out.read_text())

    def run(self, side: str, mode: str, memory: str) -> dict[str, Any]:
        (run,) = (
            run
            for run in self.result["sides"][side]["runs"]
            if (run["mode"], run["memory"]) == (mode, memory)
        )
        return dict(run)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("bench-search"))


def test_every_side_is_measured_in_every_mode(ran: Ran) -> None:
    assert ran.result["benchmark"] == "search"
    assert (ran.result["settings"]["rows"], ran.result["settings"]["nlist"]) == (ROWS, LISTS)
    assert list(ran.result["sides"]) == [*ON_DISK, *IN_MEMORY]
    for name, side in ran.result["sides"].items():
        assert (side["status"], side["rows"]) == ("done", ROWS), side
        memories = ("warm", "8MiB") if name in ON_DISK else ("warm",)
        expected = {(mode, memory) for mode in ("single", "batch") for memory in memories}
        assert {(run["mode"], run["memory"]) for run in side["runs"]} == expected
        for mode in ("single", "batch"):
            run = ran.run(name, mode, "warm")
            assert run["status"] == "done", run
            assert run["points"]
            for point in run["points"]:
                assert point["queries"] == QUERIES * (3 if mode == "batch" else 1)
                assert point["queries_per_second"] == pytest.approx(point["queries"] / point["seconds"])
                assert 5 << 20 < point["private_bytes"] <= point["peak_private_bytes"] * 1.1
                # The same searches as those whose recall was measured before.
                assert point["recall_here"] == pytest.approx(point["recall"], abs=0.02)


def test_recall_is_that_of_the_index_that_was_searched(ran: Ran) -> None:
    (path,) = ran.directory.rglob("search-*.ooc")
    with np.load(ran.data.with_suffix(".queries.npz")) as arrays, ooc.open_index(path) as index:
        for name, queries, neighbors in (
            ("recall", "queries", "neighbors"),
            ("recall_shifted", "shifted_queries", "shifted_neighbors"),
        ):
            for point in ran.result["sides"]["ooc"]["recall"]:
                setting = point["setting"]
                options = {"nprobe": setting.get("nprobe"), "rerank": CANDIDATES}
                if "promised" in setting:
                    options = {"recall": setting["promised"] / 1000}
                _, ids = index.search(arrays[queries], 10, **options)
                exact = arrays[neighbors][:, :10]
                shares = [len(np.intersect1d(a, b)) / 10 for a, b in zip(ids, exact, strict=True)]
                assert point[name] == pytest.approx(np.mean(shares)), setting
    # Plain faiss finds much the same in as many lists; ours looks into them in another order.
    ours, plain = (
        [point for point in ran.result["sides"][name]["recall"] if "nprobe" in point["setting"]]
        for name in ON_DISK
    )
    assert [one["setting"] for one in ours] == [one["setting"] for one in plain]
    for a, b in zip(ours, plain, strict=True):
        assert a["recall"] == pytest.approx(b["recall"], abs=0.03)
    flat = ran.result["sides"]["faiss-flat"]["recall"][-1]
    assert flat["recall"] >= 0.995


def test_figures_stand_at_equal_recall(ran: Ran) -> None:
    for name in ran.result["sides"]:
        single, batch = (ran.run(name, mode, "warm")["at"]["0.95"] for mode in ("single", "batch"))
        for at in (single, batch):
            assert at["recall"] > 0.95 if at["beyond"] else at["recall"] == 0.95
        points = ran.run(name, "single", "warm")["points"]
        assert min(p["p50_seconds"] for p in points) <= single["p50_seconds"]
        assert single["p50_seconds"] <= max(p["p50_seconds"] for p in points)
        assert single["p50_seconds"] <= single["p95_seconds"] <= single["p99_seconds"]
        assert "p50_seconds" not in batch


@pytest.mark.cgroup
def test_a_side_that_its_limit_kills_is_reported_and_not_tried_again(ran: Ran) -> None:
    first, other = (ran.run("ooc", mode, "8MiB") for mode in ("single", "batch"))
    if first["status"] == "done":
        pytest.skip("no cgroup may be made here")
    assert (first["status"], first["why"]) == ("killed", "the memory limit of its cgroup")
    assert first["limit_bytes"] == 8 << 20
    assert (other["status"], other["why"]) == ("not run", "was beyond it in 8MiB")
    assert re.search("ooc +single: killed: the memory limit of its cgroup", ran.printed)


def test_a_table_is_printed(ran: Ran) -> None:
    for text in ("3 000 x 32", "memory free, warm", "cgroup of 8MiB", "faiss-flat", "batch/s", "0.95 "):
        assert text in ran.printed
    names = [bar["name"] for bar in ran.result["bars"]]
    assert "queries/s of a batch, of faiss's best IVF in memory" in names
    assert all(name in ran.printed for name in names)


def test_kept_indexes_are_used_again_from_a_cold_start(ran: Ran, tmp_path: Path) -> None:
    (index,) = ran.directory.rglob("search-*.ooc")
    kept, out = index.stat().st_mtime_ns, tmp_path / "result.json"
    few = ["--sides", "ooc", "--modes", "threads", "--limits", "", "--out", str(out)]
    done = bench(*ran.arguments, *few)
    assert done.returncode == 0, done.stderr
    assert index.stat().st_mtime_ns == kept
    side = json.loads(out.read_text())["sides"]["ooc"]
    assert side["build"]["reused"]
    warm, cold = side["runs"]
    assert (warm["memory"], cold["memory"]) == ("warm", "cold")
    assert cold["page_cache"]
    assert [one["setting"] for one in cold["points"]] == [one["setting"] for one in warm["points"]]
    for one in (*warm["points"], *cold["points"]):
        assert one["queries"] == QUERIES
        assert one["recall_here"] == pytest.approx(one["recall"], abs=0.02)
    # Each setting was a process of its own, whose memory was looked at.
    assert all(0 < one["opened_seconds"] < one["first_answer_seconds"] for one in cold["points"])


def test_a_side_that_fails_is_reported(ran: Ran, tmp_path: Path) -> None:
    (parts,) = ran.directory.rglob("search-faiss-*.npz")
    whole = parts.read_bytes()
    parts.write_bytes(whole[:100])
    out = tmp_path / "result.json"
    few = ["--sides", "faiss-sq8,faiss-mmap", "--modes", "single", "--limits", "", "--no-cold"]
    try:
        done = bench(*ran.arguments, *few, "--out", str(out))
    finally:
        parts.write_bytes(whole)
    result = json.loads(out.read_text())["sides"]
    assert result["faiss-sq8"]["status"] == "failed"
    assert result["faiss-sq8"]["why"].startswith("building: exit status 1: ")
    assert result["faiss-sq8"]["runs"] == []
    assert result["faiss-mmap"]["runs"][0]["status"] == "done"
    assert "faiss-sq8: failed: building" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sides", "ooc,other"], "no side other"),
        (["--modes", "both"], "no mode both"),
        (["--limits", "many%"], "not a share"),
        (["--limits", "many"], "not a size"),
        (["--candidates", "some"], "not numbers"),
        (["--read-ahead-kb", "0"], "not numbers"),
        (["--queries", "0"], "at least 1"),
        (["--data", "nowhere.npy"], "nowhere.npy"),
    ],
)
def test_a_wrong_option_is_refused(
    tools: SimpleNamespace,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    tools.search.add_arguments(parser)
    where = ["--cache", str(tmp_path), "--out", str(tmp_path / "bench.json")]
    assert tools.search.main(parser.parse_args([*arguments, *where])) not in (0, 1)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "bench.json").exists()


def point(recall: float, seconds: float, **more: float) -> dict[str, Any]:
    return {"recall": recall, "p50_seconds": seconds, "queries_per_second": 1 / seconds, **more}


def test_interpolation_is_by_factors_in_times_and_by_differences_in_bytes(tools: SimpleNamespace) -> None:
    points = [
        point(0.9, 1.0, read_bytes_per_query=100, recall_shifted=0.8),
        point(0.98, 16.0, read_bytes_per_query=500, recall_shifted=0.88),
    ]
    at = tools.curve.at_recall(points, 0.92, "single")
    assert at["recall"] == 0.92
    assert not at["beyond"]
    assert at["p50_seconds"] == pytest.approx(2.0)
    assert at["queries_per_second"] == pytest.approx(0.5)
    assert at["read_bytes_per_query"] == pytest.approx(200)
    assert at["recall_shifted"] == pytest.approx(0.82)
    assert tools.curve.at_recall(points, 0.98, "single")["p50_seconds"] == pytest.approx(16.0)
    assert tools.curve.at_recall(points, 0.99, "single") is None
    assert tools.curve.at_recall([], 0.9, "single") is None


def test_a_point_counts_only_where_none_of_its_recall_is_better(tools: SimpleNamespace) -> None:
    points = [point(0.85, 5.0), point(0.92, 1.0), point(0.94, 9.0), point(0.96, 4.0)]
    at = tools.curve.at_recall(points, 0.94, "single")
    assert at["p50_seconds"] == pytest.approx(2.0)  # between 1 and 4: the 9 is beaten by the 4
    assert tools.curve.at_recall(points, 0.94, "batch")["queries_per_second"] == pytest.approx(0.5)
    least = tools.curve.at_recall(points, 0.90, "single")  # the 5 is beaten by the 1
    assert (least["recall"], least["beyond"], least["p50_seconds"]) == (0.92, True, 1.0)


def test_settings_worth_measuring_enclose_the_recalls(tools: SimpleNamespace) -> None:
    def points(*recalls: float, candidates: int = 100) -> list[dict[str, Any]]:
        return [
            {"setting": {"nprobe": 1 << i, "candidates": candidates}, "recall": recall}
            for i, recall in enumerate(recalls)
        ]

    def probes(given: list[dict[str, Any]]) -> list[int]:
        return [setting["nprobe"] for setting in tools.curve.worth_measuring(given)]

    assert probes(points(0.5, 0.8, 0.92, 0.97, 0.991, 0.995)) == [2, 4, 8, 16]
    assert probes(points(0.93, 0.97)) == [1, 2]  # neither below nor reached: all of them
    assert probes(points(0.5, 0.6)) == [2]
    assert probes(points(0.995, 0.999)) == [1]
    assert probes(points(0.8, 0.995) + points(0.5, 0.7, 0.92, candidates=50)) == [1, 2, 2, 4]


def test_bars_compare_with_the_best_of_the_others(tools: SimpleNamespace) -> None:
    def side(mode: str, memory: str, rows: int = 10, **figures: float) -> dict[str, Any]:
        run = {"mode": mode, "memory": memory, "read_ahead": "machine", "points": [], "at": {"0.95": figures}}
        return {"rows": rows, "runs": [run]}

    settings = {"rows": 10, "read_ahead": ["machine"], "memory": ["warm", "10%", "3%"]}
    sides = {
        "ooc": side("batch", "warm", queries_per_second=3000.0),
        "faiss-flat": side("batch", "warm", queries_per_second=1000.0),
        "faiss-sq8": side("batch", "warm", queries_per_second=2000.0),
        "faiss-rabitq": side("batch", "warm", rows=5, queries_per_second=9000.0),
    }
    (bar,) = tools.curve.bars({"settings": settings, "sides": sides})
    assert (bar["value"], bar["least"], bar["met"]) == (1.5, 1, True)
    sides = {
        "ooc": side("single", "3%", p50_seconds=0.004),
        "faiss-mmap": side("single", "3%", p50_seconds=0.030),
    }
    first, second = tools.curve.bars({"settings": settings, "sides": sides})
    assert (first["value"], first["met"]) == (pytest.approx(4.0), True)
    assert (second["value"], second["least"], second["met"]) == (pytest.approx(7.5), 10, False)


def test_a_worker_ends_single_queries_in_time_and_says_what_it_had(
    tools: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    exact = np.arange(40).reshape(4, 10)
    zeros = np.zeros((4, 2), np.float32)
    np.savez(tmp_path / "truth.npz", queries=zeros, neighbors=exact)

    class Slow:
        batches = True

        def set(self, setting: dict[str, int]) -> None:
            self.wrong = setting["wrong"]

        def search(self, xq: Any) -> Any:
            done = exact[: len(xq)].copy()
            done[:, : self.wrong] = -1
            if len(xq) == 1:
                tools.worker.time.sleep(0.05)
            return done

        def in_thread(self) -> None:
            pass

    def told(**job: Any) -> list[dict[str, Any]]:
        job = {"side": {}, "truth": str(tmp_path / "truth.npz"), "queries": 4, **job}
        monkeypatch.setattr(sys, "argv", ["worker", json.dumps(job)])
        tools.worker.main(lambda side: Slow())
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()][1:]

    settings = [{"wrong": 3}, {"wrong": 0}, {"wrong": 1}]
    recalls = told(verb="recall", settings=settings)
    # The third is not asked for: the second reaches enough.
    assert [(line["setting"]["wrong"], line["recall"]) for line in recalls] == [(3, 0.7), (0, 1.0)]
    (line,) = told(verb="measure", settings=settings[:1], mode="single", warm=False, point_seconds=0.01)
    assert line["queries"] == len(line["latencies"]) == 1
    assert line["recall_here"] == pytest.approx(0.7)
    assert 0.05 <= line["latencies"][0] <= line["seconds"]
    more = {"mode": "batch", "batch": 3, "warm": True, "point_seconds": 1}
    (line,) = told(verb="measure", settings=settings[:1], **more)
    assert (line["queries"], len(line["latencies"])) == (12, 6)


def test_plots_have_a_line_for_each_side(tools: SimpleNamespace, ran: Ran) -> None:
    series = tools.plot.by_recall(ran.result, "batch")
    assert set(series) == {*ON_DISK, *IN_MEMORY}
    for name, line in series.items():
        points = ran.run(name, "batch", "warm")["points"]
        assert line == sorted((p["recall"], p["queries_per_second"]) for p in points)
    limited = {"mode": "single", "read_ahead": "machine", "at": {"0.95": {"p50_seconds": 0.002}}}
    sides = {"ooc": {"runs": [{**limited, "limit_bytes": size << 20} for size in (200, 100)]}}
    result = {"settings": {"read_ahead": ["machine"]}, "sides": sides}
    assert tools.plot.by_memory(result) == {"ooc": [(100, 2), (200, 2)]}


def test_the_read_ahead_is_set_back_whatever_happens(
    tools: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = tmp_path / "read_ahead_kb"
    queue.write_text("8192\n")
    monkeypatch.setattr(tools.read_ahead, "queue_of", lambda directory: queue)

    def interrupted() -> None:
        with tools.read_ahead.read_ahead(tmp_path, "128") as as_asked:
            assert as_asked
            assert tools.read_ahead.current_kb(tmp_path) == 128
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert queue.read_text() == "8192\n"
    with tools.read_ahead.read_ahead(tmp_path, "machine") as as_asked:
        assert as_asked
        assert queue.read_text() == "8192\n"
    monkeypatch.setattr(tools.read_ahead, "queue_of", lambda directory: None)
    with tools.read_ahead.read_ahead(tmp_path, "128") as as_asked:
        assert not as_asked
