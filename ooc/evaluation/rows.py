"""The rows by which an index is judged: those that were indexed, not a smaller copy of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ooc.errors import OocError
from ooc.index.dead import Dead
from ooc.search.searcher import Index
from ooc.stores import Store
from ooc.types import IntArray

__all__ = ["Numbered", "indexed_rows", "numbered"]


def indexed_rows(index: Index) -> tuple[Store, bool]:
    """The rows that were indexed, and whether a search takes its distances from them.

    Raises
    ------
    StoreError, ConflictError
        They are gone, or others are there.
    """
    info = index.info()
    own_copy = info["plan"].get("copy_dtype", "store") == "store"
    starts = np.cumsum([0, *(part["rows"] for part in info["stores"][:-1])])
    try:
        rows = index.rows(original=True)
        rows.take(starts)  # several stores are opened when they are first read
    except OocError:
        # Its own rows do where nothing was lost in them.
        if own_copy:
            index.rows().take(starts)
            return index.rows(), True
        raise
    return rows, rows is index.rows() or own_copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """How the rows of an index are numbered, which of them count, and which ids they have.

    Attributes
    ----------
    end, id_end : int
        One more than the largest row, and id.
    dead : Dead
        Rows that were deleted or replaced.
    """

    index: Index
    end: int
    id_end: int
    dead: Dead

    def ids(self, rows: IntArray) -> IntArray:
        """The ids of rows, any shape; -1 stays."""
        return self.index._view().numbering.ids(rows)

    def rows(self, ids: IntArray) -> IntArray:
        """The rows of ids, any shape; -1 stays."""
        return np.where(ids < 0, -1, self.index._view().numbering.rows(np.maximum(ids, 0)))


def numbered(index: Index) -> Numbered:
    """Of the generation that the index reads."""
    view = index._view()
    return Numbered(index=index, end=view.generation.row_end, id_end=view.numbering.id_end, dead=view.dead)
