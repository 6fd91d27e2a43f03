"""The live display in a real terminal, and Ctrl-C and `ooc status` with a build that runs."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ooc.build.status import StatusWriter, read_status
from ooc.events import Finished, Progress, StageStarted, Started

from .process import FLAT, command, environment, run
from .terminal import Terminal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes of a set size are Linux's")


@pytest.fixture
def terminal(here: Path) -> Iterator[Terminal]:
    opened = Terminal("build", "x.npy", "b.ooc", *FLAT, cwd=here)
    yield opened
    opened.close()


def test_live_display_leaves_a_clean_last_state(terminal: Terminal) -> None:
    assert terminal.finish() == 0
    lines = terminal.screen.text.splitlines()
    assert re.fullmatch(r"build b\.ooc +done in \d+\.\d s", lines[0])
    assert [re.match(r"  ✓ (\w+)", line)[1] for line in lines[1:8]] == [  # type: ignore[index]
        "plan", "sample", "train", "fill", "merge", "calibrate", "publish",
    ]  # fmt: skip
    assert "3 000 rows" in lines[4]
    assert re.search(r"memory +[━─]+ +[\d.]+ MiB of 512 MiB, peak [\d.]+ MiB$", lines[8])
    assert len(lines) == 9
    assert terminal.screen.cursor
    assert "\x1b[?25l" in terminal.raw  # hidden while it drew
    assert "3 000 rows" in terminal.stdout
    assert "\x1b" not in terminal.stdout


@pytest.mark.parametrize("columns", [30, 46])
def test_live_display_fits_a_narrow_terminal(here: Path, columns: int) -> None:
    terminal = Terminal("build", "x.npy", "b.ooc", *FLAT, cwd=here, columns=columns)
    try:
        assert terminal.finish() == 0
        assert "✓ publish" in terminal.screen.text
    finally:
        terminal.close()


def test_no_color_is_respected(here: Path) -> None:
    terminal = Terminal("build", "x.npy", "b.ooc", *FLAT, cwd=here, NO_COLOR="1")
    try:
        assert terminal.finish() == 0
        assert "✓ publish" in terminal.screen.text
        colours = set(re.findall(r"\x1b\[([\d;]*)m", terminal.raw))
        assert not any(re.search(r"\b(3[0-7]|9[0-7]|38|48)\b", code) for code in colours), colours
    finally:
        terminal.close()


def test_a_dumb_terminal_gets_lines(here: Path) -> None:
    terminal = Terminal("build", "x.npy", "b.ooc", *FLAT, cwd=here, columns=200, TERM="dumb")
    try:
        assert terminal.finish() == 0
        assert "\x1b" not in terminal.raw
        assert "publish done in" in terminal.screen.text
    finally:
        terminal.close()


def test_a_search_into_a_file_is_shown_in_queries(collection: Path, here: Path) -> None:
    args = ("search", str(collection / "my.ooc"), "x.npy", "--out", "hits.h5", "--batch", "100")
    terminal = Terminal(*args, cwd=here)
    try:
        assert terminal.finish() == 0
        assert re.search(r"✓ search .*3 000 queries", terminal.screen.text)
        assert re.match(r"search .* done in \d+\.\d s\n", terminal.screen.text)
        assert terminal.screen.cursor
        assert "hits.h5: 10 hits each of 3 000 queries" in terminal.stdout
    finally:
        terminal.close()


@pytest.mark.parametrize("name", ["hits.npz", "hits.h5", "hits.zarr", "hits.parquet"])
def test_ctrl_c_of_a_search_into_a_file_leaves_nothing(collection: Path, here: Path, name: str) -> None:
    # The events go into a pipe of one page: the search stands still while nobody reads.
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    args = ("search", str(collection / "my.ooc"), "x.npy", "--out", name, "--batch", "5", "--log-json")
    process = subprocess.Popen(
        command(*args), cwd=here, env=environment(), stdout=subprocess.DEVNULL, stderr=writing
    )
    os.close(writing)
    try:
        with os.fdopen(reading) as lines:
            assert any('"progress"' in line for line in lines)
            process.send_signal(signal.SIGINT)
            told = [json.loads(line) for line in lines]
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    (error,) = (event for event in told if event["event"] == "error")
    assert error["kind"] == "stopped"
    assert re.match(r"stopped after .* of 3 000 queries; .*hits.* was not written", error["message"])
    assert sorted(path.name for path in here.iterdir()) == ["q.npy", "x.npy"]


class Slow:
    """A build that writes its events into a pipe of one page and stands still while nobody reads."""

    ARGS = ("build", "big.npy", "b.ooc", *FLAT, "--shard-rows", "16384")

    def __init__(self, cwd: Path) -> None:
        np.save(cwd / "big.npy", np.random.default_rng(0).standard_normal((200_000, 8), dtype=np.float32))
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        self._reading = reading
        self._text = b""
        self.process = subprocess.Popen(
            command(*self.ARGS, "--log-json"),
            cwd=cwd, env=environment(), stdout=subprocess.DEVNULL, stderr=writing,
        )  # fmt: skip
        os.close(writing)

    def read_until(self, wanted: str) -> None:
        end = time.monotonic() + 60
        while wanted.encode() not in self._text:
            assert time.monotonic() < end, self._text
            if select.select([self._reading], [], [], 1)[0]:
                data = os.read(self._reading, 256)
                assert data, self._text
                self._text += data

    def wait_until_it_stands_still(self) -> None:
        """Nobody reads from here on: the pipe fills up, and the build waits in the middle of a write."""
        waiting, since, end = -1, time.monotonic(), time.monotonic() + 60
        while time.monotonic() < since + 2:
            assert time.monotonic() < end
            (now,) = struct.unpack("i", fcntl.ioctl(self._reading, termios.FIONREAD, bytes(4)))
            if now != waiting:
                waiting, since = now, time.monotonic()
            time.sleep(0.05)

    def read_all(self) -> list[dict[str, object]]:
        while data := os.read(self._reading, 65536):
            self._text += data
        return [json.loads(line) for line in self._text.decode().splitlines()]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._reading)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Slow]:
    started = Slow(tmp_path)
    yield started
    started.close()


#: In the middle of filling: a shard is done, and more than a pipe holds is yet to come.
MIDWAY = '"stage": "fill", "done": 32768'


def test_ctrl_c_stops_at_a_safe_point_and_prints_the_command_that_goes_on(slow: Slow, tmp_path: Path) -> None:
    slow.read_until(MIDWAY)
    slow.process.send_signal(signal.SIGINT)
    events = slow.read_all()
    assert slow.process.wait(60) == 130
    assert any(event.get("kind") == "stopping" for event in events)
    last = events[-1]
    assert (last["event"], last["kind"]) == ("error", "stopped")
    status = read_status(tmp_path / "b.ooc")
    assert status is not None
    assert status.state == "stopped"

    resumed = subprocess.run(
        ["sh", "-c", str(last["resume"])],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    fill = next(
        event for event in map(json.loads, resumed.stderr.splitlines())
        if event["event"] == "stage_started" and event["stage"] == "fill"
    )  # fmt: skip
    assert fill["done"] >= 32768
    assert json.loads(run("info", "b.ooc", "--json", cwd=tmp_path).stdout)["rows"] == 200_000


def test_a_second_ctrl_c_leaves_at_once_even_while_the_work_stands_still(slow: Slow) -> None:
    slow.read_until(MIDWAY)
    slow.wait_until_it_stands_still()
    slow.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert slow.process.poll() is None
    slow.process.send_signal(signal.SIGINT)
    assert slow.process.wait(10) == 130


def test_sigterm_stops_like_ctrl_c(slow: Slow) -> None:
    slow.read_until(MIDWAY)
    slow.process.send_signal(signal.SIGTERM)
    assert slow.read_all()[-1]["kind"] == "stopped"
    assert slow.process.wait(60) == 130


def test_status_of_a_running_and_of_a_killed_build(slow: Slow, tmp_path: Path) -> None:
    slow.read_until(MIDWAY)
    shown = run("status", "b.ooc", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^build b\.ooc +.* gone", shown.stdout)
    assert re.search(r"✓ train", shown.stdout)
    assert re.search(r"▸ fill +[━─]+ +\d+%", shown.stdout)
    assert f"process {slow.process.pid}" in shown.stdout
    record = json.loads(run("status", "b.ooc", "--json", cwd=tmp_path).stdout)
    assert record["generation"] is None
    assert record["build"]["state"] == "running"
    assert record["build"]["pid"] == slow.process.pid
    assert record["build"]["memory_bytes"] == 512 << 20

    slow.process.kill()
    slow.process.wait()
    assert (
        json.loads(run("status", "b.ooc", "--json", cwd=tmp_path).stdout)["build"]["state"] == "interrupted"
    )
    watched = run("status", "b.ooc", "--watch", cwd=tmp_path)  # nothing to wait for
    assert "interrupted" in watched.stdout
    told = run("status", "b.ooc", cwd=tmp_path).stdout
    assert "interrupted after" in told
    assert "■ fill" in told
    assert "Run the same `ooc build` again" in told


def test_watching_a_build_in_a_terminal_until_it_ends(slow: Slow, tmp_path: Path) -> None:
    slow.read_until(MIDWAY)
    watching = subprocess.Popen(
        command("status", "b.ooc", "--watch"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watching.stdout is not None
    assert re.match(r"\d\d:\d\d:\d\d fill ", watching.stdout.readline())
    slow.read_all()
    assert slow.process.wait(60) == 0
    rest, _ = watching.communicate(timeout=60)
    assert rest.endswith("b.ooc: no build is running; generation 1 is live\n")
    assert watching.returncode == 0


def test_status_file_is_whole_at_every_moment_and_goes_with_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "build" / "digest"
    directory.mkdir(parents=True)
    writer = StatusWriter(directory / "status.json")
    writer(Started(operation="build", stages={"train": 0.5, "fill": 0.5}, memory_bytes=1000))
    writer(StageStarted(stage="train", total=10))
    writer(Progress(stage="train", done=4))  # within a second: not yet written
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.pid, status.memory_bytes) == ("running", os.getpid(), 1000)
    assert [(stage.state, stage.done) for stage in status.stages] == [("running", 0), ("waiting", 0)]
    writer.stopped("failed", "the disk is full")
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.message, status.stages[0].done) == ("failed", "the disk is full", 4)
    assert [path.name for path in directory.iterdir()] == ["status.json"]

    (directory / "status.json").write_text('{"operation": "bui')  # another program's file, or half of one
    assert read_status(tmp_path) is None
    (directory / "status.json").unlink()
    directory.rmdir()
    writer(Finished(operation="build", seconds=1))  # the directory is gone: passed over
    assert not directory.exists()


def test_a_process_number_given_out_again_is_not_taken_for_the_build(tmp_path: Path) -> None:
    directory = tmp_path / "build" / "digest"
    directory.mkdir(parents=True)
    writer = StatusWriter(directory / "status.json")
    writer(Started(operation="build", stages={}))
    path = directory / "status.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "process_started": record["process_started"] - 1}))
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == "interrupted"
    path.write_text(json.dumps({**record, "process_started": 1, "host": "elsewhere"}))
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == "running"  # cannot be told from here
