"""Merging: all shards into one file of lists, as a streaming copy.

Every shard has its lists in the same order, so the merge reads each shard front to back and writes
the segment front to back, a span of lists at a time through a bounded buffer. Where everything goes
follows from the sizes in the shards' records. Shards are taken in the order of their rows, so ids
ascend within each list.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ooc.build.fill import Shard
from ooc.build.plan import COPY_BYTES
from ooc.durable import DurableFile, make_directory
from ooc.engine import Codec
from ooc.errors import IndexDirError
from ooc.index.layout import SegmentLayout
from ooc.index.lists import ID_BYTES, ListsReader, list_groups
from ooc.types import BytesArray, IntArray

__all__ = ["Merged", "merge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Rows of each list, and checksums by file name."""

    sizes: IntArray
    checksums: dict[str, list[str]]


def merge(
    shards: list[Shard],
    codec: Codec,
    segment: SegmentLayout,
    *,
    progress: Callable[[int], None],
    check: Callable[[], None],
) -> Merged:
    """Write the lists of all shards, and the header that faiss opens them with.

    Parameters
    ----------
    shards : list of Shard
        In the order of their rows.
    codec : Codec
        The template they were filled with.
    segment : SegmentLayout
        Where to; files appear when they are whole.
    progress : callable
        Is told the bytes written so far.
    check : callable
        Called between spans; raises to stop.

    Raises
    ------
    IndexDirError
        When a shard is not what its record says; its record is removed, so that the next run fills
        it again.
    """
    make_directory(segment.root)
    sizes: IntArray = np.stack([shard.sizes for shard in shards]).sum(axis=0)
    entry = codec.code_size + ID_BYTES
    with contextlib.ExitStack() as stack:
        readers = []
        for shard in shards:
            reader = ListsReader(shard.path, shard.sizes, codec.code_size, shard.checksums)
            stack.callback(reader.close)
            readers.append(reader)
        file = stack.enter_context(DurableFile(segment.lists, size=int(sizes.sum()) * entry))
        for first, last in list_groups(sizes, entry, COPY_BYTES):
            check()
            file.write(_interleave(readers, sizes, first, last, codec.code_size))
            progress(file.written)
        for reader in readers:
            try:
                reader.finish()
            except IndexDirError as error:
                reader.path.with_suffix(".json").unlink()
                error.hint = "Run the build again: it fills this shard anew."
                raise
        checksums = {segment.lists.name: file.checksums()}
    checksums[segment.header.name] = codec.save_header(segment.header, sizes)
    return Merged(sizes=sizes, checksums=checksums)


def _interleave(
    readers: list[ListsReader], sizes: IntArray, first: int, last: int, code_size: int
) -> BytesArray:
    """The bytes of lists ``first`` to ``last`` of all shards in the order of the segment."""
    if len(readers) == 1:
        return readers[0].read(first, last)
    span = sizes[first:last]
    out = np.empty(int(span.sum()) * (code_size + ID_BYTES), np.uint8)
    # Where the codes and the ids of the next shard go, for each list.
    begins = np.concatenate(([0], np.cumsum(span)[:-1])) * (code_size + ID_BYTES)
    codes_at = begins.copy()
    ids_at = begins + span * code_size
    for reader in readers:
        piece = reader.read(first, last)
        counts = reader.sizes[first:last]
        at = 0
        for i in np.flatnonzero(counts).tolist():
            count = int(counts[i])
            middle, end = at + count * code_size, at + count * (code_size + ID_BYTES)
            to = int(codes_at[i])
            out[to : to + count * code_size] = piece[at:middle]
            to = int(ids_at[i])
            out[to : to + count * ID_BYTES] = piece[middle:end]
            at = end
        codes_at += counts * code_size
        ids_at += counts * ID_BYTES
    return out
