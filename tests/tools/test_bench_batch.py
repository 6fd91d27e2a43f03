"""tools/bench batch: that its figures are of what they say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ooc

TOOLS = Path(__file__).parents[2] / "tools"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it measures through /proc")


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "bench"), "batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_least_is_all_lists_where_all_are_probed(npy: Path, tmp_path: Path) -> None:
    index, out = tmp_path / "i", tmp_path / "result.json"
    ooc.build(npy, index, memory="400MiB", factory="IVF16,SQ8")
    done = bench(
        index, "--queries", "300", "--nprobe", "16", "--candidates", "10", "--runs", "1", "--out", out
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    lists = next(index.rglob("*.ivfdata")).stat().st_size
    assert abs(result["least"]["lists"] - lists) <= 4096
    rows = np.load(npy, mmap_mode="r")
    assert 0 < result["least"]["rows"] <= -(-npy.stat().st_size // 4096) * 4096
    assert 0 < result["least"]["number of rows"] <= len(rows)
    assert set(result["runs"]) == {"exact cold", "exact warm", "codes cold", "codes warm", "dd"}
    assert result["runs"]["dd"][0]["read"] == lists
    assert "of the least" in done.stdout


def test_what_cannot_be_measured_is_said(npy: Path, tmp_path: Path) -> None:
    own = tmp_path / "x.npy"
    shutil.copyfile(npy, own)
    ooc.build(own, tmp_path / "i", memory="400MiB", factory="IVF16,SQ8")
    assert "at least 1" in bench(tmp_path / "i", "--runs", "0").stderr
    own.rename(tmp_path / "elsewhere.npy")
    done = bench(tmp_path / "i")
    assert done.returncode > 0
    assert "Traceback" not in done.stderr
