"""Show what an index holds: rows, lists and their sizes, bytes, and how it was built."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Mapping
from typing import Any

from ooc.cli.options import add_json, print_json
from ooc.cli.text import aligned, bars, heading, pairs, print_lines, terminal_width
from ooc.units import format_bytes, format_count, format_seconds

HELP = "what an index holds and how it was built"

#: Seconds from which a stage is worth naming in a forecast.
_SHOWN = 0.05

_STAGES = ("plan", "sample", "train", "fill", "ids", "merge", "calibrate", "publish")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--store", metavar="STORE", help="where the indexed vectors are now, if they were moved"
    )
    parser.add_argument(
        "--generations", action="store_true", help="the generations that are there, and what made them"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.generations:
        return _generations(args)
    from ooc.search.searcher import open_index

    with open_index(args.index, store=args.store) as index:
        info = index.info()
    if args.json:
        print_json(info)
    else:
        print_lines(describe(info, terminal_width()))
    return 0


def _generations(args: argparse.Namespace) -> int:
    from ooc.update.collect import generations

    found = generations(args.index)
    if args.json:
        print_json(found)
        return 0
    head = ("generation", "by", "rows", "dead", "segments", "published", "")
    lines = [
        (
            str(one["generation"]),
            one["operation"],
            format_count(one["rows"]),
            format_count(one["dead_rows"]),
            str(len(one["segments"])),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["published"])),
            ", ".join(word for word in ("live", "held") if one[word]),
        )
        for one in found
    ]
    print_lines(aligned([head, *lines], right=(0, 2, 3, 4)))
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
        *_bytes(info),
        "",
        *_recall(info["recall"]),
        heading("Built"),
        *_built(info),
    ]


def _index(info: Mapping[str, Any]) -> list[str]:
    defaults = info["defaults"]
    return [
        heading(str(info["path"])),
        *pairs(
            [
                ("rows", f"{format_count(info['rows'])} of {info['d']} dimensions, metric {info['metric']}"),
                ("code", f"{info['factory']}, {info['code_size']} bytes a row"),
                (
                    "lists",
                    format_count(info["nlist"])
                    + (", each row is in two" if info["lists_per_row"] == 2 else ""),
                ),
                ("generation", f"{info['generation']}, format {info['format_version']}"),
                ("store", _store(info)),
                *_copy(info),
                *_keys(info),
                ("search default", f"nprobe {defaults['nprobe']}, rerank {defaults['rerank']}"),
            ]
        ),
    ]


def _store(info: Mapping[str, Any]) -> str:
    """Where the vectors are."""
    if not info["vectors"]:
        return "none of some vectors: searches go by the codes alone (rerank 0)"
    store = info["store"]
    reach = "" if store["reachable"] else "  NOT REACHABLE: re-ranking needs it; see --store"
    mapped = "mapped" if store["mapped"] else "decoded chunk by chunk"
    return f"{store['uri'] or 'array in memory'} ({store['format']}, {mapped}){reach}"


def _copy(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the index's own rows are, where it keeps any."""
    plan = info["plan"]
    if not plan["copy_vectors"]:
        return []
    if "copy_error" not in info["segments"][0]:
        return [("own rows", "a copy in the store's dtype")]
    error = 100 * info["segments"][0]["copy_error"]
    return [("own rows", f"{plan['copy_dtype']} copy, relative error {error:.2g} %")]


def _keys(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the keys of the rows are, where they have some."""
    keys = info["keys"]
    if keys is None:
        return []
    kind = "strings" if keys["kind"] == "str" else "whole numbers"
    return [("keys", f"{kind}, {format_bytes(keys['bytes'])}")]


def _lists(sizes: Mapping[str, Any], width: int) -> list[str]:
    edges, counts = sizes["histogram"]["edges"], sizes["histogram"]["counts"]
    spans = [f"{format_count(low)} to {format_count(high)}" for low, high in itertools.pairwise(edges)]
    drawn = [(span, float(count), format_count(count)) for span, count in zip(spans, counts, strict=True)]
    least, most, empty = (format_count(sizes[key]) for key in ("min", "max", "empty"))
    return [
        *(bars(drawn, width=width) if drawn else []),
        f"  least {least}, mean {sizes['mean']:.4g}, most {most}; {empty} empty",
        f"  weighted by size, which is what a query meets: {sizes['weighted_mean']:.4g}",
    ]


def _recall(table: Mapping[str, Any] | None) -> list[str]:
    """What a search must read for which recall, and whether that still holds."""
    if table is None:
        return []
    stale = table["stale"]
    warning = (
        [f"  STALE: {stale}.", "  The table was measured before these rows: run `ooc eval --update`."]
        if stale
        else []
    )
    return [heading("Recall"), *recall_table(table), *warning, ""]


def recall_table(table: Mapping[str, Any]) -> list[str]:
    """The settings that keep some recalls, what they read and take, and how that was measured."""
    lines: list[tuple[str, ...]] = [("k", "recall", "nprobe", "rerank", "lists read", "rows read", "p50")]
    for line in table["settings"]:
        target = f"{line['target']:g}" if line["kept"] else f"{line['low']:.3f} at most"
        if not line["kept"] and lines[-1][:2] == (str(line["k"]), target):
            continue
        lines.append(
            (
                str(line["k"]),
                target,
                str(line["nprobe"]),
                str(line["candidates"]),
                format_bytes(line["list_bytes"]),
                format_bytes(line["row_bytes"]),
                "" if line["p50_seconds"] is None else f"{1e3 * line['p50_seconds']:.2f} ms",
            )
        )
    if all(line["p50_seconds"] is None for line in table["settings"]):
        lines = [line[:-1] for line in lines]
    count = format_count(table["queries"])
    if table["by"] == "rows":
        said = f"  measured with {count} rows of the store, each left out of its own answer"
    else:
        said = f"  measured with {count} queries that were given"
    return [*aligned(lines, right=range(len(lines[0]))), said]


def _bytes(info: Mapping[str, Any]) -> list[str]:
    parts = {f"template/{name}": size for name, size in info["template_bytes"].items()}
    for segment in info["segments"]:
        parts |= {f"segments/{segment['name']}/{name}": size for name, size in segment["bytes"].items()}
    rows = [(name, format_bytes(size)) for name, size in parts.items()]
    return aligned([*rows, ("in all", format_bytes(sum(parts.values())))], right=(1,))


def _trained(info: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    if info["imported"]:
        return f"{info['imported']['kind']} imported from {info['imported']['file']}"
    return f"trained on {format_count(plan['sample_rows'])} rows"


def _built(info: Mapping[str, Any]) -> list[str]:
    plan, report = info["plan"], info["report"]
    # Without the report, which no search needs, less is known.
    named = {"digest": "", "seed": "seed ", "on_bad": "bad rows: "}
    rows = [
        ("plan", ", ".join(f"{name}{plan[key]}" for key, name in named.items() if key in plan)),
        ("template", f"{plan['factory']}, {_trained(info, plan)}"),
    ]
    if info["imported"] and info["imported"]["left_out"]:
        rows.append(("left out", info["imported"]["left_out"]))
    for key, what in (("skipped_rows", "with NaN or infinity left out"), ("zero_rows", "all zeros")):
        if info[key]:
            rows.append(("rows", f"{format_count(info[key])} {what}"))
    if report is not None:
        stages = report["stages"]
        each = ", ".join(
            f"{name} {format_seconds(stages[name]['seconds'])}" for name in _STAGES if name in stages
        )
        rows.append(("time", f"{format_seconds(report['seconds'])}: {each}"))
        expected = report["plan"].get("forecast")
        if expected:
            stages = [f"{name} {format_seconds(s)}" for name, s in expected["seconds"].items() if s >= _SHOWN]
            memory, disk = (format_bytes(expected[key]) for key in ("memory_bytes", "disk_bytes"))
            seconds = format_seconds(sum(expected["seconds"].values()))
            how = "as measured before" if expected["measured"] else "at usual speeds"
            rows.append(("forecast", f"{seconds} {how}, {memory} of private memory, {disk}"))
            rows.append(("by stage", ", ".join(stages)))
        rows.append(("private memory", f"{format_bytes(report['peak_private_bytes'])} at most"))
        rows.append(("with", ", ".join(f"{name} {text}" for name, text in report["versions"].items())))
    return pairs(rows)
