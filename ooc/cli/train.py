"""Begin a build: plan, sample and train; `ooc fill` and `ooc merge` do the rest, as does `ooc build`."""

from __future__ import annotations

import argparse

from ooc.cli.build import describe as describe_index
from ooc.cli.options import (
    add_json,
    add_plan_options,
    add_progress,
    add_scratch,
    plan_options,
    print_json,
    watching,
)
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_count

HELP = "begin a build: plan, sample and train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="vectors: PATH, PATH::/dataset, a pattern, or a URL")
    parser.add_argument("index", metavar="INDEX", help="directory of the index, new or begun before")
    add_plan_options(parser)
    add_scratch(parser)
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.build.pipeline import train
    from ooc.build.plan import Options

    with watching(args, f"train {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        options = Options(**plan_options(args))
        figures = train(args.store, args.index, options, scratch=args.scratch, observer=shown, stop=stop)
    if args.json:
        print_json(figures)
    elif figures["already_built"]:
        print_lines(describe_index(figures))
    else:
        count, rows = format_count(figures["shards"]), format_count(figures["shard_rows"])
        shards = f"{count} shards of {rows} rows" if figures["shards"] > 1 else "1 shard"
        print_lines([f"{figures['index']}: trained; {shards} to fill with `ooc fill`, then `ooc merge`"])
    return 0
