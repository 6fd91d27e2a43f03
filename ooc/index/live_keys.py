"""Keys of all rows of a generation: which live row has a key, and which key a row has.

Several rows may have had a key: one that was replaced or deleted, and the one that has it now. One at most
is live.
"""

from __future__ import annotations

import threading

import numpy as np

from ooc.errors import ArgumentError, IndexDirError
from ooc.index.dead import Dead
from ooc.index.generation import Generation, Part
from ooc.index.keys import KeyTable, hashes
from ooc.index.layout import Layout
from ooc.stores.keys import KeyBlock
from ooc.stores.texts import Texts
from ooc.types import AnyArray, IntArray, KeyKind

__all__ = ["LiveKeys", "no_keys"]


class LiveKeys:
    """The keys of a generation that has some. Files are opened when they are first needed.

    Safe from several threads.

    Parameters
    ----------
    layout : Layout
    generation : Generation
    dead : Dead
    """

    def __init__(self, layout: Layout, generation: Generation, dead: Dead) -> None:
        self._layout, self._parts, self._dead = layout, generation.parts, dead
        self._starts = np.array([part.first_row for part in self._parts], np.int64)
        self._tables: dict[str, KeyTable] = {}
        self._lock = threading.Lock()

    def _table(self, part: Part) -> KeyTable:
        name = str(part.keyed)
        with self._lock:
            if name not in self._tables:
                self._tables[name] = KeyTable(self._layout.segment(name), part.rows)
            return self._tables[name]

    @property
    def kind(self) -> KeyKind:
        """What keys are."""
        return self._table(self._parts[0]).kind

    @property
    def longest(self) -> int:
        """Bytes of the longest key."""
        return max(self._table(part).longest for part in self._parts)

    @property
    def bytes(self) -> int:
        """Of all their files."""
        return sum(self._table(part).bytes for part in self._parts)

    def rows(self, keys: KeyBlock) -> IntArray:
        """The live row of each key ``(m,)``; -1 where none has it."""
        hashed = hashes(keys)
        found = np.full(len(hashed), -1, np.int64)
        for part in self._parts:
            rows = self._table(part).find(keys, hashed)
            here = np.flatnonzero(rows >= 0)
            rows = rows[here] + part.first_row
            live = ~self._dead.contains(rows)
            found[here[live]] = rows[live]
        return found

    def take(self, rows: IntArray) -> KeyBlock:
        """The keys of rows ``(m,)``, live or not, in any order."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        order = np.argsort(which, kind="stable")
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        numbers = [np.empty(0, np.int64)]
        texts: list[Texts] = []
        for i in np.unique(which).tolist():
            part = self._parts[i]
            some = self._table(part).take(rows[order[which[order] == i]] - part.first_row)
            if isinstance(some, Texts):
                texts.append(some)
            else:
                numbers.append(some)
        if self.kind == "str":
            return Texts.joined(texts)[back]
        taken: IntArray = np.concatenate(numbers)[back]
        return taken

    def of(self, rows: IntArray) -> AnyArray:
        """The keys of rows (any shape) as a caller gets them: int64, or an object array of str.

        Where a row is -1, the key is -1, or None.
        """
        flat = rows.reshape(-1)
        there = np.flatnonzero(flat >= 0)
        some = self.take(flat[there])
        out: AnyArray = np.full(len(flat), None, object) if self.kind == "str" else np.full(len(flat), -1)
        try:
            out[there] = some.strings() if isinstance(some, Texts) else some
        except UnicodeDecodeError as error:
            raise IndexDirError(
                f"keys of {self._layout.root} are no UTF-8",
                kind="index-damaged",
                hint="Copy the whole directory anew, or remove it and build.",
            ) from error
        return out.reshape(rows.shape)


def no_keys(where: object) -> ArgumentError:
    """What is said where keys are named and an index has none."""
    return ArgumentError(
        f"the rows of {where} have no keys",
        kind="keys",
        hint="Name them by id; or build the index anew with keys.",
    )
