"""``tools/crash_loop`` for some seconds; minutes with ``--trust``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _counts(*args: str, counted: Callable[[str, int], None]) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, f"{done.stderr[-4000:]}\n{done.stdout}"
    counts: dict[str, int] = json.loads(done.stdout)
    for name, count in counts.items():
        if "kills of" not in name:
            counted(f"{args[0].rpartition('.')[2]}: {name}", count)
    return counts


@pytest.mark.parametrize(("minutes", "seed"), [(0.25, 1), pytest.param(10, 2, marks=pytest.mark.trust)])
def test_random_commands_killed_at_random_moments(
    minutes: float, seed: int, counted: Callable[[str, int], None]
) -> None:
    counts = _counts("tests.faults.crashes", "--minutes", str(minutes), "--seed", str(seed), counted=counted)
    assert counts["kills"]
    assert counts["commands"]
