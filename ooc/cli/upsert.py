"""Give rows of an index other vectors, by id or by key; a key that is new becomes a new row."""

from __future__ import annotations

import argparse

from ooc.cli.ids import HELP as IDS_HELP
from ooc.cli.ids import read_ids
from ooc.cli.options import (
    add_copy_dtype,
    add_json,
    add_keys,
    add_memory,
    add_progress,
    add_threads,
    print_json,
    watching,
)
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_count

HELP = "give rows other vectors, by id or by key"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument("ids", metavar="IDS", nargs="?", help=f"{IDS_HELP}; or give --keys")
    parser.add_argument("store", metavar="STORE", help="as many vectors, in the order of the ids or keys")
    add_keys(parser, "instead of IDS, keys of the rows")
    add_memory(parser)
    add_threads(parser)
    add_copy_dtype(parser)
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.update.append import upsert

    with watching(args, f"upsert {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = upsert(
            args.index,
            None if args.ids is None else read_ids(args.ids),
            args.store,
            keys=args.keys,
            memory=args.memory,
            threads=args.threads,
            copy_dtype=args.copy_dtype,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        replaced, rows = (format_count(figures[name]) for name in ("replaced", "rows"))
        line = f"{figures['index']}: {replaced} rows replaced"
        if figures["added"] > figures["replaced"]:
            line += f", {format_count(figures['added'] - figures['replaced'])} added"
        print_lines([f"{line}; {rows} in generation {figures['generation']}"])
    return 0
