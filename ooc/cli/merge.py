"""Merge the filled shards of a build and publish the index."""

from __future__ import annotations

import argparse

from ooc.cli.build import describe
from ooc.cli.options import add_json, add_progress, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines

HELP = "merge filled shards and publish the index"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the vectors that the build was begun with")
    parser.add_argument("index", metavar="INDEX", help="directory of which `ooc fill` filled all shards")
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.build.pipeline import merge

    with watching(args, f"merge {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = merge(args.store, args.index, observer=shown, stop=stop)
    if args.json:
        print_json(figures)
    else:
        print_lines(describe(figures))
    return 0
