"""Publishing: the finished segment becomes the live generation, atomically.

The segment is renamed into its place, the generation's record written, and then ``CURRENT``, which
is what a reader looks at. Before that last step the index is as it was; after it, it is the new one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ooc.build.merge import is_done
from ooc.build.plan import Plan
from ooc.durable import make_directory, read_json, remove_tree, rename
from ooc.events import Observer, ignore, stage
from ooc.index.drift import calibrated
from ooc.index.layout import Layout

__all__ = ["FIRST_GENERATION", "FIRST_SEGMENT", "publish"]

FIRST_SEGMENT = "s1"
FIRST_GENERATION = 1


def publish(
    plan: Plan,
    layout: Layout,
    report: dict[str, Any],
    measured: dict[str, Any],
    sketch: Path,
    *,
    observer: Observer = ignore,
) -> dict[str, Any]:
    """Publish what ``merge`` made as the first generation; its record.

    Parameters
    ----------
    plan : Plan
        What was built.
    layout : Layout
        The index directory.
    report : dict
        Times and figures, kept beside the record: unlike it, they differ from run to run.
    measured : dict
        What ``calibrate`` measured: ``order`` and ``calibration``.
    sketch : Path
        The sketch that it made, where it did.
    observer : callable
        Is told events.
    """
    segment = layout.segment(FIRST_SEGMENT)
    with stage(observer, "publish", 1) as at:
        if not is_done(segment, plan):
            remove_tree(segment.root)
            make_directory(segment.root.parent)
            rename(layout.build(plan.digest).segment.root, segment.root)
        written = read_json(segment.record, what="the segment's record")
        counts = {key: written[key] for key in ("rows", "skipped_rows", "zero_rows")}
        record = {
            "generation": FIRST_GENERATION,
            **counts,
            "segments": [{"name": FIRST_SEGMENT, "rows": written["rows"]}],
            "plan": plan.identity,
            "chosen": plan.chosen,
            **measured,
            "calibrated": calibrated(FIRST_GENERATION, [FIRST_SEGMENT], [written]),
            "store": {"uri": plan.store, "format": plan.store_format, "mapped": plan.mapped},
        }
        layout.publish(FIRST_GENERATION, record, {**report, **counts}, sketch)
        at.tell(1)
    return record
