"""The full check of files: every checksum, and every row number in the lists."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash

from ooc.check.findings import ANEW, MENDED, Findings
from ooc.check.segments import ROW_BLOCK, Checked
from ooc.durable import CHECK_BYTES
from ooc.errors import IndexDirError, Stopped
from ooc.index.arrays import ROWS_BEGIN
from ooc.index.dead import Dead
from ooc.index.lists import ID_BYTES
from ooc.mapping import MappedFile, drop_file
from ooc.types import BytesArray, IntArray

__all__ = [
    "Sample",
    "Told",
    "dead_entries",
    "file_bytes",
    "see_blocks",
    "see_ids",
    "see_lists",
    "see_segment_blocks",
]

#: Read at a time.
_READ_BYTES = 1 << 20
#: Ids looked at together, and lists whose ids are asked for together.
_IDS, _LISTS = 1 << 17, 256

#: Is told how many more bytes were looked at.
Told = Callable[[int], None]


def file_bytes(path: Path) -> int:
    """Of a file; 0 where it is not there."""
    return path.stat().st_size if path.is_file() else 0


def see_blocks(
    path: Path,
    said: list[str],
    findings: Findings,
    told: Told,
    stop: threading.Event | None,
    do: str = MENDED,
    *,
    begin: int = 0,
    block_bytes: int = CHECK_BYTES,
) -> None:
    """Compare the checksum of each block of a file, from byte ``begin`` on, with what it was when written."""
    if not path.is_file():
        return
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            for number, expected in enumerate(said):
                digest, left = xxhash.xxh3_128(), block_bytes
                while left and (piece := file.read(min(left, _READ_BYTES))):
                    digest.update(piece)
                    left -= len(piece)
                    told(len(piece))
                    Stopped.raise_if(stop)
                findings.count(blocks=1, bytes=block_bytes - left)
                if digest.hexdigest() != expected:
                    findings.add(path, "checksum", "it is not what was written", do, block=number)
        drop_file(path)
    except OSError as error:
        with findings.of(path, "checksum", do):
            raise IndexDirError(f"{path} cannot be read: {error.strerror}", kind="index-damaged") from error


def see_segment_blocks(
    checked: Checked, findings: Findings, told: Told, stop: threading.Event | None, rows_do: str
) -> None:
    """All checksums of a segment."""
    layout = checked.layout
    for path in checked.files:
        said = checked.checksums.get(path.name)
        if path == layout.checksums or said is None:
            continue
        if path not in (layout.vectors, layout.scales):
            do = ANEW if path == layout.ids else MENDED
            see_blocks(path, said, findings, told, stop, do)
            continue
        rows = 0 if checked.uses.part is None else checked.uses.part.rows
        row_bytes, rest = divmod(file_bytes(path) - ROWS_BEGIN, rows) if rows else (0, 1)
        if rest or row_bytes < 1:
            continue  # its size was found to be wrong
        wide = ROW_BLOCK * row_bytes
        see_blocks(path, said, findings, told, stop, rows_do, begin=ROWS_BEGIN, block_bytes=wide)


def see_lists(
    checked: Checked,
    dead: Dead,
    lists_per_row: int,
    memory_bytes: int,
    findings: Findings,
    told: Told,
    stop: threading.Event | None,
    sample: Sample | None = None,
) -> None:
    """Row numbers: within the segment's, ascending in each list, each as often as it must be.

    Rows are counted in windows of as many as the memory allows, and the lists gone through for each.
    """
    entry, sizes, offsets = checked.uses.entry, checked.sizes, checked.offsets
    path = checked.layout.lists
    if entry is None or sizes is None or offsets is None or not sizes.any():
        return
    window = max(1 << 20, memory_bytes // 4)
    rows = dead_rows = wrong = 0
    file = MappedFile(path)
    try:
        for first in range(entry.first_row, entry.stop_row, window):
            stop_row = min(first + window, entry.stop_row)
            counts = np.zeros(stop_row - first, np.uint8)
            again = first > entry.first_row
            for number, place, ids in _ids(file, sizes, offsets, checked.code_size, told, stop):
                if not again:
                    _see_order(path, number, ids, entry.first_row, entry.stop_row, findings)
                    findings.count(entries=len(ids))
                    if sample is not None:
                        sample.take(file, number, int(offsets[number]) + place * checked.code_size, ids)
                inside = ids[(ids >= first) & (ids < stop_row)] - first
                # Within a list each is there once, or it was found not to ascend.
                counts[inside] += np.uint8(1)
            there = np.flatnonzero(counts)
            rows += len(there)
            wrong += int((counts[there] != lists_per_row).sum())
            dead_rows += int(dead.contains(there + first).sum()) if dead.count else 0
    finally:
        file.close()
    drop_file(path)
    if wrong:
        often = "once" if lists_per_row == 1 else "twice"
        findings.add(path, "ids", f"{wrong} rows are not in it {often}", MENDED)
    if rows != entry.rows:
        findings.add(path, "ids", f"{rows} rows are in it, and it should have {entry.rows}", MENDED)
    elif dead_rows != entry.dead:
        what = f"{dead_rows} of its rows are dead, and the record of the generation says {entry.dead}"
        findings.add(path, "ids", what, MENDED)


def dead_entries(path: Path, sizes: IntArray, code_size: int, dead: Dead) -> int:
    """Entries of rows that are dead, in lists that lie one after the other."""
    if not sizes.any():
        return 0
    offsets = (np.cumsum(sizes) - sizes) * (code_size + ID_BYTES)
    file = MappedFile(path)
    try:
        ids = (ids for _, _, ids in _ids(file, sizes, offsets, code_size, lambda _: None, None))
        return sum(int(dead.contains(some).sum()) for some in ids)
    finally:
        file.close()


def _ids(
    file: MappedFile,
    sizes: IntArray,
    offsets: IntArray,
    code_size: int,
    told: Told,
    stop: threading.Event | None,
) -> Iterator[tuple[int, int, IntArray]]:
    """Of each list, in pieces: its number, the place in it of the first, and ids."""
    for begin in range(0, len(sizes), _LISTS):
        Stopped.raise_if(stop)
        some = np.arange(begin, min(begin + _LISTS, len(sizes)))
        ids_at = offsets[some] + sizes[some] * code_size
        file.will_need_spans(ids_at, ids_at + sizes[some] * ID_BYTES)
        for number in some[sizes[some] > 0].tolist():
            count, at = int(sizes[number]), int(ids_at[number - begin])
            for place in range(0, count, _IDS):
                Stopped.raise_if(stop)
                here = min(_IDS, count - place)
                data = file.bytes[at + place * ID_BYTES : at + (place + here) * ID_BYTES]
                # A copy: ids need not lie at multiples of eight.
                yield number, place, np.frombuffer(data.tobytes(), np.int64)
                told(here * ID_BYTES)


def _see_order(path: Path, number: int, ids: IntArray, first: int, stop: int, findings: Findings) -> None:
    if int(ids.min()) < first or int(ids.max()) >= stop:
        bad = int(ids[(ids < first) | (ids >= stop)][0])
        findings.add(path, "ids", f"list {number} has row {bad}, not from {first} to {stop - 1}", MENDED)
    elif (np.diff(ids) <= 0).any():
        findings.add(path, "ids", f"the rows of list {number} do not ascend", MENDED)


def see_ids(ids: IntArray, path: Path, end: int, findings: Findings) -> None:
    """The ids of rows that were given ids of others: ascending, and none that was never given."""
    before = -1
    for at in range(0, len(ids), _IDS):
        some = np.asarray(ids[at : at + _IDS])
        if int(some[0]) <= before or (np.diff(some) <= 0).any() or int(some[-1]) >= end:
            findings.add(path, "ids", "its ids do not ascend, or were never given", ANEW)
            return
        before = int(some[-1])


class Sample:
    """Entries of the lists whose rows are in some blocks: to be compared with codes made anew.

    Parameters
    ----------
    starts : (b,) int64
        The first rows of the blocks, ascending.
    stops : (b,) int64
        One more than their last.
    code_size : int
    """

    def __init__(self, starts: IntArray, stops: IntArray, code_size: int) -> None:
        self._starts, self._stops, self._code_size = starts, stops, code_size
        self._kept: list[tuple[IntArray, IntArray, BytesArray]] = []

    def take(self, file: MappedFile, number: int, codes_at: int, ids: IntArray) -> None:
        """Keep those of the ids of a list that are in the blocks; their codes begin at byte ``codes_at``."""
        block = np.searchsorted(self._starts, ids, side="right") - 1
        inside = np.flatnonzero((block >= 0) & (ids < self._stops[np.maximum(block, 0)]))
        if len(inside):
            at = codes_at + inside * self._code_size
            codes = file.bytes[at[:, None] + np.arange(self._code_size)]
            self._kept.append((ids[inside], np.full(len(inside), number, np.int64), codes))

    def entries(self) -> tuple[IntArray, IntArray, BytesArray]:
        """Rows ``(m,)``, ascending, their lists ``(m,)``, and their codes ``(m, code_size)``."""
        if not self._kept:
            none = np.empty(0, np.int64)
            return none, none, np.empty((0, self._code_size), np.uint8)
        rows, lists, codes = (np.concatenate(parts) for parts in zip(*self._kept, strict=True))
        order = np.lexsort((lists, rows))
        return rows[order], lists[order], codes[order]
