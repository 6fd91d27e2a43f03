"""Show what building an index of a store will do and cost; nothing is written."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ooc.cli.options import add_json, add_plan_options, plan_options, print_json
from ooc.cli.signals import say, stop_on_signals
from ooc.cli.text import aligned, heading, pairs, print_lines
from ooc.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from ooc.build.plan import Plan

HELP = "what a build will do and cost"

#: Of a row in a list, beside its code.
_ID_BYTES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="vectors: PATH, PATH::/dataset, a pattern, or a URL")
    parser.add_argument(
        "index", metavar="INDEX", nargs="?", help="where the index shall be: its disk is checked for room"
    )
    add_plan_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.build.pipeline import plan
    from ooc.build.plan import Options

    with stop_on_signals(say) as stop:
        made = plan(args.store, Options(**plan_options(args)), index=args.index, stop=stop)
    if args.json:
        print_json(made.to_record())
    else:
        print_lines(describe(made))
    return 0


def describe(plan: Plan) -> list[str]:
    """The plan as lines of text."""
    rerank = "the index's own copy of the rows" if plan.copy_vectors else "the store"
    if plan.copy_dtype != "store":
        rerank += f" as {plan.copy_dtype}, whose loss `ooc info` shows once it is built"
    most = plan.memory_by_stage
    expected = plan.forecast.memory_by_stage if plan.forecast is not None else {}
    memory = [("", "at most", "of it", "expected")] if expected else []
    for stage, size in most.items():
        shown = (format_bytes(expected[stage]),) if expected else ()
        memory.append((stage, format_bytes(size), f"{size / plan.memory_bytes:.0%}", *shown))
    nlist, each = (format_count(m) for m in (plan.nlist, plan.n * plan.lists_per_row / plan.nlist))
    return [
        heading("What"),
        *pairs(
            [
                ("store", plan.store or "array in memory"),
                (
                    "rows",
                    f"{format_count(plan.n)} x {plan.d} {plan.dtype}, "
                    + ("mapped" if plan.mapped else "decoded chunk by chunk"),
                ),
                ("metric", plan.metric),
                ("code", f"{plan.factory}, {plan.code_size} bytes a row"),
                ("lists", f"{nlist}, about {each} rows each"),
                ("second lists", _spill(plan)),
                (
                    "trained on",
                    f"{format_count(plan.sample_rows)} rows"
                    + (f", template {plan.template} reused" if plan.template else f", seed {plan.seed}"),
                ),
                ("work", f"{_shards(plan)}, {plan.threads} thread{'s' * (plan.threads != 1)}"),
                ("re-ranked from", rerank),
                ("bad rows", "stop at them" if plan.on_bad == "stop" else "leave them out"),
                ("plan", plan.digest),
            ]
        ),
        "",
        *_codes(plan),
        *_forecast(plan),
        heading(f"Private memory, of {format_bytes(plan.memory_bytes)}"),
        *aligned(memory, right=(1, 2, 3)),
        "",
        heading("Disk"),
        *aligned(
            [
                *((part, format_bytes(size)) for part, size in plan.index_bytes.items()),
                ("index", format_bytes(sum(plan.index_bytes.values()))),
                ("while building, besides", format_bytes(plan.scratch_bytes)),
            ],
            right=(1,),
        ),
        *(f"\nnote: {text}" for text in advice(plan)),
    ]


def _codes(plan: Plan) -> list[str]:
    """The codes that were compared, where one was chosen."""
    if len(plan.compared) < 1 or not plan.compared[0].list_bytes:
        return []
    head = ("", "code", "bytes a row", "lists", "candidates", "reads a query", "index")
    lists = plan.index_bytes["lists"]
    others = sum(plan.index_bytes.values()) - lists
    rows = [
        (
            "*" if one.chosen else "",
            one.code,
            str(one.code_size),
            format_count(one.nprobe),
            format_count(one.candidates),
            format_bytes(one.read_bytes),
            format_bytes(
                others
                + plan.index_bytes["lists"] * (one.code_size + _ID_BYTES) // (plan.code_size + _ID_BYTES)
            ),
        )
        for one in plan.compared
    ]
    return [
        heading("Code"),
        *aligned([head, *rows], right=range(2, len(head))),
        "  * chosen; larger ones could not read a tenth less. For recall@10 of about .95, from a few rows",
        "",
    ]


def _forecast(plan: Plan) -> list[str]:
    """What the build is expected to take."""
    expected = plan.forecast
    if expected is None:
        return []
    how = (
        "measured on this machine"
        if expected.measured
        else "at usual speeds: so short a build is not measured"
    )
    return [
        heading(f"Time, {how}"),
        *aligned(
            [
                *((stage, format_seconds(seconds)) for stage, seconds in expected.seconds.items() if seconds),
                ("in all", format_seconds(expected.total_seconds)),
            ],
            right=(1,),
        ),
        "",
    ]


def _spill(plan: Plan) -> str:
    """What the second list of each row costs and brings, or would."""
    once = format_bytes(plan.index_bytes["lists"] // plan.lists_per_row)
    if plan.spill:
        return f"on: {once} of the lists; pays on some collections only, see `ooc help plan`"
    return f"off; --spill on takes {once} more, and can make recall much cheaper"


def _shards(plan: Plan) -> str:
    if plan.shards == 1:
        return "1 shard"
    return f"{plan.shards} shards of {format_count(plan.shard_rows)} rows"


def advice(plan: Plan) -> list[str]:
    """What somebody should know before the build."""
    notes = []
    if plan.n < 32 * plan.nlist:
        notes.append(
            f"{format_count(plan.nlist)} lists are many for {format_count(plan.n)} rows: lists will be short "
            "and their centroids poorly trained."
        )
    if not plan.mapped and not plan.copy_vectors:
        notes.append(
            "The store is not mapped and the index keeps no copy of the rows: re-ranking decodes whole "
            "chunks, which is slow. Without --copy-vectors never a copy is kept."
        )
    near = [stage for stage, size in plan.memory_by_stage.items() if size > 0.95 * plan.memory_bytes]
    if near and plan.shards > 8:
        notes.append(f"The budget makes {plan.shards} shards; more memory makes fewer, and merging quicker.")
    if plan.copy_vectors and plan.mapped and plan.copy_dtype == "store":
        notes.append(
            "The store can be mapped, so the index needs no copy of the rows as long as the store stays "
            "where it is."
        )
    return notes
