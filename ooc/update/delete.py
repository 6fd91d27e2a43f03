"""Deleting: rows are marked as dead; their codes go with the next compaction."""

from __future__ import annotations

from typing import Any

import numpy as np

from ooc.index.layout import Layout
from ooc.index.live_keys import no_keys
from ooc.index.lock import publisher
from ooc.stores.keys import open_keys
from ooc.types import AnyArray, IntArray, KeysLike, PathOrStr
from ooc.update.append import checked_ids, see_one_of
from ooc.update.publish import Live, Next, live

__all__ = ["delete"]


def delete(index: PathOrStr, ids: AnyArray | None = None, *, keys: KeysLike | None = None) -> dict[str, Any]:
    """Delete rows by id or by key; see ``ooc.delete``."""
    layout = Layout.of(index)
    see_one_of(ids, keys)
    with publisher(layout.lock):
        before = live(layout)
        said: dict[str, Any] = {}
        if keys is None:
            rows = _rows_of_ids(before, np.asarray(ids))
        else:
            rows, unknown = _rows_of_keys(before, keys)
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


def _rows_of_ids(before: Live, ids: AnyArray) -> IntArray:
    """The live rows of ids, ascending."""
    if ids.dtype == bool and ids.shape == (before.generation.id_end,):
        ids = np.flatnonzero(ids)
    rows = before.numbering.rows(np.unique(checked_ids(ids, before.generation.id_end)))
    return np.sort(rows[rows >= 0])


def _rows_of_keys(before: Live, keys: KeysLike) -> tuple[IntArray, int]:
    """The live rows of keys, ascending, and how many keys no live row has."""
    live_keys = before.keys
    if live_keys is None:
        raise no_keys(before.layout.root)
    found = [live_keys.rows(block) for block in open_keys(keys, live_keys.kind).blocks()]
    rows = np.concatenate([np.empty(0, np.int64), *found])
    return np.unique(rows[rows >= 0]), int((rows < 0).sum())
