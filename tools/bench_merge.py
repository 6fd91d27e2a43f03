"""The merge of a build, against copying the same bytes."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench_measure import Measured, run
from bench_sides import CACHE_BYTES, Ours, last_json
from bench_task import Task, remove

#: Merges and copies, in turns; medians count.
_TIMES = 3


def measure_merge(task: Task, shards: int) -> dict[str, Any]:
    """Train and fill ``shards`` shards once, then merge copies of them several times.

    What is read, by the merge and by ``cp``, is in the page cache.

    Returns
    -------
    dict
        JSON-ready: ``status``; of a merge that is done its ``bytes``, ``shards``, bytes a second of
        merge and copy, and their ``ratio``.
    """
    side = Ours("ooc-merge", task, kind="h5", about="")
    filled = side.result
    merged = filled.with_name("result-ooc-merged")
    remove(filled)
    store = str(task.store("h5"))
    options = ["--memory", str(task.memory_bytes), "--metric", "cosine", "--factory", task.plan.factory]
    options += ["--shard-rows", str(math.ceil(task.rows / shards))]
    try:
        trained = _ours(task, "train", store, str(filled), *options)
        last = _ours(task, "fill", store, str(filled)) if trained.status == "done" else trained
        seconds: dict[str, list[float]] = {"merge": [], "copy": []}
        if last.status != "done":
            return {"status": last.status, "why": last.why}
        count = last_json(last.stdout)["shards"]
        for _ in range(_TIMES):
            remove(merged)
            shutil.copytree(filled, merged)
            os.sync()
            one = _ours(task, "merge", store, str(merged))
            if one.status != "done":
                return {"status": one.status, "why": one.why}
            stage = last_json(one.stdout)["stages"]["merge"]
            seconds["merge"].append(stage["seconds"])
            lists = max(merged.rglob("lists.ivfdata"), key=lambda path: path.stat().st_size)
            seconds["copy"].append(_copy_seconds(lists))
        speeds = {name: stage["bytes"] / statistics.median(took) for name, took in seconds.items()}
        return {
            "status": "done",
            "shards": count,
            "bytes": stage["bytes"],
            "merge_seconds": seconds["merge"],
            "cp_fsync_seconds": seconds["copy"],
            "merge_bytes_per_second": speeds["merge"],
            "cp_fsync_bytes_per_second": speeds["copy"],
            "ratio": speeds["merge"] / speeds["copy"],
        }
    finally:
        remove(filled)
        remove(merged)


def _ours(task: Task, *arguments: str) -> Measured:
    return run(
        [sys.executable, "-m", "ooc", *arguments, "--json", "--quiet"],
        environment=Ours.variables,
        memory_limit=task.memory_bytes + CACHE_BYTES,
    )


def _copy_seconds(path: Path) -> float:
    """How long ``cp`` and a flush of the copy take, the file being in the page cache."""
    copy = path.with_name("copied")
    path.read_bytes()
    os.sync()
    began = time.monotonic()
    subprocess.run(["cp", str(path), str(copy)], check=True)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
    seconds = time.monotonic() - began
    copy.unlink()
    return seconds
