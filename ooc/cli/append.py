"""Add rows to an index: those of another store, or those that a store has more than before."""

from __future__ import annotations

import argparse
from typing import Any

from ooc.cli.options import (
    add_copies,
    add_json,
    add_keys,
    add_memory,
    add_on_bad,
    add_progress,
    add_threads,
    print_json,
    watching,
)
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_count

HELP = "add rows to an index; run again after an interruption, it goes on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument("store", metavar="STORE", help="vectors: PATH, PATH::/dataset, a pattern, or a URL")
    add_keys(parser, "a key for each new row, or for each of STORE, where rows of INDEX have keys")
    add_memory(parser)
    add_threads(parser)
    add_copies(parser)
    add_on_bad(parser)
    parser.add_argument(
        "--auto",
        action="store_true",
        help="compact afterwards, where there are more than 8 segments or more than a fifth is dead",
    )
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.update.append import append
    from ooc.update.compact import compact

    with watching(args, f"append to {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = append(
            args.index,
            args.store,
            keys=args.keys,
            memory=args.memory,
            threads=args.threads,
            copy_vectors=args.copy_vectors,
            copy_dtype=args.copy_dtype,
            on_bad=args.on_bad,
            observer=shown,
            stop=stop,
        )
        if args.auto:
            compacted = compact(args.index, auto=True, observer=shown, stop=stop)
            figures |= {name: compacted[name] for name in ("generation", "compacted")}
    if args.json:
        print_json(figures)
    else:
        print_lines(describe(figures))
    return 0


def describe(figures: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    rows, index = format_count(figures["rows"]), figures["index"]
    if not figures["added"]:
        return [f"{index} holds these rows already; nothing to do"]
    added, first = format_count(figures["added"]), figures["first_id"]
    named = "" if first is None else f", ids from {first} on"
    lines = [f"{index}: {added} rows added{named}; {rows} in generation {figures['generation']}"]
    if figures.get("compacted"):
        lines.append(f"{figures['compacted']} segments were compacted to one")
    return lines
