"""Show what an index holds: rows, lists and their sizes, bytes, and how it was built."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping
from typing import Any

from ooc.cli.options import add_json, print_json
from ooc.cli.text import aligned, bars, heading, pairs, print_lines, terminal_width
from ooc.units import format_bytes, format_count, format_seconds

HELP = "what an index holds and how it was built"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--store", metavar="STORE", help="where the indexed vectors are now, if they were moved"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    import ooc

    with ooc.open_index(args.index, store=args.store) as index:
        info = index.info()
    if args.json:
        print_json(info)
    else:
        print_lines(describe(info, terminal_width()))
    return 0


def describe(info: Mapping[str, Any], width: int) -> list[str]:
    """The record as lines of text of about ``width`` columns."""
    return [
        *_index(info),
        "",
        heading("List sizes"),
        *_lists(info["list_sizes"], width),
        "",
        heading("Bytes"),
        *_bytes(info["segments"]),
        "",
        heading("Built"),
        *_built(info),
    ]


def _index(info: Mapping[str, Any]) -> list[str]:
    store, defaults = info["store"], info["defaults"]
    reach = "" if store["reachable"] else "  NOT REACHABLE: re-ranking needs it; see --store"
    mapped = "mapped" if store["mapped"] else "decoded chunk by chunk"
    return [
        heading(str(info["path"])),
        *pairs(
            [
                ("rows", f"{format_count(info['rows'])} of {info['d']} dimensions, metric {info['metric']}"),
                ("code", f"{info['factory']}, {info['code_size']} bytes a row"),
                ("lists", format_count(info["nlist"])),
                ("generation", f"{info['generation']}, format {info['format_version']}"),
                ("store", f"{store['uri'] or 'array in memory'} ({store['format']}, {mapped}){reach}"),
                ("search default", f"nprobe {defaults['nprobe']}, rerank {defaults['rerank']}"),
            ]
        ),
    ]


def _lists(sizes: Mapping[str, Any], width: int) -> list[str]:
    edges, counts = sizes["histogram"]["edges"], sizes["histogram"]["counts"]
    spans = [f"{format_count(low)} to {format_count(high)}" for low, high in itertools.pairwise(edges)]
    drawn = [(span, float(count), format_count(count)) for span, count in zip(spans, counts, strict=True)]
    least, most, empty = (format_count(sizes[key]) for key in ("min", "max", "empty"))
    return [
        *(bars(drawn, width=width) if drawn else []),
        f"  least {least}, mean {sizes['mean']:.4g}, most {most}; {empty} empty",
        f"  a row's list has {sizes['weighted_mean']:.4g} rows on average",
    ]


def _bytes(segments: list[Mapping[str, Any]]) -> list[str]:
    rows: list[tuple[str, str, str]] = []
    for segment in segments:
        for part, size in segment["bytes"].items():
            rows.append((segment["name"] if len(segments) > 1 else "", part, format_bytes(size)))
    total = sum(sum(segment["bytes"].values()) for segment in segments)
    rows.append(("", "all", format_bytes(total)))
    return [line[2:] if len(segments) == 1 else line for line in aligned(rows, right=(2,))]


def _built(info: Mapping[str, Any]) -> list[str]:
    plan, report = info["plan"], info["report"]
    rows = [
        ("plan", f"{plan['digest']}, seed {plan['seed']}, bad rows: {plan['on_bad']}"),
        ("trained on", f"{format_count(plan['sample_rows'])} rows"),
    ]
    told = ", ".join(
        f"{key.replace('_', ' ')} {_figure(value)}"
        for key, value in info["train"].items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    )
    if told:
        rows.append(("template", told))
    if report is not None:
        stages = ", ".join(
            f"{name} {format_seconds(stage['seconds'])}" for name, stage in report.get("stages", {}).items()
        )
        rows.append(("time", format_seconds(report["seconds"]) + (f": {stages}" if stages else "")))
        for key, what in (("skipped_rows", "left out as NaN or infinite"), ("zero_rows", "all zeros")):
            if report.get(key):
                rows.append(("rows", f"{format_count(report[key])} {what}"))
    return pairs(rows)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return format_count(value) if isinstance(value, int) else str(value)
