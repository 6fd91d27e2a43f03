"""The build benchmark: every side builds the same rows in one go, and the figures stand side by side."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
from typing import Any

import numpy as np
from bench_measure import Measured, drop_page_cache, run
from bench_merge import measure_merge
from bench_ratios import FIGURES, bars, cost_per_row, ratios
from bench_setup import add_arguments as setup_arguments
from bench_setup import data_of, directories, named, new_result, reported, save, say
from bench_sides import (
    CACHE_BYTES,
    NAMES,
    SIDES,
    Side,
    last_json,
    sides_of,
)
from bench_table import tables
from bench_task import MissingError, Task, remove

from ooc.errors import ArgumentError
from ooc.units import format_bytes, format_count, format_seconds, parse_bytes

HELP = "build the same rows with every side, in processes of their own, and compare"

#: A run that took longer than this is not repeated.
_REPEATED_SECONDS = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    setup_arguments(parser, out="bench.json")
    add = parser.add_argument
    add("--rows", default="1000000", metavar="N[,N...]", help="how many rows; several: the cost per row too")
    add("--memory", default="512MiB", metavar="SIZE", help="our budget (512MiB)")
    add("--lists", type=int, metavar="N", help="lists of ours and faiss (default: as many as ooc plans)")
    add("--sides", default=",".join(SIDES), metavar="NAME[,NAME...]", help=f"of {', '.join(NAMES)}")
    add("--repeat", type=int, default=3, metavar="N", help="runs of each side that takes < 5 minutes (3)")
    add("--time-limit", type=float, default=600, metavar="SECONDS", help="of a run of a peer (600)")
    add(
        "--merge-shards",
        type=int,
        default=8,
        metavar="N",
        help="shards filled to measure their merge; 0: none (8)",
    )
    add("--keep", action="store_true", help="leave the indexes and stores; stores are used again")


def main(args: argparse.Namespace) -> int:
    return reported(lambda: _Bench(args).run())


class _Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._memory_bytes = parse_bytes(args.memory)
        try:
            self._rows = sorted({int(text) for text in args.rows.split(",")})
        except ValueError:
            raise ArgumentError(f"--rows {args.rows}: not numbers", kind="rows") from None
        self._names = named(args.sides, NAMES, "side")
        if self._rows[0] < 1 or args.repeat < 1:
            raise ArgumentError("--rows and --repeat are at least 1", kind="rows")
        self._cache, self._work = directories(args)
        self._data = data_of(args, self._rows[-1], self._work)
        settings = {
            "rows": self._rows,
            "dim": int(np.load(self._data, mmap_mode="r").shape[1]),
            "memory_bytes": self._memory_bytes,
            "cgroup_limit_bytes": self._memory_bytes + CACHE_BYTES,
            "lists": args.lists,
            "sides": self._names,
            "data": self._data.name,
            "metric": "cosine",
            "repeat": args.repeat,
            "time_limit_seconds": args.time_limit,
            "merge_shards": args.merge_shards,
        }
        self._result = {**new_result("build", settings, self._work), "sizes": []}

    def run(self) -> int:
        for rows in self._rows:
            task = Task(
                data=self._data,
                rows=rows,
                work=self._work,
                cache=self._cache,
                memory_bytes=self._memory_bytes,
                lists=self._args.lists,
            )
            try:
                self._size(task)
            finally:
                if not self._args.keep:
                    remove(task.directory)
        self._result["cost_per_row"] = cost_per_row(self._result["sizes"])
        self._result["bars"] = bars(self._result)
        save(self._result, self._args.out)
        print("\n".join(tables(self._result)))
        return 0 if all(_ours_done(size) for size in self._result["sizes"]) else 1

    def _size(self, task: Task) -> None:
        """Every side on one number of rows."""
        plan = task.plan
        figures: dict[str, Any] = {
            "rows": task.rows,
            "dim": task.d,
            "nlist": plan.nlist,
            "sample_rows": plan.sample_rows,
            "factory": plan.factory,
            "sides": {},
        }
        self._result["sizes"].append(figures)
        task.truth()
        ready = []
        for side in sides_of(self._names, task):
            figures["sides"][side.name] = {"about": side.about, "status": "waiting", "runs": []}
            try:
                side.prepare()
            except MissingError as missing:
                figures["sides"][side.name].update(status="missing", why=str(missing))
                say(f"{side.name}: missing: {missing}")
                continue
            figures["sides"][side.name]["versions"] = side.versions()
            ready.append(side)
        # One run of each and then the next of each: what else the machine does meets all alike.
        for number in range(self._args.repeat):
            for side in ready:
                self._turn(side, number, figures["sides"][side.name])
                save(self._result, self._args.out)
        for record in figures["sides"].values():
            done = [one for one in record["runs"] if one["status"] == "done"]
            if done:
                record["median"] = {name: _median(done, name) for name in FIGURES}
        shards = self._args.merge_shards
        if shards and any(side.ours for side in ready):
            say(f"{format_count(task.rows)} rows: merge of {shards} shards")
            figures["merge"] = measure_merge(task, shards)
        figures["ratios"] = ratios(figures["sides"])
        save(self._result, self._args.out)

    def _turn(self, side: Side, number: int, record: dict[str, Any]) -> None:
        """One run of a side, unless it is not to be run again; its recall after the first."""
        if number and (record["status"] != "done" or record["runs"][0]["wall_seconds"] >= _REPEATED_SECONDS):
            return
        one = self._measure(side)
        record["runs"].append(one)
        record["status"] = one["status"]
        if one["status"] != "done":
            record["why"] = one["why"]
        elif "recall" not in record:
            record["result_bytes"] = side.result_bytes()
            record.update(judged(side))
        if not self._args.keep:
            remove(side.result)

    def _measure(self, side: Side) -> dict[str, Any]:
        side.before_run()
        cache = drop_page_cache(side.inputs())
        say(f"{format_count(side.task.rows)} rows, {side.name}: begins")
        measured = run(
            side.command(),
            environment=side.variables,
            time_limit=None if side.ours else self._args.time_limit,
            memory_limit=self._memory_bytes + CACHE_BYTES if side.ours else None,
        )
        ended = f"{measured.status} {measured.why}".rstrip()
        took = f"{format_seconds(measured.wall_seconds)}, {format_bytes(measured.peak_private_bytes)} private"
        say(f"{format_count(side.task.rows)} rows, {side.name}: {ended}, {took}")
        return {
            **measured.as_record(),
            "page_cache": cache,
            "load_average": os.getloadavg()[0],
            "stages": stage_use(measured) if side.ours else None,
            "printed": last_json(measured.stdout),
        }


def _median(runs: list[dict[str, Any]], name: str) -> float | None:
    values = [one[name] for one in runs if one[name] is not None]
    return statistics.median(values) if values else None


def judged(side: Side) -> dict[str, Any]:
    """Recall of what a side made, by a process that is not measured."""
    done = subprocess.run(side.judge_command(), capture_output=True, text=True, check=False)
    curve = last_json(done.stdout)
    if done.returncode or curve is None:
        said = (done.stderr.strip() or "nothing on stderr").splitlines()
        return {"recall": None, "why_no_recall": said[-1][:300]}
    return {"recall": curve}


def stage_use(measured: Measured) -> dict[str, dict[str, float]]:
    """Of each stage of ours: its seconds, the cores it kept busy, the bytes it read a second."""
    if len(measured.samples) < 2:
        return {}
    times, seconds, read = (np.array(column, np.float64) for column in zip(*measured.samples, strict=True))
    began: dict[str, float] = {}
    stages = {}
    for line in measured.stderr.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "stage_started":
            began[event["stage"]] = event["time"]
        elif event.get("event") == "stage_finished" and event["stage"] in began:
            span = began[event["stage"]], event["time"]
            took = max(span[1] - span[0], 1e-9)
            use = {"seconds": took}
            if took >= 0.5:  # shorter than a few samples says nothing
                use["cores"] = float(np.diff(np.interp(span, times, seconds))[0]) / took
                use["read_bytes_per_second"] = float(np.diff(np.interp(span, times, read))[0]) / took
            stages[event["stage"]] = use
    return stages


def _ours_done(size: dict[str, Any]) -> bool:
    return all(side["status"] == "done" for name, side in size["sides"].items() if name.startswith("ooc-"))
