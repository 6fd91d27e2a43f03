"""Fill shards of a build that was begun; several processes and hosts may do so at once."""

from __future__ import annotations

import argparse
import os
import threading
import time
from typing import Any

from ooc.cli.build import describe as describe_index
from ooc.cli.options import add_json, add_progress, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import DEFAULT_MEMORY

HELP = "fill shards of a build that was begun"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the vectors that the build was begun with")
    parser.add_argument("index", metavar="INDEX", help="directory in which `ooc train` began a build")
    parser.add_argument(
        "--shards",
        metavar="NUMBERS",
        help="only these, as in 3-7,9, from 0 on (default: all that nobody else fills)",
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        default=DEFAULT_MEMORY,
        help="budget of private memory of this process, as in 512MiB",
    )
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads to use (default: the processors this process may use)",
    )
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.build.pipeline import fill
    from ooc.build.shards import parse_numbers

    shards = None if args.shards is None else parse_numbers(args.shards)
    with watching(args, f"fill {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        _end_with_parent(stop)
        figures = fill(
            args.store,
            args.index,
            shards=shards,
            memory=args.memory,
            threads=args.threads,
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
    from ooc.build.shards import format_numbers

    if figures["already_built"]:
        return describe_index(figures)
    count, missing = figures["shards"], figures["shards_missing"]
    if not missing:
        return [f"{figures['index']}: all shards are filled ({count}); `ooc merge` publishes them"]
    there = f"{count - len(missing)} of {count} shards are filled"
    return [f"{figures['index']}: {there}, missing are {format_numbers(missing)}"]


def _end_with_parent(stop: threading.Event) -> None:
    """A worker of `ooc build --workers` stops at a safe point when that process is gone."""
    from ooc.build.processes import PARENT_VARIABLE

    parent = os.environ.get(PARENT_VARIABLE, "")
    if not parent.isdigit():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        stop.set()

    threading.Thread(target=watch, name="ooc-parent", daemon=True).start()
