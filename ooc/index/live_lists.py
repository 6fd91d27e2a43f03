"""The lists of a generation read front to back: those of all segments as one, without the dead rows.

What compaction and export go through: each file is read once, in the order of its bytes, a span of lists at
a time, and is seen to be what its checksums say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ooc.index.dead import Dead
from ooc.index.layout import SegmentLayout
from ooc.index.lists import ID_BYTES, ListsReader, list_groups
from ooc.index.segment import read_checksums
from ooc.stores.mapped import gather_bytes
from ooc.types import BytesArray, IntArray

__all__ = ["Group", "LiveLists"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Lists ``first`` to ``last`` (exclusive), one after the other.

    Attributes
    ----------
    first, last : int
    codes, rows : (m, code_size) uint8, (m,) int64
        Entries; rows ascend within a list.
    sizes : (last - first,) int64
        Entries of each list.
    """

    first: int
    last: int
    codes: BytesArray
    rows: IntArray
    sizes: IntArray

    def numbers(self) -> IntArray:
        """The list of each entry ``(m,)``."""
        return np.repeat(np.arange(self.first, self.last), self.sizes)


class LiveLists:
    """Reads the lists of segments. Close it.

    Parameters
    ----------
    layouts : sequence of SegmentLayout
        In the order of their rows.
    in_segments : sequence of (nlist,) int64
        Entries of each list in each segment.
    code_size : int
    dead : Dead, optional
        Rows that are passed over.
    """

    def __init__(
        self,
        layouts: Sequence[SegmentLayout],
        in_segments: Sequence[IntArray],
        code_size: int,
        dead: Dead | None,
    ) -> None:
        self._code_size, self._dead = code_size, dead
        self._total: IntArray = np.sum(in_segments, axis=0, dtype=np.int64)
        self._readers: list[ListsReader] = []
        try:
            for one, sizes in zip(layouts, in_segments, strict=True):
                if sizes.any():
                    expected = read_checksums(one.checksums)[one.lists.name]
                    self._readers.append(ListsReader(one.lists, sizes, code_size, expected))
        except BaseException:
            self.close()
            raise

    def groups(self, buffer_bytes: int) -> Iterator[Group]:
        """All lists, once: of each group at most so many bytes are read, one list at the least.

        Raises
        ------
        IndexDirError
            After the last group: a file is not what its checksums say.
        """
        for first, last in list_groups(self._total, self._code_size + ID_BYTES, buffer_bytes):
            yield self._read(first, last)
        for reader in self._readers:
            reader.finish()

    def _read(self, first: int, last: int) -> Group:
        data = np.concatenate([np.empty(0, np.uint8), *(one.read(first, last) for one in self._readers)])
        # Entries of each list in each file, and where they begin in what was read: one file after the other.
        each = [one.sizes[first:last] for one in self._readers]
        counts = np.array(each, np.int64).reshape(-1, last - first)
        begins = (np.cumsum(counts) - counts.reshape(-1)) * (self._code_size + ID_BYTES)
        # Of each list what all files have of it; of that first the codes, then the ids.
        sizes, size = counts.sum(axis=0), counts.T.reshape(-1)
        part = np.repeat(np.arange(len(size)), size)
        place = np.arange(len(part)) - (np.cumsum(size) - size)[part]
        begin = begins.reshape(counts.shape).T.reshape(-1)[part]
        codes_at = begin + place * self._code_size
        ids_at = begin + size[part] * self._code_size + place * ID_BYTES
        rows = gather_bytes(data, ids_at, ID_BYTES).view(np.int64)
        if self._dead is not None and len(rows):
            if int(rows.min()) < 0 or int(rows.max()) >= self._dead.end:
                raise self._readers[0].damaged(f"row {rows.max()} is in it, or in lists beside it")
            alive = ~self._dead.contains(rows)
            ends = np.concatenate(([0], np.cumsum(alive)))[np.concatenate(([0], np.cumsum(sizes)))]
            codes_at, rows, sizes = codes_at[alive], rows[alive], np.diff(ends)
        codes = gather_bytes(data, codes_at, self._code_size).reshape(-1, self._code_size)
        return Group(first=first, last=last, codes=codes, rows=rows, sizes=sizes)

    def close(self) -> None:
        """Close the files; may be called twice."""
        for reader in self._readers:
            reader.close()
