"""How long a process takes from its start to its first answer, warm and from a cold page cache."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from bench_measure import drop_page_cache
from bench_setup import new_result, reported, save, this_python

import ooc
from ooc.errors import ArgumentError

HELP = "from the start of a process to its first answer"

#: Run in a process of its own. What the interpreter itself takes is in ``process`` alone.
_SCRIPT = """
import time
began = time.perf_counter()
import ooc
ooc.open_index
imported = time.perf_counter()
import sys
index = ooc.open_index(sys.argv[1])
opened = time.perf_counter()
index.search([[1.0] * index.d], 10)
answered = time.perf_counter()
index.search([[1.0] * index.d], 10)
again = time.perf_counter()
import json
print(json.dumps({"import": imported - began, "open": opened - imported, "first answer": answered - opened,
                  "all three": answered - began, "next answer": again - answered}))
"""

#: Run as a process for its time alone.
_COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "ooc --help": ["-m", "ooc", "--help"],
    "ooc build --help": ["-m", "ooc", "build", "--help"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="directory of an index; its store must be where it was")
    add("--runs", type=int, default=5, metavar="N", help="of each, of which the median counts")
    add("--out", type=Path, default=Path("bench-start.json"), metavar="FILE", help="the result, as JSON")


def main(args: argparse.Namespace) -> int:
    """Run the benchmark; the exit status."""
    return reported(lambda: _bench(args))


def _bench(args: argparse.Namespace) -> int:
    if args.runs < 1:
        raise ArgumentError(f"--runs must be at least 1, not {args.runs}", kind="usage")
    with ooc.open_index(args.index) as index:
        what = index.info()
    settings = {"index": str(args.index), "runs": args.runs, "rows": what["rows"], "d": what["d"]}
    result = new_result("start", settings, args.index)
    store = Path(what["store"]["uri"]) if what["store"]["uri"] else args.index
    libraries = [Path(path) for path in sys.path if path.endswith("site-packages")]
    files = [args.index, *(path for path in (store, *libraries) if path.exists())]
    runs: dict[str, list[dict[str, float]]] = {"warm": [], "cold": []}
    _first(args.index)  # compiles what is not compiled yet
    for _ in range(args.runs):
        runs["warm"].append(_first(args.index) | {name: this_python(it)[0] for name, it in _COMMANDS.items()})
    for _ in range(args.runs):
        result["dropped"] = drop_page_cache(files)
        runs["cold"].append(_first(args.index))
    result["runs"] = runs
    save(result, args.out)
    print(f"{'seconds':<18}{'warm':>8}{'cold':>8}   (cold: {result['dropped']})")
    for name in runs["warm"][0]:
        shown = [_median(runs[how], name) for how in ("warm", "cold")]
        print(f"{name:<18}" + "".join(f"{'' if it is None else f'{it:.3f}':>8}" for it in shown))
    return 0


def _median(runs: list[dict[str, float]], name: str) -> float | None:
    return statistics.median(run[name] for run in runs) if name in runs[0] else None


def _first(index: Path) -> dict[str, float]:
    """Seconds of the parts, and of the process from outside."""
    seconds, told = this_python(["-c", _SCRIPT, str(index)])
    parts: dict[str, float] = json.loads(told)
    return parts | {"process": seconds}
