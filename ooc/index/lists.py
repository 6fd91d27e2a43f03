"""Files of inverted lists: the one format of shards and segments.

List after list from offset 0, each as all its codes (``size * code_size`` bytes) and then all its
ids (``size`` int64), ids ascending: the layout of faiss's ``OnDiskInvertedLists``. A shard is such a
file over a range of rows, a segment the merge of them; both are written front to back and read the
same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ooc import disk
from ooc.durable import BlockHash, DurableFile, translated
from ooc.engine import ID_BYTES
from ooc.errors import IndexDirError
from ooc.types import AnyArray, BytesArray, IntArray

__all__ = ["ID_BYTES", "ListsReader", "evenness", "list_groups", "write_sorted"]


def list_groups(sizes: IntArray, entry_bytes: int, buffer_bytes: int) -> Iterator[tuple[int, int]]:
    """Spans ``[first, last)`` of lists of at most ``buffer_bytes`` together, one list at the least."""
    ends = np.cumsum(sizes) * entry_bytes
    first = 0
    while first < len(sizes):
        begun = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, begun + buffer_bytes, side="right")), first + 1)
        yield first, last
        first = last


def write_sorted(
    file: DurableFile, codes: BytesArray, list_nos: AnyArray, ids: IntArray, nlist: int, buffer_bytes: int
) -> IntArray:
    """Write rows as lists; the sizes ``(nlist,)``.

    Parameters
    ----------
    file : DurableFile
        Where to; nothing was written to it yet.
    codes, list_nos, ids : (m, code_size) uint8, (m,) integer, (m,) int64
        The rows, ids ascending. Rows keep their order within a list.
    nlist, buffer_bytes : int
        Lists in all, and how many bytes are put in order at a time.
    """
    sizes = np.bincount(list_nos, minlength=nlist).astype(np.int64)
    order = np.argsort(list_nos, kind="stable")
    entry = codes.shape[1] + ID_BYTES
    at = 0
    for first, last in list_groups(sizes, entry, buffer_bytes):
        span = sizes[first:last]
        rows = order[at : at + int(span.sum())]
        at += len(rows)
        file.write(interleave(codes[rows], ids[rows], span))
    return sizes


def interleave(codes: BytesArray, ids: IntArray, sizes: IntArray) -> BytesArray:
    """Codes and ids of consecutive lists in the order of the file."""
    code_size = codes.shape[1]
    out = np.empty(len(codes) * (code_size + ID_BYTES), np.uint8)
    flat, id_bytes = codes.reshape(-1), ids.view(np.uint8)
    begin = row = 0
    for size in sizes.tolist():
        middle = begin + size * code_size
        end = middle + size * ID_BYTES
        out[begin:middle] = flat[row * code_size : (row + size) * code_size]
        out[middle:end] = id_bytes[row * ID_BYTES : (row + size) * ID_BYTES]
        begin, row = end, row + size
    return out


class ListsReader:
    """A file of lists read front to back, a span of lists at a time, checked on the way.

    Parameters
    ----------
    path : Path
        The file.
    sizes : (nlist,) int64
        Rows of each list.
    code_size : int
        Bytes of a code.
    checksums : list of str
        What ``DurableFile.checksums`` gave when it was written.
    """

    def __init__(self, path: Path, sizes: IntArray, code_size: int, checksums: list[str]) -> None:
        self.path = path
        self.sizes = sizes
        self._entry = code_size + ID_BYTES
        self._code_size = code_size
        with translated(path, "reading"):
            self._file = path.open("rb", buffering=0)
        self._expected = checksums
        self._hash = BlockHash()

    def read(self, first: int, last: int) -> BytesArray:
        """The bytes of lists ``first`` to ``last``; spans must follow one another."""
        out = np.empty(int(self.sizes[first:last].sum()) * self._entry, np.uint8)
        view = out.data
        while len(view):
            with translated(self.path, "reading"):
                got = disk.step("read", self.path, self._file.readinto, view)
            if not got:
                raise self.damaged("it ends early")
            self._hash.update(view[:got])
            view = view[got:]
        return out

    def finish(self) -> None:
        """See that what was read is what was written.

        Raises
        ------
        IndexDirError
            When a checksum differs.
        """
        if self._hash.digests() != self._expected:
            raise self.damaged("its checksum differs")

    def damaged(self, why: str) -> IndexDirError:
        return IndexDirError(f"the file of lists {self.path} is damaged: {why}", kind="lists-damaged")

    def close(self) -> None:
        self._file.close()


def evenness(sizes: IntArray) -> dict[str, float | int]:
    """How even lists are: their mean size, and the mean weighted by size, which a query meets."""
    total = int(sizes.sum())
    return {
        "mean": total / len(sizes),
        "weighted_mean": float((sizes.astype(np.float64) ** 2).sum() / max(total, 1)),
        "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
    }
