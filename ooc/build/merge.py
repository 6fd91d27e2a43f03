"""Merging: all shards into one file of lists, as a streaming copy.

Every shard has its lists in the same order, so the merge reads each shard front to back and writes
the segment front to back, a span of lists at a time through a bounded buffer. Where everything goes
follows from the sizes in the shards' records. Shards are taken in the order of their rows, so ids
ascend within each list.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ooc.build.copies import copy_error
from ooc.build.fill import Shard
from ooc.build.fit import assignment_error
from ooc.build.plan import Plan
from ooc.build.sizes import COPY_BYTES
from ooc.durable import (
    DurableFile,
    block_checksums,
    make_directory,
    read_json,
    remove_file,
    write_array,
    write_bytes,
    write_sealed,
)
from ooc.engine import Codec
from ooc.errors import IndexDirError, Stopped
from ooc.events import Observer, Stage, ignore, stage
from ooc.index.arrays import rows_head
from ooc.index.layout import SegmentLayout
from ooc.index.lists import ID_BYTES, ListsReader, evenness, list_groups
from ooc.types import BytesArray, IntArray

__all__ = ["is_done", "merge", "write_record"]


def merge(
    shards: list[Shard],
    plan: Plan,
    codec: Codec,
    segment: SegmentLayout,
    *,
    first_row: int = 0,
    ids: IntArray | None = None,
    keys: Mapping[str, Any] | None = None,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> None:
    """Write the segment: the lists of all shards, the header that faiss opens them with, the record.

    Does nothing where the record is there already.

    Parameters
    ----------
    shards : list of Shard
        In the order of their rows.
    plan : Plan
        Whether rows were copied on the way.
    codec : Codec
        The template that the shards were filled with.
    segment : SegmentLayout
        Where to; files appear when they are whole, the record last.
    first_row : int
        The number of the first row of the shards. Of rows that come to an index that is there sizes of lists
        are written in place of a header, which would repeat all centroids.
    ids : (n,) int64, optional
        The id of each row, ascending; by default they are numbered on.
    keys : mapping, optional
        What is to be said of keys that were written there (``ooc.build.keys.kept_keys``).
    observer : callable
        Is told events; bytes are counted.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.

    Raises
    ------
    IndexDirError
        When a shard is not what its record says; its record is removed, so that the next run fills
        it again.
    """
    if ids is None and is_done(segment, plan, first_row):
        return
    total = sum(shard.entries for shard in shards) * (codec.code_size + ID_BYTES)
    with stage(observer, "merge", total, unit="bytes") as at:
        sizes, checksums = _merge_lists(shards, codec, segment, first_row, at, stop)
        if ids is not None:
            checksums[segment.ids.name] = write_array(segment.ids, ids)
        if plan.copy_vectors:
            checksums[segment.vectors.name] = [c for shard in shards for c in shard.row_checksums]
        if plan.copy_dtype == "int8":
            checksums[segment.scales.name] = [c for shard in shards for c in shard.scale_checksums]
        if keys is not None:
            checksums |= keys["checksums"]
        keyed = {} if keys is None else {"keys": {name: keys[name] for name in ("kind", "longest")}}
        loss = {} if plan.copy_dtype == "store" else {"copy_error": copy_error(shards)}
        write_record(
            segment,
            checksums,
            plan=plan.digest,
            rows=sum(shard.rows for shard in shards),
            entries=sum(shard.entries for shard in shards),
            skipped_rows=sum(shard.skipped for shard in shards),
            zero_rows=sum(shard.zeros for shard in shards),
            **({"first_row": first_row} if first_row else {}),
            **loss,
            **keyed,
            **assignment_error(shards),
        )
        at.figures.update(bytes=total, **evenness(sizes))


def is_done(segment: SegmentLayout, plan: Plan, first_row: int = 0) -> bool:
    """Whether a segment is there, whole, of this plan, and numbered from that row."""
    if not segment.record.exists():
        return False
    record = read_json(segment.record, what="the segment's record")
    return (record.get("plan"), record.get("first_row", 0)) == (plan.digest, first_row)


def _merge_lists(
    shards: list[Shard],
    codec: Codec,
    segment: SegmentLayout,
    first_row: int,
    at: Stage,
    stop: threading.Event | None,
) -> tuple[IntArray, dict[str, list[str]]]:
    """The sizes of the merged lists, and checksums by file name."""
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
            Stopped.raise_if(stop)
            file.write(_interleave(readers, sizes, first, last, codec.code_size, first_row))
            at.tell(file.written)
        for reader in readers:
            try:
                reader.finish()
            except IndexDirError as error:
                remove_file(reader.path.with_suffix(".json"))
                error.hint = "Run the build again: it fills this shard anew."
                raise
        checksums = {segment.lists.name: file.checksums()}
    if first_row:
        checksums[segment.sizes.name] = write_array(segment.sizes, sizes)
    else:
        checksums[segment.header.name] = codec.save_header(segment.header, sizes)
    return sizes, checksums


def write_record(segment: SegmentLayout, checksums: dict[str, list[str]], **said: Any) -> None:
    """Write the checksums of a segment's files and then its record, which says so much more."""
    lines = [
        f"{digest}  {name}  {number}\n"
        for name, digests in checksums.items()
        for number, digest in enumerate(digests)
    ]
    write_bytes(segment.checksums, "".join(lines).encode())
    names = [*checksums, segment.checksums.name]
    sizes = {name: (segment.root / name).stat().st_size for name in names}
    # Checksums of rows begin after the header, so it has one here; and so has the file of checksums.
    rows = [path for path in (segment.vectors, segment.scales) if path.name in checksums]
    heads = {path.name: rows_head(path) for path in rows}
    heads[segment.checksums.name] = block_checksums(segment.checksums)[0]
    write_sealed(segment.record, {**said, "bytes": sizes, "heads": heads})


def _interleave(
    readers: list[ListsReader], sizes: IntArray, first: int, last: int, code_size: int, first_row: int
) -> BytesArray:
    """The bytes of lists ``first`` to ``last`` of all shards in the order of the segment."""
    if len(readers) == 1 and not first_row:
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
            ids = piece[middle:end]
            if first_row:
                ids = (ids.copy().view(np.int64) + first_row).view(np.uint8)
            out[to : to + count * ID_BYTES] = ids
            at = end
        codes_at += counts * code_size
        ids_at += counts * ID_BYTES
    return out
