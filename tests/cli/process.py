"""`ooc` as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Works without training: the same bytes on every machine but for what k-means finds.
FLAT = ("--factory", "IVF16,Flat", "--threads", "2", "--memory", "512MiB")


def environment() -> dict[str, str]:
    """The process's own, without what changes how output looks."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "OOC_DEBUG")
    }
    return {**kept, "PYTHONWARNINGS": "error", "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "ooc", *args]


def run(*args: str, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """One `ooc` process, to its end."""
    return subprocess.run(
        command(*args), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, **more
    )
