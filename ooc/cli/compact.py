"""Make one segment of all that an index has, without the codes of deleted rows."""

from __future__ import annotations

import argparse

from ooc.cli.options import add_json, add_memory, add_progress, add_threads, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_count, format_seconds

HELP = "make one segment of all, without deleted rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--auto",
        action="store_true",
        help="only where there are more than 8 segments, or more than a fifth of the rows in lists is dead",
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="build all live rows anew under a template trained with them; with --auto only where those that "
        "came since fit the present one no longer",
    )
    parser.add_argument(
        "--store",
        nargs=2,
        action="append",
        default=[],
        metavar=("OLD", "NEW"),
        help="with --retrain: where a store is now that was moved; OLD is what `ooc info` calls it; "
        "can be given several times",
    )
    add_memory(parser, "with --retrain: budget of private memory of the whole process, as in 512MiB")
    add_threads(parser, "with --retrain: threads to use")
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.update.compact import compact

    with watching(args, f"compact {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = compact(
            args.index,
            auto=args.auto,
            retrain=args.retrain,
            store=dict(args.store) or None,
            memory=args.memory,
            threads=args.threads,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    elif figures["trained"]:
        line = f"{figures['index']}: trained anew in {format_seconds(figures['seconds'])}"
        print_lines([f"{line}; `ooc gc` removes what was there before"])
    elif not figures["compacted"]:
        print_lines([f"{figures['index']}: nothing to compact"])
    else:
        seconds, dropped = format_seconds(figures["seconds"]), format_count(figures["dropped"])
        line = f"{figures['index']}: {figures['compacted']} segments became one in {seconds}"
        print_lines([f"{line}, {dropped} dead rows went; `ooc gc` removes what they were in"])
    return 0
