"""Make an earlier generation of an index the live one again."""

from __future__ import annotations

import argparse

from ooc.cli.options import add_json, print_json
from ooc.cli.text import print_lines
from ooc.units import format_count

HELP = "make an earlier generation the live one again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "generation", metavar="N", type=int, help="its number; `ooc info INDEX --generations` lists them"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.update.collect import rollback

    figures = rollback(args.index, args.generation)
    if args.json:
        print_json(figures)
    else:
        rows = format_count(figures["rows"])
        print_lines([f"{figures['index']}: generation {figures['generation']} is live, {rows} rows"])
    return 0
