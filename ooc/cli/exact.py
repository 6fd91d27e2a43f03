"""Find the exact neighbours of queries by comparing all rows, in bounded memory, and write them to a file."""

from __future__ import annotations

import argparse

from ooc.cli.options import (
    add_json,
    add_memory,
    add_metric,
    add_on_bad,
    add_progress,
    add_threads,
    print_json,
    watching,
)
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.errors import ArgumentError
from ooc.units import format_count, format_seconds

HELP = "exact neighbours of queries, by comparing all rows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("store", metavar="STORE", help="vectors: PATH, PATH::/dataset, a pattern, or a URL")
    add("queries", metavar="QUERIES", nargs="?", help="queries: any store; left out with --self: all rows")
    add("-k", type=int, default=100, metavar="N", help="neighbours a query")
    add(
        "--out",
        metavar="FILE",
        required=True,
        help="where to; the suffix says the format: .h5 .npz .zarr .parquet, with distances; "
        ".npy .ivecs, ids alone",
    )
    add("--overwrite", action="store_true", help="replace FILE, once the new one is whole")
    add(
        "--self",
        dest="own",
        action="store_true",
        help="query number i is row i of STORE, and left out of its own answer",
    )
    add_metric(parser)
    add_memory(
        parser,
        "budget of private memory of the whole process; queries that do not fit are done in further passes",
    )
    add_threads(parser)
    add_on_bad(parser)
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    if args.queries is None and not args.own:
        raise ArgumentError("QUERIES are missing", kind="usage", hint="Name them, or give --self.")
    from ooc.evaluation.exact import exact
    from ooc.stores import open_store

    rows = None
    if args.own:
        with open_store(args.store if args.queries is None else args.queries) as queries:
            rows = range(queries.n)
    with watching(args, f"exact {args.out}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = exact(
            args.store,
            args.queries,
            out=args.out,
            k=args.k,
            metric=args.metric,
            rows=rows,
            memory=args.memory,
            threads=args.threads,
            on_bad=args.on_bad,
            overwrite=args.overwrite,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        what = f"{args.k} neighbours each of {format_count(figures['nq'])} queries"
        among = f"among {format_count(figures['rows'])} rows, in {format_seconds(figures['seconds'])}"
        print_lines([f"{figures['out']}: {what} {among}"])
    return 0
