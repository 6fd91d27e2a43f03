"""Measure the recall, time and bytes of an index over a grid of settings, against exact neighbours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ooc.cli.info import recall_table
from ooc.cli.options import add_json, add_memory, add_progress, add_threads, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import aligned, heading, print_lines
from ooc.errors import ArgumentError
from ooc.units import format_bytes, format_count, format_seconds

HELP = "recall, time and bytes of an index, against exact neighbours"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", metavar="INDEX", help="directory of the index")
    add(
        "queries",
        metavar="QUERIES",
        nargs="?",
        help="queries: any store, as a build takes (default: rows drawn from the store, each left out of its "
        "own answer)",
    )
    add(
        "--ground-truth",
        metavar="FILE",
        help="true neighbours of QUERIES, as `ooc exact` writes them: .h5 .npz .npy .ivecs "
        "(default: computed)",
    )
    add("-k", type=int, default=10, metavar="N", help="neighbours a query")
    add(
        "--queries-count",
        type=int,
        metavar="N",
        help="only the first N queries, or rows drawn (default: 1000)",
    )
    add("--nprobe", metavar="LIST", help="lists to look into, as in 8,32,128 (default: powers of two)")
    add(
        "--candidates",
        metavar="LIST",
        help="candidates compared exactly, as in 50,200 (default: four numbers)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the draw")
    add("--html", metavar="FILE", help="write a page of the results; it loads nothing from elsewhere")
    add("--plot", metavar="FILE", help="write the curve as .svg or .png")
    add(
        "--update",
        action="store_true",
        help="instead of a grid: measure anew which settings keep which recall, by QUERIES or rows, and let "
        "searches choose by it from now on",
    )
    add("--overwrite", action="store_true", help="replace what is at --html and --plot")
    add("--store", metavar="STORE", help="where the indexed vectors are now, if they were moved")
    add_memory(parser)
    add_threads(parser, "threads for the exact neighbours")
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    nprobe, candidates = (_numbers(getattr(args, name), name) for name in ("nprobe", "candidates"))
    from ooc.evaluation.evaluate import evaluate

    with watching(args, f"eval {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = evaluate(
            args.index,
            args.queries,
            ground_truth=args.ground_truth,
            k=args.k,
            count=args.queries_count,
            nprobe=nprobe,
            candidates=candidates,
            seed=args.seed,
            store=args.store,
            memory=args.memory,
            threads=args.threads,
            html=args.html,
            plot=args.plot,
            overwrite=args.overwrite,
            update=args.update,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        print_lines(describe_update(figures) if args.update else describe(figures))
    return 0


def _numbers(listed: str | None, name: str) -> list[int] | None:
    """``"8,32"`` as numbers."""
    if listed is None:
        return None
    try:
        return [int(number) for number in listed.split(",")]
    except ValueError:
        raise ArgumentError(
            f"--{name} must be whole numbers with commas between them, not {listed!r}", kind=name
        ) from None


def describe_update(figures: Mapping[str, Any]) -> list[str]:
    """The table that was measured anew."""
    seconds, table = format_seconds(figures["seconds"]), figures["recall"]
    said = f"{figures['index']}: generation {figures['generation']}, recall measured anew in {seconds}"
    return [heading(said), *(recall_table(table) if table else ["  nothing could be measured"])]


def describe(figures: Mapping[str, Any]) -> list[str]:
    """The measurements as a table, and the files that were written."""
    queries = figures["queries"]
    which = "rows drawn from the store" if queries["drawn"] else "queries"
    head = (
        "", "nprobe", "candidates", f"recall@{figures['k']}", f"{figures['confidence']:.0%} interval",
        "p50 ms", "p95", "p99", "queries/s", "lists read", "rows read",
    )  # fmt: skip
    rows = [
        (
            "*" if point["best"] else "",
            str(point["nprobe"]),
            str(point["candidates"]),
            f"{point['recall']:.4f}",
            f"{point['recall_low']:.4f} - {point['recall_high']:.4f}",
            *(f"{1e3 * point['latency_seconds'][name]:.2f}" for name in ("p50", "p95", "p99")),
            format_count(point["queries_per_second"]),
            format_bytes(point["list_bytes"]),
            format_bytes(point["row_bytes"]),
        )
        for point in figures["points"]
    ]
    return [
        heading(f"{figures['index']}: {format_count(queries['count'])} {which}, metric {figures['metric']}"),
        *aligned([head, *rows], right=range(1, len(head))),
        "  * nothing else here reads as little and recalls as much",
        *(
            ["  ties by id alone: the rows cannot be read to compare distances"]
            if figures["ties"] == "ids"
            else []
        ),
        *(f"{name}: {figures[name]}" for name in ("html", "plot") if figures[name]),
    ]
