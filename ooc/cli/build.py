"""Build an index of a store within a memory budget; run again after an interruption, it goes on."""

from __future__ import annotations

import argparse
from typing import Any

from ooc.cli.options import (
    add_json,
    add_plan_options,
    add_progress,
    add_scratch,
    plan_options,
    print_json,
    watching,
)
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_bytes, format_count, format_seconds

HELP = "build an index; run again after an interruption, it goes on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="vectors: PATH, PATH::/dataset, a pattern, or a URL")
    parser.add_argument("index", metavar="INDEX", help="directory of the index, new or begun before")
    add_plan_options(parser)
    add_scratch(parser)
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="fill in N processes, which share the memory and the threads",
    )
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.build.pipeline import build
    from ooc.build.plan import Options

    with watching(args, f"build {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        options = Options(**plan_options(args))
        figures = build(
            args.store,
            args.index,
            options,
            scratch=args.scratch,
            workers=args.workers,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        print_lines(describe(figures))
    return 0


def describe(figures: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    rows, size = format_count(figures["rows"]), format_bytes(figures["bytes"])
    if figures["already_built"]:
        return [f"{figures['index']} holds these {rows} rows already ({size}); nothing to do"]
    lines = [f"{figures['index']}: {rows} rows, {size}, built in {format_seconds(figures['seconds'])}"]
    if figures["skipped_rows"]:
        lines.append(f"{format_count(figures['skipped_rows'])} rows with NaN or infinity were left out")
    if figures["zero_rows"]:
        lines.append(f"{format_count(figures['zero_rows'])} rows are all zeros")
    expected = figures["forecast"]
    if expected is not None:
        seconds = format_seconds(sum(expected["seconds"].values()))
        memory, disk = (format_bytes(expected[key]) for key in ("memory_bytes", "disk_bytes"))
        peak = format_bytes(figures["peak_private_bytes"])
        lines.append(
            f"forecast: {seconds}, {memory} of private memory, {disk}; it was at most {peak} of memory"
        )
    return lines
