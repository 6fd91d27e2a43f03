"""What an index is, in figures: sizes, lists, how it was built, where its rows are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ooc.durable import read_json
from ooc.errors import OocError
from ooc.index.drift import stale
from ooc.index.layout import Layout
from ooc.index.lists import evenness

if TYPE_CHECKING:
    from ooc.search.opened import Opened

__all__ = ["figures", "recall"]


def figures(layout: Layout, view: Opened) -> dict[str, Any]:
    """A JSON-ready mapping: sizes, lists, plan, training, store."""
    generation, record, segments = view.generation, view.record, view.segments
    header, layout = layout.read_header(), layout.of_generation(record)
    sizes = segments.sizes
    even = evenness(sizes)
    counts, edges = np.histogram(sizes, bins=min(20, max(1, int(sizes.max()) - int(sizes.min()))))
    # Later generations go on with what was built once.
    report_path = layout.report(record.get("built", generation.number))
    report = read_json(report_path, what="the build's report") if report_path.exists() else None
    report = report if report and "plan" in report else None
    return {
        "path": str(layout.root),
        "format_version": header.format_version,
        "rows": view.n,
        "lists_per_row": segments.lists_per_row,
        "d": header.d,
        "metric": header.metric,
        "factory": generation.factory,
        "nlist": segments.nlist,
        "code_size": segments.code_size,
        "generation": generation.number,
        "skipped_rows": record["skipped_rows"],
        "zero_rows": record["zero_rows"],
        "dead_rows": sum(entry.dead for entry in generation.segments),
        "ids": generation.id_end,
        "keys": None if view.keys is None else {"kind": view.keys.kind, "bytes": view.keys.bytes},
        "segments": [
            {
                "name": entry.name,
                "rows": entry.rows,
                "dead_rows": entry.dead,
                "bytes": one.record["bytes"],
                **{key: one.record[key] for key in ("copy_error", "assignment_error") if key in one.record},
            }
            for entry, one in zip(generation.segments, segments.each, strict=True)
        ],
        "stores": [
            {
                "rows": part.rows,
                "uri": part.origin.uri,
                "first": part.origin.first,
                "copied": part.own is not None,
            }
            for part in generation.parts
        ],
        "template_bytes": {path.name: path.stat().st_size for path in sorted(layout.template.glob("*"))},
        "list_sizes": {
            "min": int(sizes.min()),
            "mean": even["mean"],
            "max": even["largest"],
            "weighted_mean": even["weighted_mean"],
            "empty": even["empty"],
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        },
        "plan": report["plan"] if report else record["plan"],
        "train": read_json(layout.train_record, what="the template's record"),
        "report": report,
        "store": {**record["store"], "reachable": _reachable(view)},
        "vectors": view.source.known,
        "imported": record.get("imported"),
    }


def recall(layout: Layout, view: Opened) -> dict[str, Any] | None:
    """The table of what is promised, with what a query took, and why it is stale, if it is."""
    table, record = view.choice.table(), view.record
    if table is None:
        return None
    path = layout.report(int(record.get("calibrated", {}).get("generation", view.generation.number)))
    report = read_json(path, what="the report") if path.exists() else {}
    took = {
        (line["k"], line["nprobe"], line["rerank"]): line["p50_seconds"] for line in report.get("times", [])
    }
    settings = [
        {**line, "p50_seconds": took.get((line["k"], line["nprobe"], line["candidates"]))}
        for line in table["settings"]
    ]
    records = [one.record for one in view.segments.each]
    return {**table, "settings": settings, "stale": stale(record, records)}


def _reachable(view: Opened) -> bool:
    try:
        rows = view.source.rows()
        if rows.n:
            rows.read(0, 1)
    except OocError:
        return False
    return True
