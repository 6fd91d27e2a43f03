"""tools/bench start: that its figures are of what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ooc

TOOLS = Path(__file__).parents[2] / "tools"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it measures through /proc")


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "bench"), "start", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_parts_make_up_the_start(npy: Path, tmp_path: Path) -> None:
    index, out = tmp_path / "i", tmp_path / "result.json"
    ooc.build(npy, index, memory="400MiB", factory="IVF16,SQ8")
    done = bench(index, "--runs", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    runs = json.loads(out.read_text())["runs"]
    assert {how: len(of_it) for how, of_it in runs.items()} == {"warm": 2, "cold": 2}
    for run in runs["warm"] + runs["cold"]:
        assert run["import"] + run["open"] + run["first answer"] == pytest.approx(run["all three"])
        assert 0 < run["all three"] < run["process"]
    shown = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert {"seconds", "import", "open", "first answer", "all three", "process", "ooc --help"} <= set(shown)


def test_what_is_no_index_is_said_in_words(tmp_path: Path) -> None:
    done = bench(tmp_path)
    assert done.returncode > 0
    assert "not an index directory" in done.stderr
    assert "Traceback" not in done.stderr
