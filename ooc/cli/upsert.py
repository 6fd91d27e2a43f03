"""Give ids of an index other vectors."""

from __future__ import annotations

import argparse

from ooc.cli.ids import HELP as IDS_HELP
from ooc.cli.ids import read_ids
from ooc.cli.options import (
    add_copy_dtype,
    add_json,
    add_memory,
    add_progress,
    add_threads,
    print_json,
    watching,
)
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_count

HELP = "give ids other vectors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument("ids", metavar="IDS", help=IDS_HELP)
    parser.add_argument("store", metavar="STORE", help="as many vectors, in the order of the ids")
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
            read_ids(args.ids),
            args.store,
            memory=args.memory,
            threads=args.threads,
            copy_dtype=args.copy_dtype,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        added, rows = (format_count(figures[name]) for name in ("added", "rows"))
        line = f"{figures['index']}: {added} rows replaced"
        print_lines([f"{line}; {rows} in generation {figures['generation']}"])
    return 0
