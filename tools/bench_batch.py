"""Very many queries in one call, from a cold page cache: what is read against the least that must be.

The queries are rows of the indexed store, drawn at random and disturbed a little. The least is every page
of the union of the lists they probe and of the rows that the codes propose for them. How fast lists are
read is told by what a cold disk adds to the time of a search by codes alone; what the disk can do, by
reading the file of lists front to back.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_measure import drop_page_cache
from bench_setup import new_result, reported, save, say, this_python

import ooc
from ooc.errors import ArgumentError
from ooc.types import AnyArray, FloatArray, IntArray

HELP = "very many queries from a cold disk: bytes read, and how fast"

_PAGE = 4096

#: Run in a process of its own: opens, searches, tells seconds and bytes that came from the disk.
_SCRIPT = """
import json, sys, time
import numpy as np
import ooc

def read_bytes():
    with open("/proc/self/io") as file:
        return int(dict(line.split(": ") for line in file)["read_bytes"])

index, queries, memory, k, settings = json.loads(sys.argv[1])
xq = np.load(queries)
index = ooc.open_index(index, memory=memory)
if settings["rerank"]:
    index.reconstruct(np.array([0]))
before, began = read_bytes(), time.perf_counter()
index.search(xq, k, **settings)
print(json.dumps({"seconds": time.perf_counter() - began, "read": read_bytes() - before}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", type=Path, metavar="INDEX", help="directory of an index over a mapped store")
    add("--queries", type=int, default=10_000, metavar="N", help="in one call (10000)")
    add("--nprobe", type=int, metavar="N", help="lists probed (default: as a search does)")
    add("--candidates", type=int, default=100, metavar="N", help="re-ranked exactly (100)")
    add("--memory", default="1GiB", metavar="SIZE", help="of open_index (1GiB)")
    add("--runs", type=int, default=3, metavar="N", help="of each, of which the median counts")
    add("--out", type=Path, default=Path("bench-batch.json"), metavar="FILE", help="the result, as JSON")


def main(args: argparse.Namespace) -> int:
    """Run the benchmark; the exit status."""
    return reported(lambda: _bench(args))


def _bench(args: argparse.Namespace) -> int:
    if min(args.queries, args.runs, args.candidates) < 1:
        raise ArgumentError("--queries, --candidates and --runs must be at least 1", kind="usage")
    with ooc.open_index(args.index) as index:
        store = Path(index.info()["store"]["uri"] or args.index)
        if not store.exists():
            raise ArgumentError(f"the rows of {args.index} are not in {store}", kind="usage")
        nprobe = args.nprobe or index.default_nprobe
        settings = {"index": str(args.index), "queries": args.queries, "nprobe": nprobe}
        settings |= {"candidates": args.candidates, "memory": args.memory, "rows": index.n, "d": index.d}
        result = new_result("batch", settings, args.index)
        queries = _queries(index, args.queries)
        say("the least that must be read")
        lists = index._view().segments.each[0].layout.lists
        result["least"] = _least(index, queries, nprobe, args.candidates)
    files = [args.index, store]
    turns = {
        "exact": (10, {"nprobe": nprobe, "rerank": args.candidates}),
        "codes": (10, {"nprobe": nprobe, "rerank": 0}),
    }
    result["runs"] = {f"{name} {how}": [] for name in turns for how in ("cold", "warm")} | {"dd": []}
    with tempfile.TemporaryDirectory(dir=args.out.parent.absolute()) as directory:
        path = Path(directory) / "queries.npy"
        np.save(path, queries)
        for number in range(args.runs):
            say(f"run {number + 1} of {args.runs}")
            result["dropped"] = drop_page_cache(files)
            result["runs"]["dd"].append(_front_to_back(lists))
            for name, (k, how) in turns.items():
                drop_page_cache(files)
                job = [str(args.index), str(path), args.memory, k, how]
                result["runs"][f"{name} cold"].append(_search(job))
                result["runs"][f"{name} warm"].append(_search(job))
            result["figures"] = _figures(result)
            save(result, args.out)
    for name, figure in result["figures"].items():
        print(f"{name:<52}{figure:>12.4g}")
    return 0


def _queries(index: ooc.Index, count: int) -> FloatArray:
    """Rows at random, disturbed by a tenth of their length."""
    rng = np.random.default_rng(0)
    rows = index.reconstruct(np.sort(rng.choice(index.n, count, replace=count > index.n)))
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    noise *= np.float32(0.1) * np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(rows.shape[1])
    return np.asarray(rows + noise, np.float32)


def _least(index: ooc.Index, queries: FloatArray, nprobe: int, candidates: int) -> dict[str, int]:
    """Bytes of the pages of all probed lists and of all rows that the codes propose."""
    _, proposed = index.search(queries, candidates, nprobe=nprobe, rerank=0)
    segment = index._view().segments
    probed: list[AnyArray] = []
    for first in range(0, len(queries), 1024):
        y = segment.transform(queries[first : first + 1024])
        probed.append(np.unique(segment.coarse(y, nprobe)[1]))
    numbers = np.unique(np.concatenate(probed))
    numbers = numbers[numbers >= 0]
    starts = segment._lists.offsets[0][numbers]
    lists = _pages(starts, starts + segment.list_bytes(numbers))
    rows = np.unique(proposed[proposed >= 0])
    store = index._view().source.rows()
    # Where a file has a header the rows lie a little off the pages; how far does not matter to the sum.
    begin = 128 if store.format == "npy" else 0
    at = begin + rows * store.row_bytes
    return {"lists": lists, "rows": _pages(at, at + store.row_bytes), "number of rows": len(rows)}


def _pages(begin: IntArray, end: IntArray) -> int:
    """Bytes of the pages that hold any byte of these spans, each page once; spans ascend."""
    order = np.argsort(begin)
    first, last = begin[order] // _PAGE, (end[order] - 1) // _PAGE
    last = np.maximum.accumulate(last)
    first[1:] = np.maximum(first[1:], last[:-1] + 1)
    return int(np.maximum(last - first + 1, 0).sum()) * _PAGE


def _front_to_back(path: Path) -> dict[str, float]:
    """Seconds and bytes of reading a file as ``dd bs=1M`` does."""
    began, read = time.perf_counter(), 0
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            read += count
    return {"seconds": time.perf_counter() - began, "read": read}


def _search(job: list[Any]) -> dict[str, float]:
    told: dict[str, float] = json.loads(this_python(["-c", _SCRIPT, json.dumps(job)])[1])
    return told


def _figures(result: dict[str, Any]) -> dict[str, float]:
    runs, least = result["runs"], result["least"]

    def median(name: str, what: str) -> float:
        return float(statistics.median(run[what] for run in runs[name]))

    disk = median("dd", "read") / median("dd", "seconds")
    added = max(median("codes cold", "seconds") - median("codes warm", "seconds"), 1e-3)
    count = result["settings"]["queries"]
    return {
        "bytes read": median("exact cold", "read"),
        "of the least": median("exact cold", "read") / (least["lists"] + least["rows"]),
        "bytes of lists read": median("codes cold", "read"),
        "of the least lists": median("codes cold", "read") / least["lists"],
        "lists: bytes a second that the disk adds": median("codes cold", "read") / added,
        "dd: bytes a second": disk,
        "lists against dd": median("codes cold", "read") / added / disk,
        "queries a second, cold": count / median("exact cold", "seconds"),
        "queries a second, warm": count / median("exact warm", "seconds"),
    }
