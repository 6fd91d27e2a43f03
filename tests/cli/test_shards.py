"""`ooc train`, `ooc fill` and `ooc merge` as real processes, and `ooc build --workers`."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ooc.cli.main import main
from tests.helpers import embeddings

from .process import FLAT, command, environment, run


def test_the_parts_of_a_build_one_after_another(here: Path) -> None:
    done = run("train", "x.npy", "t.ooc", "--shard-rows", "1024", "--quiet", *FLAT, cwd=here)
    assert (done.returncode, done.stderr) == (0, "")
    assert "trained; 3 shards of 1 024 rows" in done.stdout
    done = run("merge", "x.npy", "t.ooc", "--quiet", cwd=here)
    assert done.returncode == 7
    assert "3 of 3 shards are not filled: 0-2" in done.stderr
    done = run("fill", "x.npy", "t.ooc", "--shards", "1", cwd=here)
    assert done.stdout.endswith("t.ooc: 1 of 3 shards are filled, missing are 0,2\n")
    assert re.search(r"^\S+ fill +started +1 024 rows$", done.stderr, re.M)
    done = run("fill", "x.npy", "t.ooc", "--quiet", "--json", cwd=here)
    figures = json.loads(done.stdout)
    assert (figures["rows"], figures["rows_filled"], figures["shards"]) == (3000, 3000, 3)
    assert figures["shards_missing"] == []
    done = run("fill", "x.npy", "t.ooc", "--quiet", cwd=here)
    assert "all shards are filled (3)" in done.stdout
    done = run("merge", "x.npy", "t.ooc", "--json", "--quiet", cwd=here)
    assert json.loads(done.stdout)["rows"] == 3000
    for verb in ("fill", "merge", "train", "build"):
        settings = FLAT if verb in ("train", "build") else ()
        done = run(verb, "x.npy", "t.ooc", "--quiet", *settings, cwd=here)
        assert (done.returncode, done.stderr) == (0, "")
        assert "nothing to do" in done.stdout


@pytest.mark.parametrize("text", ["x", "3-1", "1,", ""])
def test_shards_that_are_not_understood_are_a_usage_error(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fill", "x.npy", "t.ooc", "--shards", text]) == 2
    err = capsys.readouterr().err
    assert "no range of shards" in err
    assert "3-7,9" in err


def test_ctrl_c_stops_all_workers_and_the_command_goes_on(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", embeddings(200_000, 32))
    settings = (
        *("--factory", "IVF64,SQ8", "--memory", "700MiB", "--threads", "2", "--workers", "2"),
        *("--shard-rows", "8192", "--log-json"),
    )
    process = subprocess.Popen(
        command("build", "x.npy", "b.ooc", *settings),
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    events = []
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            events.append(json.loads(line))
            if events[-1]["event"] == "progress" and events[-1]["stage"] == "fill":
                process.send_signal(signal.SIGINT)
                break
        events += [json.loads(line) for line in process.stderr]
        assert process.wait(60) == 130
    assert (events[-1]["event"], events[-1]["kind"]) == ("error", "stopped")
    resumed = subprocess.run(
        ["sh", "-c", events[-1]["resume"]],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert resumed.returncode == 0, resumed.stderr
    again = [json.loads(line) for line in resumed.stderr.splitlines()]
    assert next(event["stage"] for event in again if event["event"] == "stage_started") == "fill"
    assert json.loads(run("info", "b.ooc", "--json", cwd=tmp_path).stdout)["rows"] == 200_000
