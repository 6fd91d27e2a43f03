"""Searches measured from inside the process that makes them: what every side's own script shares.

A script opens its side and hands over to ``main``, which is told in one JSON argument what to do and
prints a line of JSON for the opening and one for each setting, as soon as it is done: what is killed
leaves what it had. Imports numpy alone: it also runs in the peers' environments.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from bench_recall import K, queries_of, recall

#: Settings beyond the first of so high a recall are left out.
ENOUGH = 0.995
#: Passes over a batch that are timed, where the page cache is warm.
_PASSES = 3

#: A value for each of a side's knobs.
Setting = dict[str, int]


class Searcher(Protocol):
    """An open index."""

    #: Whether one call takes many queries to the side's own advantage.
    batches: bool

    def set(self, setting: Setting) -> None:
        """Make the following searches use these values of the knobs."""

    def search(self, xq: Any) -> Any:
        """Rows nearest to each of ``(nq, d)`` queries: ``(nq, K)``, padded with -1."""

    def in_thread(self) -> None:
        """Called once in each thread that searches beside others."""


def main(opened: Callable[[dict[str, Any]], Searcher]) -> None:
    """Do what the argument says with the side that ``opened`` opens.

    Parameters
    ----------
    opened : callable
        Given ``job["side"]``.

    Notes
    -----
    The argument is a JSON object: ``side`` (for the script), ``truth`` (path), ``queries`` (how many of
    each set at most), ``settings`` (objects of knobs; others of the same ``candidates`` are in ascending
    order of work), ``verb``. For ``"recall"`` that is all. For ``"measure"`` there are ``mode``
    (``"single"``, ``"threads"`` or ``"batch"``), ``threads``, ``batch`` (queries in one call), ``warm``
    (whether each setting is run once before it is timed), ``point_seconds`` (after which single
    queries end).
    """
    job = json.loads(sys.argv[1])
    searcher = opened(job["side"])
    say({"opened_seconds": _since_start(), "private_bytes": _private_bytes()})
    if job["verb"] == "recall":
        _recalls(searcher, job)
    else:
        _measures(searcher, job)


def say(record: dict[str, Any]) -> None:
    """A line of JSON, at once."""
    print(json.dumps(record), flush=True)


def _recalls(searcher: Searcher, job: dict[str, Any]) -> None:
    sets = [
        (name, xq[: job["queries"]], exact[: job["queries"]]) for name, xq, exact in queries_of(job["truth"])
    ]
    enough = set()
    for setting in job["settings"]:
        if setting.get("candidates") in enough:
            continue
        searcher.set(setting)
        point: dict[str, Any] = {"setting": setting}
        for name, xq, exact in sets:
            point[name] = recall(_ids_of(searcher, xq), exact)
        say(point)
        if point["recall"] >= ENOUGH:
            enough.add(setting.get("candidates"))


def _ids_of(searcher: Searcher, xq: Any) -> Any:
    """Neighbours of all queries, the quickest way."""
    if searcher.batches:
        return searcher.search(xq)
    done = _in_threads(searcher, xq, 2, time.monotonic() + 1e9)
    return np.array([ids for _, _, ids in sorted(done, key=lambda one: one[0])])


def _measures(searcher: Searcher, job: dict[str, Any]) -> None:
    _, xq, exact = next(queries_of(job["truth"]))
    xq, exact = np.ascontiguousarray(xq[: job["queries"]]), exact[: job["queries"]]
    for setting in job["settings"]:
        searcher.set(setting)
        if job["warm"]:
            _pass(searcher, xq, job)
        before, began = _read_bytes(), time.perf_counter()
        done = [_pass(searcher, xq, job) for _ in range(_PASSES if job["warm"] and _batched(job) else 1)]
        seconds = time.perf_counter() - began
        latencies = [one for passed in done for one in passed[0]]
        numbers, ids = done[-1][1], done[-1][2]
        queries = sum(len(passed[1]) for passed in done)
        say(
            {
                "setting": setting,
                "queries": queries,
                "seconds": seconds,
                "latencies": latencies,
                "recall_here": recall(ids, exact[numbers]),
                "read_bytes": _read_bytes() - before,
                "private_bytes": _private_bytes(),
            }
        )


def _batched(job: dict[str, Any]) -> bool:
    return bool(job["mode"] == "batch")


def _pass(searcher: Searcher, xq: Any, job: dict[str, Any]) -> tuple[list[float], list[int], Any]:
    """The queries once: seconds of each call, which queries were done, and what they found."""
    deadline = time.monotonic() + job["point_seconds"]
    if _batched(job):
        latencies, found = [], []
        for first in range(0, len(xq), job["batch"]):
            began = time.perf_counter()
            found.append(searcher.search(xq[first : first + job["batch"]]))
            latencies.append(time.perf_counter() - began)
        return latencies, list(range(len(xq))), np.concatenate(found)
    if job["mode"] == "threads":
        done = _in_threads(searcher, xq, job["threads"], deadline)
    else:
        done = _one_by_one(searcher, xq, range(len(xq)), deadline)
    numbers, latencies, ids = (list(column) for column in zip(*done, strict=True))
    return latencies, numbers, np.array(ids)


def _one_by_one(
    searcher: Searcher, xq: Any, numbers: Sequence[int], deadline: float
) -> list[tuple[int, float, Any]]:
    """Queries one after another until the deadline, at least one: number, seconds, what was found."""
    done = []
    for i in numbers:
        began = time.perf_counter()
        ids = searcher.search(xq[i : i + 1])
        done.append((i, time.perf_counter() - began, ids[0]))
        if time.monotonic() > deadline:
            break
    return done


def _in_threads(searcher: Searcher, xq: Any, threads: int, deadline: float) -> list[tuple[int, float, Any]]:
    """The queries divided among threads of one process."""
    done: list[tuple[int, float, Any]] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            searcher.in_thread()
            done.extend(_one_by_one(searcher, xq, range(number, len(xq), threads), deadline))
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(min(threads, len(xq)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return done


def padded(ids: Any, n: int) -> Any:
    """Ids of one query as ``(K,)`` int64; what is not a row of ``n`` is -1."""
    row = np.full(K, -1, np.int64)
    ids = np.asarray(ids).astype(np.int64)[:K]
    row[: len(ids)] = np.where((ids >= 0) & (ids < n), ids, -1)
    return row


def _since_start() -> float:
    """Seconds since this process began, imports and all."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _private_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def _read_bytes() -> int:
    """Bytes from the disk so far; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
