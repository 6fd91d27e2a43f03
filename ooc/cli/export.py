"""Write an index as one file that plain faiss opens and searches by its codes."""

from __future__ import annotations

import argparse

from ooc.cli.options import add_json, add_progress, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_bytes, format_count, format_seconds

HELP = "write an index as one file of plain faiss"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument("out", metavar="FILE", help="the file to write")
    parser.add_argument(
        "--nprobe",
        type=int,
        metavar="N",
        help="lists that faiss looks into where its caller sets nothing (default: those of a search here)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, once the new one is whole")
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.exchange.export import export

    with watching(args, f"export {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = export(
            args.index, args.out, overwrite=args.overwrite, nprobe=args.nprobe, observer=shown, stop=stop
        )
    if args.json:
        print_json(figures)
        return 0
    rows, size = format_count(figures["rows"]), format_bytes(figures["bytes"])
    print_lines(
        [
            f"{figures['out']}: {rows} rows, {size}, in {format_seconds(figures['seconds'])}",
            f"faiss.read_index opens it; nprobe is {figures['nprobe']}, metric {figures['metric']}",
        ]
    )
    return 0
