"""Many readers and one writer for a time: no wrong answer, nothing that grows, nobody ended by a signal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.process import environment

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("seconds", "readers"), [(6, 2), pytest.param(60, 8, marks=pytest.mark.trust)])
def test_readers_are_right_while_another_changes_the_index(
    seconds: float, readers: int, counted: Callable[[str, int], None]
) -> None:
    # In a process of its own, which has no threads when it forks.
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.faults.load",
            "--minutes",
            str(seconds / 60),
            "--readers",
            str(readers),
        ],
        cwd=_ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = json.loads(ended.stdout)
    print(counts)
    assert counts["publishes"] > 2
    assert counts["answers"] > 0
    for name in ("answers", "publishes"):
        counted(f"{name} under load", counts[name])
