"""Take over an index that was made with plain faiss."""

from __future__ import annotations

import argparse

from ooc.cli.options import add_json, add_progress, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_count, format_seconds

HELP = "take over an index that was made with plain faiss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="what faiss.write_index wrote: an index with lists; it is only read")
    add("index", metavar="INDEX", help="directory to make")
    add(
        "--store",
        metavar="STORE",
        help="the vectors, row i being that of id i, by which searches re-rank exactly "
        "(default: none; searches go by the codes alone)",
    )
    add(
        "--metric",
        choices=("l2", "ip", "cosine"),
        help="cosine: the index is of inner products of unit vectors (default: as the file says)",
    )
    add(
        "--lists",
        metavar="FILE",
        help="where its lists are, if they are on disk and neither where FILE says nor beside it",
    )
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.exchange.take import import_index

    with watching(args, f"import {args.file}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = import_index(
            args.file,
            args.index,
            store=args.store,
            metric=args.metric,
            lists=args.lists,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
        return 0
    rows, seconds = format_count(figures["rows"]), format_seconds(figures["seconds"])
    lines = [
        f"{figures['index']}: {rows} rows, {figures['factory']}, metric {figures['metric']}, in {seconds}"
    ]
    if figures["left_out"]:
        lines.append(f"left out: {figures['left_out']}")
    if not figures["vectors"]:
        lines.append("it has no vectors: searches go by the codes alone (import with --store to re-rank)")
    print_lines(lines)
    return 0
