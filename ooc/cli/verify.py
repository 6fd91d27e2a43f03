"""See whether an index is what it was when it was written, and mend what can be."""

from __future__ import annotations

import argparse
from typing import Any

from ooc.cli.options import add_json, add_memory, add_progress, add_threads, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.errors import IndexDirError
from ooc.units import format_bytes, format_count, format_seconds

HELP = "see whether an index is sound; mend what is damaged"

#: Findings that are shown as text; the rest are counted.
_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--full",
        action="store_true",
        help="read everything: all checksums, the rows in each list, codes of a sample of rows, the store",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make anew what is damaged, from the store or the index's own rows, as another generation",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--generation", type=int, metavar="N", help="look at this generation (default: the live one)"
    )
    which.add_argument("--all", action="store_true", help="look at all generations that are there")
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="where the store is now that was indexed first (default: where it was)",
    )
    add_memory(parser)
    add_threads(parser, "threads for making anew")
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.check.verify import verify

    with watching(args, f"verify {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = verify(
            args.index,
            full=args.full,
            repair=args.repair,
            generation=args.generation,
            every=args.all,
            store=args.store,
            memory=args.memory,
            threads=args.threads,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        print_lines(describe(figures))
    return 0 if figures["sound"] else IndexDirError.exit_code


def describe(figures: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = [f"repaired: {one}" for one in figures["repaired"]]
    found = figures["findings"]
    for one in found[:_SHOWN]:
        block = "" if one["block"] is None else f", block {one['block']}"
        lines += [f"{one['path']}{block}: {one['what']}", f"  {one['do']}"]
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more; --json lists them all")
    lines += [f"not checked: {one['what']}: {one['why']}" for one in figures["unchecked"]]
    checked = figures["checked"]
    how = "everything" if figures["full"] else "records, sizes and structure"
    looked = f"{format_count(checked['records'])} records, {format_count(checked['files'])} files"
    if figures["full"]:
        looked += (
            f", {format_bytes(checked['bytes'])} by checksum, "
            f"{format_count(checked['entries'])} entries of lists, {format_count(checked['codes'])} codes"
        )
    result = "sound" if figures["sound"] else f"{format_count(len(found))} findings"
    seconds = format_seconds(figures["seconds"])
    lines.append(f"{figures['index']}: {how} looked at in {seconds} ({looked}): {result}")
    return lines
