"""Deleting: rows are marked as dead; their codes go with the next compaction."""

from __future__ import annotations

from typing import Any

import numpy as np

from ooc.errors import ResourceError
from ooc.index.layout import Layout
from ooc.types import AnyArray, KeysLike, PathOrStr
from ooc.update.changing import changing
from ooc.update.named import live_rows_of_ids, live_rows_of_keys, see_one_of
from ooc.update.publish import Next

__all__ = ["delete"]


@ResourceError.if_refused("deleting")
def delete(index: PathOrStr, ids: AnyArray | None = None, *, keys: KeysLike | None = None) -> dict[str, Any]:
    """Delete rows by id or by key; see ``ooc.delete``."""
    layout = Layout.of(index)
    see_one_of(ids, keys)
    with changing(layout) as before:
        said: dict[str, Any] = {}
        if keys is None:
            rows = live_rows_of_ids(before, np.asarray(ids))
        else:
            rows, unknown = live_rows_of_keys(before, keys)
            said["unknown"] = unknown
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
            **said,
        }
