"""Of a row that is in two lists, which entry stays: the one in the list that is nearer to it.

Nothing says which of its lists came first. So it is asked of the codes how far the row is from the centroid
of each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ooc import disk
from ooc.durable import translated
from ooc.engine import Codec
from ooc.index.live_lists import Group
from ooc.types import BytesArray, FloatArray, IntArray

__all__ = ["FirstEntries"]


class FirstEntries:
    """Which of two entries of each row stays.

    A bit or two a row are in memory. How near the first entry was is in a file without a name, mapped.

    Parameters
    ----------
    groups : iterable of Group
        All lists, in the order of their numbers.
    codec : Codec
    row_end : int
        Rows of the index.
    directory : Path
        Where the file is made.
    """

    def __init__(self, groups: Iterable[Group], codec: Codec, row_end: int, directory: Path) -> None:
        self._second = _Bits(row_end)  # rows whose second entry is the nearer one
        self._seen = _Bits(row_end)
        with translated(directory, "writing into"), tempfile.TemporaryFile(dir=directory) as file:
            # A full disk says so now, not where a page of the mapping has no place.
            disk.allocate(file.fileno(), directory, 4 * row_end)
            near: FloatArray = np.memmap(file, np.float32, shape=(row_end,))
            for group in groups:
                for rows, codes, number in _lists(group):
                    far = codec.far(codes, number)
                    again = self._seen.has(rows)
                    near[rows[~again]] = far[~again]
                    self._second.add(rows[again][far[again] < near[rows[again]]])
                    self._seen.add(rows)
        self.begin()

    def begin(self) -> None:
        """Lists are gone through from the first one on."""
        self._seen = _Bits(self._seen.end)

    def stay(self, rows: IntArray, sizes: IntArray) -> NDArray[np.bool_]:
        """Which entries of lists stay, ``(m,)``: of rows ``(m,)``, list after list of those ``sizes``."""
        out = np.empty(len(rows), bool)
        at = 0
        for size in sizes.tolist():
            some = rows[at : at + size]
            out[at : at + size] = self._seen.has(some) == self._second.has(some)
            self._seen.add(some)
            at += size
        return out


def _lists(group: Group) -> Iterable[tuple[IntArray, BytesArray, int]]:
    ends = np.cumsum(group.sizes).tolist()
    for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False), start=group.first):
        if begin < end:
            yield group.rows[begin:end], group.codes[begin:end], number


class _Bits:
    """A set of numbers below ``end``."""

    def __init__(self, end: int) -> None:
        self.end = end
        self._bits = np.zeros(-(-end // 8), np.uint8)

    def has(self, numbers: IntArray) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = ((self._bits[numbers >> 3] >> (numbers & 7).astype(np.uint8)) & 1).view(
            bool
        )
        return found

    def add(self, numbers: IntArray) -> None:
        np.bitwise_or.at(self._bits, numbers >> 3, np.left_shift(1, numbers & 7).astype(np.uint8))
