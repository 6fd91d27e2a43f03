"""tools/bench: the whole path on a small set, and measures that are what they say."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
ROWS, DIM, LISTS = 2_000, 32, 32

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it measures through /proc")


@pytest.fixture(scope="module")
def tools() -> Iterator[SimpleNamespace]:
    """The tool's modules, by the last part of their names."""
    sys.path.insert(0, str(TOOLS))
    try:
        names = ("measure", "ratios", "recall", "task")
        yield SimpleNamespace(**{name: importlib.import_module(f"bench_{name}") for name in names})
    finally:
        sys.path.remove(str(TOOLS))


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "bench"), "build", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """A run of ours and faiss: the result, what was printed, the work directory."""
    work = tmp_path_factory.mktemp("bench")
    out = work / "bench.json"
    sizes = ["--rows", str(ROWS), "--dim", str(DIM), "--lists", str(LISTS), "--memory", "256MiB"]
    where = ["--work", str(work / "work"), "--cache", str(work / "cache"), "--out", str(out)]
    done = bench(*sizes, *where, "--sides", "ooc-hdf5,faiss", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout, work / "work"


def test_every_side_is_measured_and_judged(ran: tuple[dict[str, Any], str, Path]) -> None:
    result = ran[0]
    assert result["benchmark"] == "build"
    assert result["settings"]["rows"] == [ROWS]
    assert result["settings"]["cgroup_limit_bytes"] == (256 + 128) << 20
    assert {"cpu", "cores", "memory_bytes", "kernel", "disk"} <= set(result["machine"])
    assert {"python", "numpy", "faiss"} <= set(result["versions"])
    (size,) = result["sizes"]
    assert (size["rows"], size["dim"], size["nlist"]) == (ROWS, DIM, LISTS)
    assert list(size["sides"]) == ["ooc-hdf5", "faiss", "faiss-haswell"]
    for side in size["sides"].values():
        assert side["status"] == "done"
        (one,) = side["runs"]
        assert one["wall_seconds"] > 0
        assert one["cpu_seconds"] == pytest.approx(one["user_seconds"] + one["system_seconds"])
        # The interpreter with numpy and faiss takes that much, and no side the machine.
        assert 5 << 20 < one["peak_private_bytes"] <= one["peak_resident_bytes"] < 1 << 30
        assert one["written_bytes"] > 0
        assert one["page_cache"]
        assert side["median"]["wall_seconds"] == one["wall_seconds"]
        assert side["result_bytes"] > ROWS * DIM // 8
    ours = size["sides"]["ooc-hdf5"]["runs"][0]
    assert set(ours["stages"]) >= {"sample", "train", "fill", "merge"}
    assert ours["printed"]["rows"] == ROWS


def test_recall_stands_beside_the_bytes_of_the_lists_read(ran: tuple[dict[str, Any], str, Path]) -> None:
    (size,) = ran[0]["sizes"]
    for key, side in size["sides"].items():
        curve = side["recall"]
        fewer = [1, 2, 3] if key.startswith("ooc") else []  # so that theirs lie within the range of ours
        assert [point["nprobe"] for point in curve] == [*fewer, 4, 8, 16, 32]
        read = [point["list_bytes_per_query"] for point in curve]
        assert read == sorted(read)
        # All lists: every row's code (a bit a dimension and 8 bytes of factors) and its id.
        assert read[-1] == ROWS * (DIM // 8 + 8 + 8)
        for name in ("recall", "recall_shifted"):
            assert 0.3 < curve[len(fewer)][name] < curve[-1][name] <= 1
    compared = size["ratios"]["ooc-hdf5"]["faiss"]["recall_at_equal_bytes"]
    ours = [point["recall"] for point in size["sides"]["ooc-hdf5"]["recall"]]
    assert compared
    for point in compared:
        assert min(ours) <= point["ours"] <= max(ours)
        assert point["difference"] == point["ours"] - point["theirs"]


def test_ratios_count_the_quicker_of_the_two_of_faiss(ran: tuple[dict[str, Any], str, Path]) -> None:
    (size,) = ran[0]["sizes"]
    wall = {name: side["median"]["wall_seconds"] for name, side in size["sides"].items()}
    against = size["ratios"]["ooc-hdf5"]
    assert list(against) == ["faiss"]
    assert against["faiss"]["counted"] == min(("faiss", "faiss-haswell"), key=lambda name: wall[name])
    assert against["faiss"]["wall_seconds"] == wall["ooc-hdf5"] / wall[against["faiss"]["counted"]]


def test_the_merge_is_measured_against_copying_the_same_bytes(
    ran: tuple[dict[str, Any], str, Path],
) -> None:
    merge = ran[0]["sizes"][0]["merge"]
    assert merge["status"] == "done"
    assert merge["bytes"] == ROWS * (DIM // 8 + 8 + 8)
    assert merge["ratio"] == merge["merge_bytes_per_second"] / merge["cp_fsync_bytes_per_second"]


def test_a_table_is_printed_and_the_work_is_cleared_away(ran: tuple[dict[str, Any], str, Path]) -> None:
    result, printed, work = ran
    for text in ("2 000 x 32", "faiss-haswell", "recall@10", "cp + fsync"):
        assert text in printed
    for bar in result["bars"]:
        assert bar["name"] in printed
    # The data stay, to be used again; stores and indexes go.
    assert sorted(path.suffix for path in work.iterdir()) == [".npy", ".npz"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sides", "ooc-hdf5,other"], "no side other"),
        (["--rows", "many"], "not numbers"),
        (["--data", "nowhere.npy"], "nowhere.npy"),
    ],
)
def test_a_wrong_option_is_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = bench(*arguments, "--cache", str(tmp_path), "--out", str(tmp_path / "bench.json"))
    assert done.returncode not in (0, 1)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bench.json").exists()


def test_what_children_take_is_counted(tools: SimpleNamespace, tmp_path: Path) -> None:
    work = "x = b'1' * (100 << 20)\nimport time\nend = time.process_time() + 0.5\n"
    work += "while time.process_time() < end: pass\n"
    write = f"open({str(tmp_path / 'file')!r}, 'wb').write(x[:20 << 20])"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work + write!r}], check=True)"
    measured = tools.measure.run([sys.executable, "-c", child])
    assert measured.status == "done"
    assert measured.cpu_seconds >= 0.5
    assert measured.peak_private_bytes >= 100 << 20
    if Path("/proc/self/io").exists() and measured.written_bytes:  # a tmpfs writes nothing to a disk
        assert measured.written_bytes >= 20 << 20
    if measured.peak_cgroup_bytes is not None:
        assert measured.peak_cgroup_bytes >= 100 << 20


def test_a_run_beyond_its_time_is_killed_with_all_it_started(tools: SimpleNamespace, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    command = ["/bin/sh", "-c", f"sleep 60 & echo $! > {pid_file}; wait"]
    measured = tools.measure.run(command, time_limit=0.5)
    assert measured.status == "killed"
    assert "0.5 s" in measured.why
    stat = Path(f"/proc/{int(pid_file.read_text())}/stat")
    for _ in range(100):  # it may take a moment until it is gone
        try:
            state = stat.read_text().rpartition(")")[2].split()[0]
        except OSError:
            break
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the command started still runs")


def test_a_run_that_fails_says_why(tools: SimpleNamespace) -> None:
    measured = tools.measure.run([sys.executable, "-c", "raise SystemExit('no room')"])
    assert (measured.status, measured.why) == ("failed", "exit status 1: no room")


@pytest.mark.cgroup
def test_a_run_beyond_its_memory_is_killed(tools: SimpleNamespace) -> None:
    group = tools.measure.Cgroup.make(f"ooc-test.{os.getpid()}")
    if group is None:
        pytest.skip("no cgroup may be made here")
    group.remove()
    measured = tools.measure.run([sys.executable, "-c", "bytearray(200 << 20)"], memory_limit=64 << 20)
    assert (measured.status, measured.why) == ("killed", "the memory limit of its cgroup")
    assert measured.peak_cgroup_bytes <= 64 << 20
    assert not [
        path for path in group.path.parent.iterdir() if path.name.startswith(f"ooc-bench.{os.getpid()}.")
    ]


def test_a_peer_that_cannot_be_installed_is_missing(tools: SimpleNamespace, tmp_path: Path) -> None:
    task = tools.task.Task(data=tmp_path, rows=1, work=tmp_path, cache=tmp_path, memory_bytes=1)
    for _ in range(2):  # what was left of the first attempt is not taken for an environment
        with pytest.raises(tools.task.MissingError, match="cannot be installed"):
            task.environment("nothing", [str(tmp_path / "no-such-package")])


def test_recall_is_compared_at_equal_bytes(tools: SimpleNamespace) -> None:
    ours = [{"list_bytes_per_query": b, "recall": r} for b, r in ((100, 0.5), (10_000, 0.7))]
    theirs = [
        {"nprobe": p, "list_bytes_per_query": b, "recall": 0.55}
        for p, b in ((1, 10), (2, 1_000), (3, 20_000))
    ]
    (point,) = tools.recall.at_equal_bytes(ours, theirs)  # the two outside our range are left out
    assert point["their_nprobe"] == 2
    assert point["ours"] == pytest.approx(0.6)
    assert point["difference"] == pytest.approx(0.05)


def test_the_growth_of_the_cost_per_row(tools: SimpleNamespace) -> None:
    def size(rows: int, seconds: float) -> dict[str, Any]:
        return {"rows": rows, "sides": {"ooc-hdf5": {"median": {"wall_seconds": seconds}}, "lancedb": {}}}

    cost = tools.ratios.cost_per_row([size(1_000, 1), size(10_000, 15)])
    assert cost["ooc-hdf5"]["growth"] == pytest.approx(1.5)
    assert "lancedb" not in cost
