"""Remove generations of an index that nobody reads, and what an interrupted change left."""

from __future__ import annotations

import argparse

from ooc.cli.options import add_json, print_json
from ooc.cli.text import print_lines
from ooc.units import format_bytes

HELP = "remove generations that nobody reads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--keep",
        type=int,
        default=0,
        metavar="N",
        help="keep N generations before the live one, for `ooc rollback`",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.update.collect import gc

    figures = gc(args.index, keep=args.keep)
    if args.json:
        print_json(figures)
    else:
        gone = ", ".join(map(str, figures["removed"])) or "none"
        print_lines(
            [f"{figures['index']}: {format_bytes(figures['freed_bytes'])} freed; generations removed: {gone}"]
        )
    return 0
