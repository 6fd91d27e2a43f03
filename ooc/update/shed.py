"""Shedding: what a compaction does with the vectors, ids and keys of dead rows that the index keeps itself.

A part of which more than a fifth is dead is written anew without its dead rows, block by block, each seen to
be what its checksum says; a part of which no row lives goes. All later rows get lower numbers, which a
compaction writes into the lists that it copies. Ids stay: those of a part that was written anew are listed.
Rows that are read from a store keep their numbers, as these are their places there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ooc.build.merge import write_record
from ooc.build.sample import npy_header
from ooc.build.sizes import BLOCK_ROWS
from ooc.durable import DurableFile, as_bytes, block_checksums, make_directory, npy_head, remove_tree
from ooc.errors import IndexDirError, Stopped
from ooc.index.dead import Dead, mark
from ooc.index.generation import Origin, Part
from ooc.index.keys import KeyTable, key_files, write_keys
from ooc.index.layout import SegmentLayout
from ooc.index.numbering import IdFiles
from ooc.index.segment import read_checksums, read_record
from ooc.stores.base import Store
from ooc.stores.keys import BLOCK_KEYS, KeyBlock, KeySource
from ooc.stores.npy import open_npy
from ooc.types import AnyArray, IntArray
from ooc.update.publish import Live

__all__ = ["MOST_KEPT", "Renumbered", "Shed", "parts_left", "shed_bytes", "shedding"]

#: A part keeps its dead rows until they are a larger share of it.
MOST_KEPT = 0.2

#: Rows that are looked at together for those that live.
_WINDOW = 1 << 16
#: Rows that are counted together.
_COUNTED = 1 << 23
_WORD = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed:
    """A part that sheds its dead rows.

    Attributes
    ----------
    part : Part
    left : int
        Rows that it has then; 0 where it goes.
    none_lives : bool
        Whether all of its rows are dead.
    """

    part: Part
    left: int
    none_lives: bool


def shedding(before: Live) -> list[Shed]:
    """The parts that shed rows.

    The first part stays, if only with its first row: what the index was built of is known by it. So does
    one with ids of others (an import): which were never given is known by their list. And one whose rows are
    kept rounded, while some live: they are judged by those of their store, whose places are known as long as
    all are there.
    """
    found = []
    for i, part in enumerate(before.generation.parts):
        spans = (
            (at, min(at + _COUNTED, part.stop_row)) for at in range(part.first_row, part.stop_row, _COUNTED)
        )
        dead = sum(before.dead.between(first, stop) for first, stop in spans)
        left = part.rows - dead if i else max(part.rows - dead, 1)
        if part.listed is not None or left == part.rows:
            continue
        if not left or (dead > MOST_KEPT * part.rows and _can_lose_some(before, part)):
            found.append(Shed(part=part, left=left, none_lives=dead == part.rows))
    return found


def _can_lose_some(before: Live, part: Part) -> bool:
    """Whether the rows of a part can be told without their places in its store."""
    if part.own is None:
        return False
    exact = "copy_error" not in read_record(before.layout.segment(part.own))
    return exact or part.picked or not part.origin.uri


def shed_bytes(before: Live, sheds: list[Shed]) -> int:
    """Bytes of vectors that are written anew, about."""
    total = 0
    for one in sheds:
        if one.left:
            record = read_record(before.layout.segment(str(one.part.own)))
            total += record["bytes"]["vectors.npy"] // one.part.rows * one.left
    return total


class Renumbered:
    """The rows of a generation without those that parts shed.

    Attributes
    ----------
    end : int
        One more than the largest new number.
    """

    def __init__(self, before: Live, sheds: list[Shed]) -> None:
        old_end = before.generation.row_end
        bits = np.zeros(-(-(old_end + 1) // _WORD) * (_WORD // 8), np.uint8)
        for one in sheds:
            for rows in _windows(one.part):
                mark(bits, rows[~_stays(before.dead, rows, one)])
        #: A row beyond the last is in it, of which it is asked how many go before.
        self._gone = Dead(old_end + 1, bits)
        self._words = bits.view("<u8")
        counts = np.bitwise_count(self._words).astype(np.int64)
        #: How many go of the rows before each word.
        self._before = np.cumsum(counts) - counts
        self.end = int(self.new(np.array([old_end]))[0])

    def new(self, rows: IntArray) -> IntArray:
        """The new numbers of rows ``(m,)`` that stay."""
        word = rows >> 6
        below = (np.uint64(1) << (rows & 63).astype(np.uint64)) - np.uint64(1)
        numbers: IntArray = rows - self._before[word] - np.bitwise_count(self._words[word] & below)
        return numbers

    def dead(self, dead: Dead) -> Dead:
        """The dead rows that stay, by their new numbers."""
        bits = np.zeros(-(-self.end // 8), np.uint8)
        for rows in dead.windows():
            mark(bits, self.new(rows[~self._gone.contains(rows)]))
        return Dead(self.end, bits)


def parts_left(
    before: Live,
    sheds: list[Shed],
    numbers: Renumbered,
    prefix: str,
    told: Callable[[int], None],
    stop: threading.Event | None,
) -> tuple[list[Part], list[Origin]]:
    """The parts of the next generation, written where they shed rows, and the stores of those that go.

    Parameters
    ----------
    prefix : str
        Segments that are made have names that begin with this.
    told : callable
        Is told how many more bytes of vectors are written.

    Raises
    ------
    IndexDirError
        What is copied is not what its checksum says.
    Stopped
    """
    by_row = {one.part.first_row: one for one in sheds}
    parts, gone = [], []
    for part in before.generation.parts:
        one = by_row.get(part.first_row)
        if one is None:
            parts.append(replace(part, first_row=int(numbers.new(np.array([part.first_row]))[0])))
        elif one.left:
            first_row = parts[-1].stop_row if parts else 0
            parts.append(_written(before, one, first_row, f"{prefix}{_letters(len(parts))}", told, stop))
        elif part.origin.uri:
            gone.append(part.origin)
    return parts, gone


def _letters(number: int) -> str:
    """a to z, then aa, ab, and so on."""
    text = ""
    while number >= 0:
        number, letter = number // 26 - 1, number % 26
        text = chr(ord("a") + letter) + text
    return text


def _windows(part: Part) -> Iterator[IntArray]:
    """The numbers of its rows, some at a time."""
    for first in range(part.first_row, part.stop_row, _WINDOW):
        yield np.arange(first, min(first + _WINDOW, part.stop_row))


def _stays(dead: Dead, rows: IntArray, one: Shed) -> NDArray[np.bool_]:
    """Which of the rows stay of a part."""
    stays = ~dead.contains(rows)
    if one.none_lives and one.left:
        stays |= rows == one.part.first_row
    return stays


def _places(before: Live, one: Shed) -> Iterator[IntArray]:
    """Where the rows that stay are in their part, ascending, some at a time."""
    for rows in _windows(one.part):
        yield rows[_stays(before.dead, rows, one)] - one.part.first_row


def _written(
    before: Live,
    one: Shed,
    first_row: int,
    name: str,
    told: Callable[[int], None],
    stop: threading.Event | None,
) -> Part:
    """Write the rows of a part that stay as a segment of their own; the part that they are."""
    part, layout = one.part, before.layout
    own, place = layout.segment(str(part.own)), layout.segment(name)
    remove_tree(place.root)
    make_directory(place.root)
    try:
        checksums = _vectors(before, one, own, place, told, stop)
        said = {key: value for key, value in read_record(own).items() if key == "copy_error"}
        largest, checksums[place.ids.name] = _ids(before, one, place)
        if part.keyed is not None:
            made = _keys(before, one, layout.segment(part.keyed), place, stop)
            checksums |= made["checksums"]
            said["keys"] = {key: made[key] for key in ("kind", "longest")}
        write_record(place, checksums, rows=0, entries=0, **said)
    except BaseException:
        remove_tree(place.root)
        raise
    return replace(
        part,
        first_row=first_row,
        rows=one.left,
        first_id=None,
        own=name,
        keyed=None if part.keyed is None else name,
        id_stop=largest + 1,
    )


def _vectors(
    before: Live,
    one: Shed,
    own: SegmentLayout,
    place: SegmentLayout,
    told: Callable[[int], None],
    stop: threading.Event | None,
) -> dict[str, list[str]]:
    """Copy the vectors that stay, as they are; checksums of each file."""
    said, checksums = read_checksums(own.checksums), {}
    for path in (own.vectors, own.scales):
        if path == own.scales and not path.exists():
            continue
        digests: list[str] = []
        with contextlib.closing(open_npy(path)) as store:
            size = one.left * store.d * store.dtype.itemsize
            header = npy_header((one.left, store.d), store.dtype)
            with DurableFile(place.root / path.name, size=len(header) + size) as file:
                file.write(header)
                expected = said.get(path.name, [])
                for block in _blocks(_vectors_that_stay(before, one, path, store, expected, stop)):
                    file.write(block)
                    digests.append(xxhash.xxh3_128_hexdigest(as_bytes(block)))
                    told(block.nbytes)
        checksums[path.name] = digests
    return checksums


def _vectors_that_stay(
    before: Live,
    one: Shed,
    path: Path,
    store: Store,
    expected: Sequence[str],
    stop: threading.Event | None,
) -> Iterator[AnyArray]:
    """The vectors of a part that stay, some at a time, of blocks that are seen to be what was written."""
    if store.n != one.part.rows or len(expected) != -(-store.n // BLOCK_ROWS):
        raise _damaged(path)
    for begin, digest in zip(range(0, store.n, BLOCK_ROWS), expected, strict=True):
        Stopped.raise_if(stop)
        end = min(begin + BLOCK_ROWS, store.n)
        stays = _stays(before.dead, np.arange(begin, end) + one.part.first_row, one)
        if not stays.any():
            continue
        block = np.ascontiguousarray(store.read(begin, end))
        if xxhash.xxh3_128_hexdigest(as_bytes(block)) != digest:
            raise _damaged(path)
        yield block[stays]
        store.forget(begin, end)


def _blocks(pieces: Iterator[AnyArray]) -> Iterator[AnyArray]:
    """Rows in blocks of ``BLOCK_ROWS``, the last of which may be shorter; no piece has more."""
    held: list[AnyArray] = []
    waiting = 0
    for piece in pieces:
        held.append(piece)
        waiting += len(piece)
        if waiting >= BLOCK_ROWS:
            rows = np.concatenate(held)
            yield rows[:BLOCK_ROWS]
            held, waiting = [rows[BLOCK_ROWS:]], waiting - BLOCK_ROWS
    if waiting:
        yield np.concatenate(held)


def _ids(before: Live, one: Shed, place: SegmentLayout) -> tuple[int, list[str]]:
    """Write the ids of the rows that stay; the largest, and checksums."""
    part, largest = one.part, -1
    listed = None
    if part.first_id is None:
        source = before.layout.segment(str(part.ids_in))
        _see_checksums(source, (source.ids.name,))
        listed = IdFiles(before.layout)(part)
    head = npy_head((one.left,), np.dtype(np.int64))
    with DurableFile(place.ids, size=len(head) + 8 * one.left) as file:
        file.write(head)
        for some in _places(before, one):
            if len(some):
                ids = np.ascontiguousarray(
                    some + (part.first_id or 0) if listed is None else listed[some], dtype=np.int64
                )
                largest = int(ids[-1])
                file.write(ids)
        return largest, file.checksums()


def _keys(
    before: Live, one: Shed, source: SegmentLayout, place: SegmentLayout, stop: threading.Event | None
) -> dict[str, Any]:
    """Write the keys of the rows that stay; what ``write_keys`` says of them."""
    table = KeyTable(source, one.part.rows)
    _see_checksums(source, [path.name for path in key_files(source, table.kind)])

    def read() -> Iterator[KeyBlock]:
        for some in _places(before, one):
            for first in range(0, len(some), BLOCK_KEYS):
                yield table.take(some[first : first + BLOCK_KEYS])

    return write_keys(KeySource(str(source.root), one.left, table.kind, read), place, stop=stop)


def _see_checksums(place: SegmentLayout, names: Sequence[str]) -> None:
    """See that files are what was written: what is made of them gets checksums of its own."""
    said = read_checksums(place.checksums)
    for name in names:
        if block_checksums(place.root / name) != said.get(name):
            raise _damaged(place.root / name)


def _damaged(path: Path) -> IndexDirError:
    return IndexDirError(
        f"{path} is not what was written: it was damaged or changed",
        kind="index-damaged",
        hint="Copy the directory anew, or mend it with `ooc verify --repair`.",
    )
