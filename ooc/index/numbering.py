"""Ids and row numbers: which row an id is now, and which id a row has.

They are the same until a row is replaced. The new row then has a number of its own and the id of the old
one, which is dead: at any time one live row at most has an id.
"""

from __future__ import annotations

import numpy as np

from ooc.index.dead import Dead
from ooc.index.generation import Generation, Part
from ooc.index.layout import Layout
from ooc.index.segment import read_ids
from ooc.types import IntArray

__all__ = ["IdFiles", "Numbering"]


class IdFiles:
    """The ids of parts that keep them in a file, each mapped when it is first asked for."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._mapped: dict[str, IntArray] = {}

    def __call__(self, part: Part) -> IntArray:
        """``(rows,)`` int64, ascending."""
        name = str(part.ids_in)
        ids = self._mapped.get(name)
        if ids is None:
            ids = self._mapped[name] = read_ids(self._layout.segment(name), part.rows)
        return ids


class Numbering:
    """Ids of rows and rows of ids. Safe from several threads.

    Parameters
    ----------
    generation : Generation
    dead : Dead
        Rows that no id is any more.
    ids_of : IdFiles

    Attributes
    ----------
    plain : bool
        Whether every row's id is its number, and no other id was given.
    gaps : bool
        Whether there are ids below the largest that were never given.
    """

    def __init__(self, generation: Generation, dead: Dead, ids_of: IdFiles) -> None:
        self._parts, self._dead, self._ids_of = generation.parts, dead, ids_of
        self.row_end, self.id_end = generation.row_end, generation.id_end
        same = all(part.first_id == part.first_row for part in self._parts)
        self.plain = same and self.row_end == self.id_end
        self.gaps = any(part.listed is not None for part in self._parts)
        self._starts = np.array([part.first_row for part in self._parts], np.int64)
        counted = [part for part in self._parts if part.first_id is not None]
        self._listed = [part for part in self._parts if part.first_id is None]
        # Both ascend: ids are given in the order of the rows.
        self._first_ids = np.array([part.first_id for part in counted], np.int64)
        self._first_rows = np.array([part.first_row for part in counted], np.int64)
        self._end_ids = np.array([part.id_end for part in counted], np.int64)

    def ids(self, rows: IntArray) -> IntArray:
        """The ids of ``rows`` (int64, any shape); -1 stays."""
        if self.plain:
            return rows
        flat = rows.reshape(-1)
        out = np.full(len(flat), -1, np.int64)
        which = np.searchsorted(self._starts, flat, side="right") - 1
        for i in np.unique(which[flat >= 0]).tolist():
            part = self._parts[i]
            here = np.flatnonzero((which == i) & (flat >= 0))
            inside = flat[here] - part.first_row
            out[here] = self._ids_of(part)[inside] if part.first_id is None else inside + part.first_id
        return out.reshape(rows.shape)

    def rows(self, ids: IntArray) -> IntArray:
        """The live rows of ``ids`` (int64, any shape, from 0 to ``id_end`` - 1); -1 where there is none."""
        flat = ids.reshape(-1)
        found = np.full(len(flat), -1, np.int64)
        if len(self._first_ids):
            which = np.searchsorted(self._first_ids, flat, side="right") - 1
            # Other ids are listed: of an index that was imported, or new ones of an upsert.
            counted = (which >= 0) & (flat < self._end_ids[which])
            rows = flat - self._first_ids[which] + self._first_rows[which]
            counted[counted] = ~self._dead.contains(rows[counted])
            found[counted] = rows[counted]
        for part in self._listed:
            listed = self._ids_of(part)
            at = np.minimum(np.searchsorted(listed, flat), part.rows - 1)
            here = np.flatnonzero(listed[at] == flat)
            rows = at[here] + part.first_row
            live = ~self._dead.contains(rows)
            found[here[live]] = rows[live]
        return found.reshape(ids.shape)
