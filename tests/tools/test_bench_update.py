"""tools/bench update: that its figures are of what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import embeddings

TOOLS = Path(__file__).parents[2] / "tools"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it measures through /proc")


def test_a_changed_index_is_compared_with_a_fresh_one(tmp_path: Path) -> None:
    x = embeddings(4000, 24)
    np.save(tmp_path / "x.npy", x / np.linalg.norm(x, axis=1, keepdims=True))
    command = [
        sys.executable,
        str(TOOLS / "bench"),
        "update",
        "--data",
        str(tmp_path / "x.npy"),
        "--rows",
        "4000",
    ]
    command += ["--appends", "3", "--queries", "20", "--rounds", "1", "--recall", "0.99"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert {bar["bar"] for bar in result["bars"]} <= set(result["figures"])
    for when in ("before", "after"):
        assert min(result[when]["recall"].values()) > 0.9
        assert result["figures"][f"p50 {when}"] > 0
    assert not list((tmp_path / "work").iterdir())
