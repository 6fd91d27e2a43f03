"""Rows that were deleted, or replaced by a newer one: kept as a roaring bitmap, asked as a bit a row.

Lemire et al., "Roaring bitmaps: implementation of an optimized software library" (2018); the file is what
CRoaring calls the portable format of 64-bit bitmaps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from ooc import disk
from ooc.engine import Selector
from ooc.errors import IndexDirError, ResourceError
from ooc.index.roaring import decode
from ooc.types import BytesArray, IntArray

__all__ = ["Dead", "mark"]

#: Rows that are unpacked at a time: a multiple of 8.
_WINDOW = 1 << 20


class Dead:
    """A set of row numbers below ``end``. Never changes; safe from several threads.

    Attributes
    ----------
    end : int
        Rows of the index, dead or not.
    count : int
        How many of them are dead.
    bits : (ceil(end / 8),) uint8
        Row ``i`` is bit ``i % 8``, from the lowest, of byte ``i // 8``; empty where no row is dead.
    """

    def __init__(self, end: int, bits: BytesArray | None = None) -> None:
        self.end = end
        self.bits: BytesArray = np.empty(0, np.uint8) if bits is None else bits
        self.count = sum(
            int(np.bitwise_count(self.bits[at : at + _WINDOW]).sum(dtype=np.int64))
            for at in range(0, len(self.bits), _WINDOW)
        )

    @classmethod
    def read(cls, path: Path, digest: str, end: int) -> Self:
        """What ``to_bytes`` gave, of an index that has ``end`` rows now.

        Raises
        ------
        IndexDirError
            The file is missing, or not what the record says of it.
        """
        try:
            data = disk.read_bytes(path)
        except OSError as error:
            ResourceError.raise_if_lacking(error, f"reading {path}")
            raise IndexDirError(
                f"{path} cannot be read: {error.strerror}",
                kind="index-damaged",
                hint="Copy the whole directory anew.",
            ) from error
        damaged = IndexDirError(
            f"{path} is not what the record says: it was damaged or changed",
            kind="index-damaged",
            hint="Copy the directory anew, or go back to a generation before it (`ooc rollback`).",
        )
        if xxhash.xxh3_128_hexdigest(data) != digest:
            raise damaged
        try:
            return cls(end, decode(data, end))
        except ValueError as error:
            raise damaged from error

    def to_bytes(self) -> tuple[bytes, str]:
        """The file, and its XXH3-128."""
        rows = _bitmap()()
        for some in self.windows():
            rows |= _bitmap()(some.astype(np.uint64))
        data: bytes = rows.serialize()
        return data, xxhash.xxh3_128_hexdigest(data)

    def windows(self) -> Iterator[IntArray]:
        """The dead rows, ascending, some at a time."""
        for at in range(0, 8 * len(self.bits), _WINDOW):
            some = self.bits[at >> 3 : (at + _WINDOW) >> 3]
            yield np.flatnonzero(np.unpackbits(some, bitorder="little")) + at

    def contains(self, rows: IntArray) -> NDArray[np.bool_]:
        """Whether each of ``rows`` (int64, any shape, from 0 to ``end`` - 1) is dead."""
        if not self.count:
            return np.zeros(rows.shape, bool)
        found: NDArray[np.bool_] = ((self.bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1).view(bool)
        return found

    def joined(self, rows: IntArray, end: int | None = None) -> Self:
        """These and more ``rows`` (any order), of an index that has ``end`` rows (default: as before)."""
        end = self.end if end is None else end
        bits = np.zeros(-(-end // 8), np.uint8)
        bits[: len(self.bits)] = self.bits
        mark(bits, rows)
        return type(self)(end, bits)

    def between(self, first: int, stop: int) -> int:
        """How many of the rows from ``first`` to ``stop`` are dead."""
        if not self.count or first >= stop:
            return 0
        begin, last = first >> 3, (stop + 7) >> 3
        some = np.unpackbits(self.bits[begin:last], bitorder="little")
        return int(np.count_nonzero(some[first - 8 * begin : stop - 8 * begin]))

    @functools.cached_property
    def selector(self) -> Selector:
        """All other rows, for the engine's scan."""
        return Selector.of_other_bits(self.bits)


def mark(bits: BytesArray, rows: IntArray) -> None:
    """Set the bits of ``rows`` (any order, all within), laid out as ``Dead.bits``; in place."""
    # Several rows may share a byte.
    np.bitwise_or.at(bits, rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8))


def _bitmap() -> Any:
    from pyroaring import BitMap64

    return BitMap64
