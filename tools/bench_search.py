"""The search benchmark: every side searches the same rows in one go, and the figures stand side by side."""

from __future__ import annotations

import argparse
import json
import subprocess
from typing import Any

import numpy as np
from bench_measure import Measured, drop_page_cache, run
from bench_recall import CANDIDATES
from bench_search_curve import TARGETS, at_recall, bars, worth_measuring
from bench_search_read_ahead import AS_IS, current_kb, read_ahead
from bench_search_shared import NotMadeError, Shared
from bench_search_sides import SIDES, Side, side_of
from bench_search_table import tables
from bench_search_worker import Setting
from bench_setup import add_arguments as setup_arguments
from bench_setup import data_of, directories, named, new_result, reported, save, say
from bench_sides import TOOLS
from bench_task import MissingError, Task, remove

from ooc.errors import ArgumentError
from ooc.units import format_count, parse_bytes

HELP = "search the same rows with every side, in processes of their own, and compare"

MODES = ("single", "threads", "batch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    setup_arguments(parser, out="bench-search.json")
    add = parser.add_argument
    add("--rows", type=int, metavar="N", help="the first so many (1000000, or all of --data)")
    add("--lists", type=int, metavar="N", help="lists of ours and faiss (default: as many as ooc plans)")
    add("--sides", default=",".join(SIDES), metavar="NAME[,NAME...]", help=f"of {', '.join(SIDES)}")
    add("--modes", default=",".join(MODES), metavar="NAME[,NAME...]", help=f"of {', '.join(MODES)}")
    add(
        "--limits",
        default="10%,5%,3%",
        metavar="SIZE[,SIZE...]",
        help="memory of cgroups, of the raw vectors' bytes or absolute; '': none (10%%,5%%,3%%)",
    )
    add("--no-cold", action="store_true", help="leave out the cold start with memory free")
    add("--queries", type=int, default=1000, metavar="N", help="of each set, at most (1000)")
    add("--candidates", default=str(CANDIDATES), metavar="N[,N...]", help="re-ranked exactly (100)")
    add("--threads", type=int, default=2, metavar="N", help="of the mode of that name (2)")
    add("--batch", type=int, default=1000, metavar="N", help="queries of a call of the mode batch (1000)")
    add(
        "--read-ahead-kb",
        default=AS_IS,
        metavar="N[,N...]",
        help=f"of the disk, where it is not warm: KiB, or '{AS_IS}' for what it is ({AS_IS})",
    )
    add("--point-seconds", type=float, default=20, metavar="S", help="of single queries at a setting (20)")
    add("--time-limit", type=float, default=600, metavar="SECONDS", help="of a process (600)")
    add("--memory", default="512MiB", metavar="SIZE", help="budget of our build (512MiB)")
    add("--keep", action="store_true", help="leave the indexes and stores in --work; they are used again")
    add("--no-plots", action="store_true", help="write no plots")


def main(args: argparse.Namespace) -> int:
    return reported(lambda: _Bench(args).run())


class _Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._names = named(args.sides, SIDES, "side")
        self._modes = named(args.modes, MODES, "mode")
        self._read_ahead = [kb for kb in args.read_ahead_kb.split(",") if kb]
        try:
            candidates = [int(text) for text in args.candidates.split(",")]
            if not all(int(kb) > 0 for kb in self._read_ahead if kb != AS_IS):
                raise ValueError
        except ValueError:
            raise ArgumentError(
                f"--candidates {args.candidates}, --read-ahead-kb {args.read_ahead_kb}: not numbers",
                kind="number",
            ) from None
        counts = (args.queries, args.threads, args.batch, *candidates)
        if min(counts) < 1 or (args.rows is not None and args.rows < 1) or not self._read_ahead:
            raise ArgumentError("numbers are at least 1", kind="number")
        limits = [_share(text) for text in args.limits.split(",") if text]
        cache, work = directories(args)
        data = data_of(args, args.rows or (1 if args.data else 1_000_000), work)
        rows = args.rows or len(np.load(data, mmap_mode="r"))
        self._task = Task(
            data=data,
            rows=rows,
            work=work,
            cache=cache,
            memory_bytes=parse_bytes(args.memory),
            lists=args.lists,
        )
        raw = rows * self._task.d * 4
        #: Bytes of each limit, by its name; none where memory is free.
        self._memory: dict[str, int | None] = {"warm": None} if args.no_cold else {"warm": None, "cold": None}
        self._memory |= {name: int(share * raw) if share else parse_bytes(name) for name, share in limits}
        #: Sides that a limit was too small for, and that limit.
        self._beyond: dict[str, str] = {}
        self._shared = Shared(self._task, candidates, args.time_limit)
        settings = {
            "rows": rows,
            "dim": self._task.d,
            "data": self._task.data.name,
            "metric": "cosine",
            "nlist": self._task.plan.nlist,
            "factory": self._task.plan.factory,
            "candidates": candidates,
            "sides": self._names,
            "modes": self._modes,
            "memory": list(self._memory),
            "memory_bytes": self._memory,
            "read_ahead": self._read_ahead,
            "machine_read_ahead_kb": current_kb(work),
            "queries": args.queries,
            "threads": args.threads,
            "batch": args.batch,
            "point_seconds": args.point_seconds,
            "time_limit_seconds": args.time_limit,
        }
        self._result: dict[str, Any] = {**new_result("search", settings, work), "sides": {}, "bars": []}

    def run(self) -> int:
        sides: list[Side] = []
        try:
            self._task.truth()
            for name in self._names:
                side = side_of(name, self._shared)
                sides.append(side)
                self._prepare(side)
            ready = [side for side in sides if self._record(side)["status"] == "done"]
            for memory in self._memory:
                for kb in self._read_ahead if memory != "warm" else self._read_ahead[:1]:
                    for mode in self._modes:
                        for side in ready:
                            self._turn(side, mode, memory, kb)
        except MissingError as missing:
            raise ArgumentError(str(missing), kind="data") from missing
        finally:
            if not self._args.keep:
                for directory in {side.task.directory for side in sides} | {self._task.directory}:
                    remove(directory)
        self._result["bars"] = bars(self._result)
        self._save()
        print("\n".join(tables(self._result)))
        if not self._args.no_plots:
            self._plot()
        return 0 if self._result["sides"].get("ooc", {}).get("status", "done") == "done" else 1

    def _record(self, side: Side) -> dict[str, Any]:
        record: dict[str, Any] = self._result["sides"][side.name]
        return record

    def _save(self) -> None:
        save(self._result, self._args.out)

    def _prepare(self, side: Side) -> None:
        """Make a side and see what recall its settings have."""
        record: dict[str, Any] = {
            "about": side.about,
            "status": "done",
            "rows": None,
            "recall": [],
            "runs": [],
        }
        self._result["sides"][side.name] = record
        try:
            record["build"] = side.prepare()
            record["rows"] = side.task.rows
            record["versions"] = side.versions()
            record["openblas_coretype"] = side.variables.get("OPENBLAS_CORETYPE")
            truth = side.task.truth()
            say(f"{side.name}: recall of {format_count(side.task.rows)} rows")
            settings = side.settings()
            measured, lines = self._run(side, {"verb": "recall", "truth": str(truth), "settings": settings})
            record["recall"] = [line for line in lines if "recall" in line]
            if not record["recall"]:
                record.update(status=measured.status, why=f"recall: {measured.why}")
            elif measured.status != "done":  # what was reached before is known
                record["recall_ended"] = measured.why
        except MissingError as missing:
            record.update(status="missing", why=str(missing))
        except NotMadeError as error:
            record.update(status=error.status, why=error.why)
        if record["status"] != "done":
            say(f"{side.name}: {record['status']}: {record['why']}")
        self._save()

    def _run(
        self, side: Side, job: dict[str, Any], limit: int | None = None
    ) -> tuple[Measured, list[dict[str, Any]]]:
        """A side's script at its job: how it ended, and what it said."""
        job = {"side": side.opening(), "queries": self._args.queries, **job}
        measured = run(
            side.command(job),
            environment=side.variables,
            time_limit=self._args.time_limit,
            memory_limit=limit,
        )
        return measured, _lines(measured.stdout)

    def _turn(self, side: Side, mode: str, memory: str, kb: str) -> None:
        """A side in one mode, with one memory and read-ahead: all settings that are worth it."""
        if mode not in side.modes or (memory != "warm" and not side.on_disk):
            return
        record = self._record(side)
        turn: dict[str, Any] = {
            "mode": mode,
            "memory": memory,
            "limit_bytes": self._memory[memory],
            "read_ahead": kb,
            "status": "done",
            "points": [],
            "at": {},
        }
        record["runs"].append(turn)
        if side.name in self._beyond:
            turn.update(status="not run", why=f"was beyond it in {self._beyond[side.name]}")
            return
        settings = worth_measuring(record["recall"])
        # From a cold start each setting has a process of its own.
        for group in [settings] if memory == "warm" else [[setting] for setting in settings]:
            self._measure(side, turn, group)
            if turn["status"] != "done":
                break
        turn["at"] = {f"{target:.2f}": at_recall(turn["points"], target, mode) for target in TARGETS}
        if turn["status"] != "done" and turn["limit_bytes"] is not None and not turn["points"]:
            self._beyond[side.name] = memory
        ended = f"{turn['status']} {turn.get('why', '')}".rstrip()
        say(f"{side.name}, {mode}, {memory}, read-ahead {kb}: {ended}, {len(turn['points'])} settings")
        self._save()

    def _measure(self, side: Side, turn: dict[str, Any], settings: list[Setting]) -> None:
        """One process of a turn: its points, and how it ended."""
        args, warm = self._args, turn["memory"] == "warm"
        job = {"verb": "measure", "truth": str(side.task.truth()), "settings": settings, "mode": turn["mode"]}
        job |= {"threads": args.threads, "batch": args.batch, "warm": warm}
        job["point_seconds"] = args.point_seconds
        with read_ahead(self._task.directory, turn["read_ahead"]) as as_asked:
            if not as_asked:
                turn.update(status="not run", why="the read-ahead may not be set here")
                return
            if not warm:
                turn["page_cache"] = drop_page_cache(side.inputs())
            measured, lines = self._run(side, job, turn["limit_bytes"])
        known = {json.dumps(point["setting"]): point for point in self._record(side)["recall"]}
        opened = next((line["opened_seconds"] for line in lines if "opened_seconds" in line), None)
        for line in lines:
            if "latencies" in line:
                recalls = {k: v for k, v in known[json.dumps(line["setting"])].items() if k != "setting"}
                turn["points"].append(
                    {
                        **point_of(line, turn["mode"]),
                        **recalls,
                        "opened_seconds": opened,
                        "first_answer_seconds": opened + line["latencies"][0],
                        "peak_private_bytes": measured.peak_private_bytes,
                        "peak_cgroup_bytes": measured.peak_cgroup_bytes,
                    }
                )
        if measured.status != "done":
            turn.update(status=measured.status, why=measured.why)

    def _plot(self) -> None:
        """Plots beside the result, by matplotlib in an environment of its own."""
        try:
            python = self._task.environment("plots", ["matplotlib>=3.8"])
        except MissingError as missing:
            say(f"no plots: matplotlib {missing}")
            return
        command = [str(python), str(TOOLS / "bench_search_plot.py"), str(self._args.out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        say(done.stdout.strip() if done.returncode == 0 else f"no plots: {done.stderr.strip()[-300:]}")


def point_of(line: dict[str, Any], mode: str) -> dict[str, Any]:
    """A worker's line as a point of a curve: its latencies become percentiles."""
    seconds = np.array(line["latencies"])
    point = {
        "setting": line["setting"],
        "recall_here": line["recall_here"],
        "queries": line["queries"],
        "seconds": line["seconds"],
        "queries_per_second": line["queries"] / line["seconds"],
        "read_bytes_per_query": line["read_bytes"] / line["queries"],
        "private_bytes": line["private_bytes"],
    }
    if mode == "batch":
        return {**point, "batch_seconds": line["latencies"]}
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)).tolist()
    return {**point, "p50_seconds": p50, "p95_seconds": p95, "p99_seconds": p99}


def _lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects that a script printed, one a line, among what its libraries print."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _share(text: str) -> tuple[str, float | None]:
    """A limit's name, and its share of the raw vectors' bytes where it is one."""
    if not text.endswith("%"):
        parse_bytes(text)
        return text, None
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = 0
    if share <= 0:
        raise ArgumentError(f"--limits {text}: not a share", kind="limits")
    return text, share
