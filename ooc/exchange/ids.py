"""Which row an id of a foreign index becomes.

Ids that are nearly 0 to n - 1 are the numbers of the rows too; those that are missing between are rows that
are dead. Any others are listed, ascending, in ``ids.npy``, and a row's number is the place of its id there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ooc import disk
from ooc.durable import translated
from ooc.errors import DataError
from ooc.index.dead import Dead
from ooc.types import IntArray

__all__ = ["Listed", "Numbered", "span"]

#: All ids, some at a time, as often as asked.
Ids: TypeAlias = Callable[[], Iterable[IntArray]]

#: Ids that are looked at together.
_WINDOW = 1 << 20


def span(ids: Ids) -> tuple[int, int]:
    """The largest id, and how many ids there are.

    Raises
    ------
    DataError
        One is below 0.
    """
    largest, count = -1, 0
    for some in ids():
        if some.size and int(some.min()) < 0:
            raise DataError(
                f"the index holds an id of {int(some.min())}",
                kind="ids",
                hint="Ids must be at least 0: give its rows others with faiss (add_with_ids).",
            )
        largest, count = max(largest, int(some.max(initial=-1))), count + len(some)
    return largest, count


def _twice(one: int) -> DataError:
    return DataError(
        f"the index holds id {one} more than once",
        kind="ids",
        hint="Every row needs an id of its own: take the earlier ones out with faiss (remove_ids) and add "
        "them anew.",
    )


class Numbered:
    """Ids below ``end`` that are the numbers of their rows.

    Attributes
    ----------
    dead : Dead
        Numbers that no row has.

    Raises
    ------
    DataError
        An id is there twice.
    """

    def __init__(self, ids: Ids, end: int, count: int) -> None:
        bits = np.zeros(-(-end // 8), np.uint8)
        for some in ids():
            before = (bits[some >> 3] >> (some & 7).astype(np.uint8)) & 1
            if before.any():
                raise _twice(int(some[int(before.argmax())]))
            np.bitwise_or.at(bits, some >> 3, np.left_shift(1, some & 7).astype(np.uint8))
        if int(np.bitwise_count(bits).sum(dtype=np.int64)) != count:  # within one window
            raise _twice(_first_twice(ids))
        missing = ~bits
        if end % 8:
            missing[-1] &= (1 << end % 8) - 1
        self.dead = Dead(end, missing if count < end else None)

    def rows(self, ids: IntArray) -> IntArray:
        """The rows of ids ``(m,)``."""
        return ids


def _first_twice(ids: Ids) -> int:
    """One that is twice among those that are looked at together."""
    for some in ids():
        ordered = np.sort(some)
        same = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(same):
            return int(same[0])
    return -1


class Listed:
    """Any ids: their rows are numbered in the order of the ids.

    They are put in order in a file without a name, which is mapped: in memory are some at a time.

    Attributes
    ----------
    ids : (count,) int64
        Ascending.

    Raises
    ------
    DataError
        An id is there twice.
    """

    def __init__(self, ids: Ids, count: int, directory: Path) -> None:
        with translated(directory, "writing into"), tempfile.TemporaryFile(dir=directory) as file:
            disk.allocate(file.fileno(), directory, 8 * count)
            self.ids: IntArray = np.memmap(file, np.int64, shape=(count,))
        at = 0
        for some in ids():
            self.ids[at : at + len(some)] = some
            at += len(some)
        self.ids.sort()  # in its place
        for first in range(0, count, _WINDOW):
            window = self.ids[max(first - 1, 0) : first + _WINDOW]
            same = window[1:][window[1:] == window[:-1]]
            if len(same):
                raise _twice(int(same[0]))

    def rows(self, ids: IntArray) -> IntArray:
        """The rows of ids ``(m,)``."""
        return np.searchsorted(self.ids, ids)
