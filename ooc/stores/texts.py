"""Many strings packed as their UTF-8 bytes, in place of as many Python objects."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ooc.types import BytesArray, IntArray

__all__ = ["Texts"]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Strings, one after another. Never changes.

    Attributes
    ----------
    offsets : (m + 1,) int64
        String ``i`` is ``data[offsets[i]:offsets[i + 1]]``; the first offset is 0.
    data : (offsets[m],) uint8
        Valid UTF-8, string by string.
    """

    offsets: IntArray
    data: BytesArray

    @classmethod
    def of(cls, values: Sequence[bytes]) -> Texts:
        """From the UTF-8 bytes of each."""
        ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), dtype=np.int64)
        return cls(np.concatenate(([0], ends)), np.frombuffer(b"".join(values), np.uint8))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """The strings of all parts."""
        lengths = np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)])
        data = np.concatenate([np.empty(0, np.uint8), *(part.data for part in parts)])
        return cls(np.concatenate(([0], np.cumsum(lengths))), data)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> IntArray:
        """Bytes of each, ``(m,)``."""
        return np.diff(self.offsets)

    def __getitem__(self, which: slice | IntArray) -> Texts:
        """Some of them: a slice without a step is a view, places ``(k,)`` in any order are copied."""
        if isinstance(which, slice):
            first, stop, _ = which.indices(len(self))
            stop = max(first, stop)
            at = self.offsets[first : stop + 1]
            return Texts(at - at[0], self.data[at[0] : at[-1]])
        return gathered(self.offsets[which], self.offsets[which + 1], self.data)

    def same(self, other: Texts) -> NDArray[np.bool_]:
        """Whether each equals the string of ``other``, of as many, in its place; none may be empty."""
        same: NDArray[np.bool_] = np.asarray(self.lengths == other.lengths)
        at = np.flatnonzero(same)
        if len(at):
            ours, theirs = self[at], other[at]
            same[at] = np.logical_and.reduceat(ours.data == theirs.data, ours.offsets[:-1])
        return same

    def strings(self) -> list[str]:
        """As Python strings."""
        whole, ends = self.data.tobytes(), self.offsets.tolist()
        return [whole[a:b].decode() for a, b in itertools.pairwise(ends)]


def gathered(begins: IntArray, ends: IntArray, data: BytesArray) -> Texts:
    """The strings that lie in ``data`` between bytes ``begins`` and ``ends``, in that order."""
    lengths = ends - begins
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    places = np.repeat(begins - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Texts(offsets, data[places])
