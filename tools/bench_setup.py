"""What every benchmark begins with: its options, its data, what the machine is; and where its result goes."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from bench_sides import TOOLS, cores

from ooc.durable import write_bytes
from ooc.errors import ArgumentError, OocError


def add_arguments(parser: argparse.ArgumentParser, *, out: str) -> None:
    """Options that all benchmarks have."""
    add = parser.add_argument
    add("--dim", type=int, default=1024, metavar="D", help="of the rows that are made without --data (1024)")
    add("--data", type=Path, metavar="PATH.npy", help="made by tools/make_dataset, its queries beside it")
    add("--out", type=Path, default=Path(out), metavar="FILE", help=f"the result ({out})")
    add("--work", type=Path, metavar="DIR", help="stores and indexes (default: in the cache directory)")
    add("--cache", type=Path, metavar="DIR", help="environments of the peers ($XDG_CACHE_HOME/ooc-bench)")


def reported(bench: Callable[[], int]) -> int:
    """Run a benchmark; the exit status. An error of ours is said on stderr."""
    try:
        return bench()
    except OocError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code


def named(text: str, names: tuple[str, ...], what: str) -> list[str]:
    """A list of names, each of which there is."""
    found = [name for name in text.split(",") if name]
    for name in found:
        if name not in names:
            raise ArgumentError(
                f"there is no {what} {name}", kind=f"{what}s", hint=f"There are {', '.join(names)}."
            )
    return found


def directories(args: argparse.Namespace) -> tuple[Path, Path]:
    """The cache directory and the work directory, which is made."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ooc-bench"
    cache: Path = (args.cache or home).absolute()
    work: Path = (args.work or cache / "work").absolute()
    work.mkdir(parents=True, exist_ok=True)
    return cache, work


def data_of(args: argparse.Namespace, rows: int, work: Path) -> Path:
    """The ``.npy`` of at least so many rows: the given one, or one that is made in the work directory."""
    return _given(args.data, rows) if args.data else _made(work, rows, args.dim)


def _given(path: Path, rows: int) -> Path:
    """The data, if it is what all sides can be given alike."""
    hint = "Make it with tools/make_dataset."
    try:
        x = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--data {path}: {error}", kind="data", hint=hint) from None
    if x.ndim != 2 or x.dtype != np.float32 or len(x) < rows:
        raise ArgumentError(
            f"--data {path} is {x.shape} {x.dtype}; needed are {rows} rows of float32",
            kind="data",
            hint=hint,
        )
    lengths = np.linalg.norm(x[:: max(1, len(x) // 1000)], axis=1)
    if np.abs(lengths - 1).max() > 1e-3:  # inner products are then no cosines
        raise ArgumentError(f"--data {path}: rows must have unit length", kind="data", hint=hint)
    return path.absolute()


def _made(work: Path, rows: int, dim: int) -> Path:
    path = work / f"realistic-{rows}x{dim}.npy"
    command = [sys.executable, str(TOOLS / "make_dataset"), "--rows", str(rows), "--dim", str(dim)]
    if subprocess.run([*command, "--out", str(path)], check=False).returncode:
        raise ArgumentError(f"{path} could not be made", kind="data")
    return path


def new_result(benchmark: str, settings: dict[str, Any], work: Path) -> dict[str, Any]:
    """The head of a result: what was run, when, on what."""
    return {
        "benchmark": benchmark,
        "version": 1,
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "machine": _machine(work),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "faiss": faiss.__version__,
        },
    }


def _machine(directory: Path) -> dict[str, Any]:
    """What the figures were taken on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    disk = subprocess.run(
        ["df", "--output=source,fstype", str(directory)], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return {
        "cpu": model or platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "disk": " ".join(disk[-1].split()) if disk else "",
        "load_average_before": os.getloadavg()[0],
    }


def save(result: dict[str, Any], path: Path) -> None:
    """What is known so far: an interrupted benchmark leaves the runs it made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(result, indent=1) + "\n").encode())


def say(text: str) -> None:
    """A line about the progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def this_python(arguments: list[str]) -> tuple[float, str]:
    """Seconds of a process of this Python, and what it printed. It imports what this one did."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return time.perf_counter() - began, run.stdout
