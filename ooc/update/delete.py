"""Deleting: rows are marked as dead; their codes go with the next compaction."""

from __future__ import annotations

from typing import Any

import numpy as np

from ooc.index.layout import Layout
from ooc.index.lock import publisher
from ooc.types import AnyArray, PathOrStr
from ooc.update.append import checked_ids
from ooc.update.publish import Next, live

__all__ = ["delete"]


def delete(index: PathOrStr, ids: AnyArray) -> dict[str, Any]:
    """Delete rows by id; see ``ooc.delete``."""
    layout = Layout.of(index)
    with publisher(layout.lock):
        before = live(layout)
        array = np.asarray(ids)
        if array.dtype == bool and array.shape == (before.generation.id_end,):
            array = np.flatnonzero(array)
        wanted = np.unique(checked_ids(array, before.generation.id_end))
        rows = before.numbering.rows(wanted)
        rows = np.sort(rows[rows >= 0])
        record = before.generation.record
        if len(rows):
            made = Next(before)
            made.bury(rows)
            record = made.publish({"operation": "delete", "deleted": len(rows)})
        return {
            "index": str(layout.root),
            "generation": record["generation"],
            "deleted": len(rows),
            "rows": before.generation.rows if not len(rows) else record["rows"],
        }
