"""An index that was appended to and deleted from, before and after a compaction, beside a fresh one.

Of the rows a part is indexed; then come appends and deletions; then a compaction. The rows that are left are
indexed anew by themselves. All three answer the same queries in turns, of which exact neighbours among these
rows are known; the compaction goes in turns with ``cp`` and ``fsync`` of the same bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_setup import data_of, directories, new_result, reported, save, say

import ooc
from ooc.errors import ArgumentError
from ooc.types import FloatArray, IntArray

HELP = "appends, deletions and a compaction, beside an index that is built anew"

_K = 10
#: The bars.
_BARS = {
    "p50 before": ("at most", 1.5),
    "recall lost before": ("at most", 0.01),
    "p50 after": ("at most", 1.05),
    "recall lost after": ("at most", 0.005),
    "compact against cp": ("at least", 0.4),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from bench_setup import add_arguments as setup_arguments

    setup_arguments(parser, out="bench-update.json")
    add = parser.add_argument
    add("--rows", type=int, default=1_000_000, metavar="N", help="in all (1000000)")
    add("--appends", type=int, default=20, metavar="N", help="of 1 %% of the first rows each (20)")
    add("--deleted", type=float, default=0.1, metavar="SHARE", help="of all rows, at random (0.1)")
    add("--queries", type=int, default=500, metavar="N", help="rows of the data that are not indexed (500)")
    add("--rounds", type=int, default=3, metavar="N", help="of all queries through each index (3)")
    add("--memory", default="1GiB", metavar="SIZE", help="of builds and appends (1GiB)")
    add("--recall", type=float, default=0.95, help="that is asked for (0.95)")


def main(args: argparse.Namespace) -> int:
    """Run the benchmark; the exit status."""
    return reported(lambda: _bench(args))


def _bench(args: argparse.Namespace) -> int:
    if min(args.rows, args.appends, args.queries, args.rounds) < 1 or not 0 <= args.deleted < 1:
        raise ArgumentError("numbers are at least 1, and a share is below 1", kind="usage")
    _, work = directories(args)
    data = data_of(args, args.rows, work)
    x = np.load(data, mmap_mode="r")[: args.rows]
    settings = {
        "rows": len(x), "d": x.shape[1], "appends": args.appends, "deleted": args.deleted,
        "queries": args.queries, "recall": args.recall, "memory": args.memory,
    }  # fmt: skip
    result = new_result("update", settings, work)
    with tempfile.TemporaryDirectory(dir=work) as directory:
        figures = _measured(args, x, Path(directory), result)
    result["figures"] = figures
    result["bars"] = [
        {"bar": name, how: bar, "seen": figures[name],
         "met": figures[name] <= bar if how == "at most" else figures[name] >= bar}
        for name, (how, bar) in _BARS.items()
    ]  # fmt: skip
    save(result, args.out)
    for name, value in figures.items():
        print(f"{name:<32}{value:>12.4g}")
    for bar in result["bars"]:
        wanted = next(f"{how} {bar[how]:g}" for how in ("at most", "at least") if how in bar)
        print(f"{'met' if bar['met'] else 'NOT MET':<9}{bar['bar']}: {bar['seen']:.4g} ({wanted})")
    return 0


def _measured(
    args: argparse.Namespace, x: FloatArray, work: Path, result: dict[str, Any]
) -> dict[str, float]:
    """All figures."""
    figures: dict[str, float] = {}
    x, xq = x[: len(x) - args.queries], np.array(x[len(x) - args.queries :])
    one = len(x) // (100 + args.appends)
    base = len(x) - args.appends * one
    path, options = work / "living.ooc", {"memory": args.memory, "metric": "cosine"}
    np.save(work / "base.npy", x[:base])
    say(f"building {base} rows")
    ooc.build(work / "base.npy", path, **options)
    seconds = []
    for i in range(args.appends):
        more = work / f"more-{i}.npy"
        np.save(more, x[base + i * one : base + (i + 1) * one])
        began = time.perf_counter()
        ooc.append(path, more, memory=args.memory)
        seconds.append(time.perf_counter() - began)
    figures["append of 1 %, s"] = statistics.median(seconds)
    gone = np.random.default_rng(0).choice(len(x), int(args.deleted * len(x)), replace=False)
    began = time.perf_counter()
    ooc.delete(path, gone)
    figures["deletion, s"] = time.perf_counter() - began
    live = np.ones(len(x), bool)
    live[gone] = False
    left = np.flatnonzero(live)
    say(f"building the {len(left)} rows that are left")
    fresh = np.lib.format.open_memmap(work / "left.npy", "w+", np.float32, (len(left), x.shape[1]))
    for first in range(0, len(left), 8192):
        fresh[first : first + 8192] = x[left[first : first + 8192]]
    fresh.flush()
    ooc.build(work / "left.npy", work / "fresh.ooc", **options)
    np.save(work / "queries.npy", xq)
    ooc.exact(work / "left.npy", work / "queries.npy", k=_K, metric="cosine", out=work / "truth.npy")
    truth = np.load(work / "truth.npy")
    say("searching before the compaction")
    figures |= _compared(args, path, work / "fresh.ooc", xq, truth, left, "before", result)
    before = sum(file.stat().st_size for file in path.glob("segments/*/lists.ivfdata"))
    say("compacting")
    os.sync()  # what was made before is written by the disk at nobody's expense
    copied = _copy_seconds(path, work)
    began = time.perf_counter()
    ooc.compact(path)
    compacted = time.perf_counter() - began
    ooc.gc(path)
    copied += _copy_seconds(path, work)
    after = sum(file.stat().st_size for file in path.glob("segments/*/lists.ivfdata"))
    figures["compaction, s"] = compacted
    figures["compact against cp"] = (before / compacted) / ((before + after) / copied)
    say("searching after the compaction")
    figures |= _compared(args, path, work / "fresh.ooc", xq, truth, left, "after", result)
    return figures


def _copy_seconds(path: Path, work: Path) -> float:
    """Of ``cp`` and ``fsync`` of the lists."""
    began = time.perf_counter()
    for number, file in enumerate(path.glob("segments/*/lists.ivfdata")):
        copy = work / f"copy-{number}"
        shutil.copyfile(file, copy)
        fd = os.open(copy, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return time.perf_counter() - began


def _compared(
    args: argparse.Namespace,
    path: Path,
    fresh: Path,
    xq: FloatArray,
    truth: IntArray,
    left: IntArray,
    when: str,
    result: dict[str, Any],
) -> dict[str, float]:
    """Medians of single queries and recall, of the changed index and of the fresh one in turns."""
    with ooc.open_index(path) as changed, ooc.open_index(fresh) as anew:
        # At the same setting: what is compared is the same work.
        nprobe, rerank = anew.settings(_K, recall=args.recall)
        took: dict[str, list[float]] = {"changed": [], "anew": []}
        found: dict[str, list[IntArray]] = {"changed": [], "anew": []}
        for number in range(args.rounds + 1):
            for name, index in (("changed", changed), ("anew", anew)):
                ids = []
                for one in xq:
                    began = time.perf_counter()
                    _, some = index.search(one, _K, nprobe=nprobe, rerank=rerank)
                    if number:  # the first round brings everything in
                        took[name].append(time.perf_counter() - began)
                    ids.append(some[0])
                found[name] = ids
    rows = {"changed": np.searchsorted(left, np.array(found["changed"])), "anew": np.array(found["anew"])}
    recalls = {
        name: sum(len(np.intersect1d(a, b)) for a, b in zip(of, truth, strict=True)) / truth.size
        for name, of in rows.items()
    }
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    result[when] = {"nprobe": nprobe, "rerank": rerank, "recall": recalls, "p50_seconds": medians}
    return {
        f"p50 {when}": medians["changed"] / medians["anew"],
        f"recall lost {when}": recalls["anew"] - recalls["changed"],
        f"p50 of the fresh one, ms, {when}": 1000 * medians["anew"],
        f"recall of the fresh one, {when}": recalls["anew"],
    }
