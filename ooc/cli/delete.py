"""Delete rows of an index; their bytes go with `ooc compact`."""

from __future__ import annotations

import argparse

from ooc.cli.ids import HELP as IDS_HELP
from ooc.cli.ids import read_ids
from ooc.cli.options import add_json, add_keys, print_json
from ooc.cli.text import print_lines
from ooc.units import format_count

HELP = "delete rows of an index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument("ids", metavar="IDS", nargs="?", help=f"{IDS_HELP}; or give --keys")
    add_keys(parser, "instead of IDS, keys of the rows; those that no row has are passed over")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.update.delete import delete

    figures = delete(args.index, None if args.ids is None else read_ids(args.ids), keys=args.keys)
    if args.json:
        print_json(figures)
    else:
        deleted, rows = (format_count(figures[name]) for name in ("deleted", "rows"))
        line = f"{figures['index']}: {deleted} rows deleted"
        if figures.get("unknown"):
            line += f", {format_count(figures['unknown'])} keys are of no row"
        print_lines([f"{line}; {rows} in generation {figures['generation']}"])
    return 0
