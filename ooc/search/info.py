"""What an index is, in figures: sizes, lists, how it was built, where its rows are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ooc.durable import read_json
from ooc.errors import OocError
from ooc.index.layout import Layout
from ooc.index.lists import evenness
from ooc.index.segment import Segment
from ooc.search.source import Source

__all__ = ["figures"]


def figures(
    layout: Layout, generation: int, record: Mapping[str, Any], segment: Segment, source: Source
) -> dict[str, Any]:
    """A JSON-ready mapping: sizes, lists, plan, training, store."""
    header = layout.read_header()
    sizes = segment.sizes
    even = evenness(sizes)
    counts, edges = np.histogram(sizes, bins=min(20, max(1, int(sizes.max()) - int(sizes.min()))))
    report_path = layout.report(generation)
    report = read_json(report_path, what="the build's report") if report_path.exists() else None
    return {
        "path": str(layout.root),
        "format_version": header.format_version,
        "rows": segment.rows,
        "lists_per_row": segment.lists_per_row,
        "d": header.d,
        "metric": header.metric,
        "factory": record["plan"]["factory"],
        "nlist": segment.nlist,
        "code_size": segment.code_size,
        "generation": generation,
        "skipped_rows": record["skipped_rows"],
        "zero_rows": record["zero_rows"],
        "segments": [
            {
                "name": entry["name"],
                "rows": entry["rows"],
                "bytes": segment.record["bytes"],
                **{key: segment.record[key] for key in ("copy_error",) if key in segment.record},
            }
            for entry in record["segments"]
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
        "store": {**record["store"], "reachable": _reachable(source)},
    }


def _reachable(source: Source) -> bool:
    try:
        source.rows()
    except OocError:
        return False
    return True
