"""The keys of a segment's rows on disk: the key of a row, and the row of a key.

Keys lie in the order of the rows. To find one, its hash is looked for among the hashes of all, which lie in
ascending order beside the numbers of their rows. Hashes are spread evenly, so where one lies is known but
for some hundred places: a look-up touches a few pages, however many keys there are, and nothing is held in
memory.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ooc.durable import DurableFile, make_directory, npy_head, read_json
from ooc.errors import DataError, IndexDirError, OocError, ResourceError, Stopped
from ooc.index.layout import SegmentLayout
from ooc.mapping import MappedFile, Residency
from ooc.stores.keys import BLOCK_KEYS, MOST_BYTES, Fingerprint, KeyBlock, KeySource, shown
from ooc.stores.npy_header import read_npy_header
from ooc.stores.texts import Texts, gathered
from ooc.types import AnyArray, IntArray, KeyKind

__all__ = ["KeyTable", "hashes", "key_files", "stored_keys", "write_keys"]

#: Hashes that are sorted at a time, and that are read at a time to pick those.
_SORTED, _SCANNED = 1 << 19, 1 << 17

#: Keys that are compared at a time.
_COMPARED = 1 << 14

#: Places around the one where a hash is expected.
_NEAR = 128


def hashes(keys: KeyBlock) -> NDArray[np.uint64]:
    """Hashes of keys ``(m,)``: XXH3-64 of a string's bytes; of a whole number, SplitMix64's last steps.

    These give no two numbers the same (Steele et al., "Fast splittable pseudorandom
    number generators", 2014).
    """
    if isinstance(keys, Texts):
        data, ends, digest = keys.data.tobytes(), keys.offsets.tolist(), xxhash.xxh3_64_intdigest
        each = (digest(data[a:b]) for a, b in itertools.pairwise(ends))
        return np.fromiter(each, np.uint64, len(keys))
    z = keys.astype(np.int64).view(np.uint64)
    for shift, times in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(times)
    return z ^ (z >> np.uint64(31))


def key_files(place: SegmentLayout, kind: KeyKind) -> tuple[Path, ...]:
    """The files of keys of a kind."""
    own = (place.keys,) if kind == "int64" else (place.key_text, place.key_offsets)
    return (*own, place.key_hashes, place.key_rows)


class _Values:
    """The values of a ``.npy`` file ``(n,)``, mapped; a page that is not in memory is read alone."""

    def __init__(self, path: Path, dtype: Any, n: int) -> None:
        self._file = _file(path)
        try:
            *found, self._begin = read_npy_header(self._file.bytes[: 1 << 12].tobytes())
        except ValueError as error:
            raise _damaged(path, str(error)) from error
        self._size = np.dtype(dtype).itemsize
        data = self._file.bytes[self._begin :]
        if found != [(n,), False, np.dtype(dtype)] or len(data) != n * self._size:
            raise _damaged(path, f"it does not hold {n} values of {np.dtype(dtype)}")
        self.all: AnyArray = data.view(dtype)

    def ahead(self, at: IntArray) -> None:
        """Start reading values at some places ``(m,)``."""
        self._file.will_need_each(self._begin + np.sort(at) * self._size, self._size)


class _Stored:
    """Keys by the number of their row, mapped."""

    def __init__(self, place: SegmentLayout, kind: KeyKind, n: int) -> None:
        self._text: MappedFile | None = None
        if kind == "int64":
            self._values = _Values(place.keys, np.int64, n)
        else:
            self._values, self._text = _Values(place.key_offsets, np.int64, n + 1), _file(place.key_text)
            offsets = self._values.all
            if int(offsets[0]) != 0 or int(offsets[-1]) != self._text.size:
                raise _damaged(place.key_text, f"it has {self._text.size} bytes")

    def take(self, rows: IntArray, *, ahead: bool = False) -> KeyBlock:
        """The keys of rows ``(m,)``, in any order; with ``ahead`` all are asked of the disk first."""
        values, text = self._values.all, self._text
        if ahead:
            self._values.ahead(rows)
        if text is None:
            numbers: IntArray = values[rows]
            return numbers
        begins, ends = values[rows], values[rows + 1]
        inside = begins.size == 0 or (begins.min() >= 0 and ends.max() <= text.size)
        if not inside or (begins >= ends).any() or (ends - begins > MOST_BYTES).any():
            raise _damaged(text.path, "strings do not lie within it")
        if ahead:
            order = np.argsort(begins)
            text.will_need_spans(begins[order], ends[order])
        return gathered(begins, ends, text.bytes)


class KeyTable:
    """The keys of a segment, opened. Safe from several threads.

    Parameters
    ----------
    place : SegmentLayout
    rows : int
        How many rows it has keys for.

    Attributes
    ----------
    kind : {"int64", "str"}
    longest : int
        Bytes of the longest key.
    bytes : int
        Of its files.

    Raises
    ------
    IndexDirError
        A file is missing, or not what the record says.
    """

    def __init__(self, place: SegmentLayout, rows: int) -> None:
        record = read_json(place.record, what="the segment's record")
        said = record.get("keys")
        if not isinstance(said, dict) or said.get("kind") not in ("int64", "str"):
            raise _damaged(place.record, "it tells nothing of keys")
        self.kind: KeyKind = said["kind"]
        if type(said.get("longest")) is not int:
            raise _damaged(place.record, "it does not say how long keys are")
        self.longest: int = said["longest"]
        self.n = rows
        self.bytes = sum(path.stat().st_size for path in key_files(place, self.kind) if path.exists())
        self._stored = _Stored(place, self.kind, rows)
        self._hashes = _Values(place.key_hashes, np.uint64, rows)
        self._rows = _Values(place.key_rows, _row_dtype(rows), rows)
        self._place, self._residency = place, Residency()

    def take(self, rows: IntArray) -> KeyBlock:
        """The keys of rows ``(m,)``, numbered from 0 in the segment."""
        return self._stored.take(rows, ahead=self._ahead(len(rows)))

    def see(self, stop: threading.Event | None = None) -> None:
        """See that the hashes are those of the keys, ascending, and each key has one; reads them all.

        Raises
        ------
        IndexDirError
            They are not.
        Stopped
        """
        place, before = self._place, np.empty(0, np.uint64)
        last = np.empty(0, np.int64)
        for at in range(0, self.n, _SCANNED):
            Stopped.raise_if(stop)
            hashed = self._hashes.all[at : at + _SCANNED]
            rows = self._rows.all[at : at + _SCANNED].astype(np.int64)
            if int(rows.max()) >= self.n or int(rows.min()) < 0:
                raise _damaged(place.key_rows, f"it speaks of rows beyond {self.n}")
            all_hashes, all_rows = np.concatenate((before, hashed)), np.concatenate((last, rows))
            if (all_hashes[1:] < all_hashes[:-1]).any():
                raise _damaged(place.key_hashes, "its hashes do not ascend")
            if ((all_hashes[1:] == all_hashes[:-1]) & (all_rows[1:] == all_rows[:-1])).any():
                raise _damaged(place.key_rows, "it has a row twice")
            if (hashes(self._stored.take(rows)) != hashed).any():
                raise _damaged(place.key_hashes, "its hashes are not those of the keys")
            before, last = hashed[-1:], rows[-1:]

    def _ahead(self, count: int) -> bool:
        """Whether places are asked of the disk together before they are looked at one by one."""
        return count > 1 and self._residency.wants_advice()

    def find(self, keys: KeyBlock, hashed: NDArray[np.uint64]) -> IntArray:
        """The row of each key ``(m,)``, -1 where it is not here; ``hashed`` are the hashes of the keys."""
        ahead = self._ahead(len(hashed))
        found = np.full(len(hashed), -1, np.int64)
        places = self._places(hashed, ahead=ahead)
        left = np.arange(len(hashed))
        while len(left):
            left = left[places[left] < self.n]
            left = left[self._hashes.all[places[left]] == hashed[left]]
            if ahead:
                self._rows.ahead(places[left])
            rows = self._rows.all[places[left]].astype(np.int64)
            if len(rows) and int(rows.max()) >= self.n:
                raise _damaged(self._place.key_rows, f"it speaks of row {int(rows.max())} of {self.n}")
            same = _same(self._stored.take(rows, ahead=ahead), keys[left])
            found[left[same]] = rows[same]
            left = left[~same]  # another key of the same hash: it may be the next one
            places[left] += 1
        return found

    def _places(self, hashed: NDArray[np.uint64], *, ahead: bool) -> IntArray:
        """Where the first hash lies that is no smaller than each of these, ``(m,)``; n where none is."""
        there, n = self._hashes.all, self.n
        scale = n / 2.0**64
        guess = np.minimum((hashed * scale).astype(np.int64), n - 1)
        for _ in range(2):  # from where it should lie to where it lies by what is there
            if ahead:
                self._hashes.ahead(guess)
            at = there[guess]
            off = np.where(hashed >= at, (hashed - at) * scale, -((at - hashed) * scale))
            guess = np.clip(guess + off.astype(np.int64), 0, n - 1)
        low, high = np.maximum(guess - _NEAR, 0), np.minimum(guess + _NEAR, n)
        # It lies between, or else anywhere.
        below = (low > 0) & (there[np.maximum(low - 1, 0)] >= hashed)
        above = (high < n) & (there[np.minimum(high, n - 1)] < hashed)
        low, high = np.where(below | above, 0, low), np.where(below | above, n, high)
        while (low < high).any():
            middle = (low + high) >> 1
            smaller = (low < high) & (there[np.minimum(middle, n - 1)] < hashed)
            low = np.where(smaller, middle + 1, low)
            high = np.where(smaller, high, np.maximum(middle, low))
        return low


def stored_keys(place: SegmentLayout, kind: KeyKind, rows: int) -> KeySource:
    """The keys that a segment has, as a source: to be written elsewhere.

    Raises
    ------
    IndexDirError
        Their files are missing or damaged.
    """
    stored = _Stored(place, kind, rows)

    def read() -> Iterator[KeyBlock]:
        for at in range(0, rows, BLOCK_KEYS):
            yield stored.take(np.arange(at, min(at + BLOCK_KEYS, rows)))

    return KeySource(str(place.root), rows, kind, read)


def write_keys(
    source: KeySource, place: SegmentLayout, *, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Write the keys of a segment's rows and what finds them, in bounded memory.

    Returns
    -------
    dict
        JSON-ready: ``kind``, ``longest``, ``fingerprint``, and ``checksums`` by the name of each file.

    Raises
    ------
    ArgumentError
        As ``KeySource.blocks``.
    DataError
        A key is there twice.
    """
    make_directory(place.root)
    with tempfile.TemporaryFile(dir=place.root) as scratch:
        said, checksums = _write_stored(source, place, scratch, stop)
        scratch.flush()
        stored = _Stored(place, source.kind, source.n)
        with contextlib.ExitStack() as stack:
            dtypes = ((place.key_hashes, np.dtype(np.uint64)), (place.key_rows, _row_dtype(source.n)))
            files = [stack.enter_context(_array_file(path, (source.n,), dtype)) for path, dtype in dtypes]
            for hashed, rows in _sorted_pieces(scratch, source.n):
                Stopped.raise_if(stop)
                _see_unique(hashed, rows, stored, source.where)
                for file, array, (_, dtype) in zip(files, (hashed, rows), dtypes, strict=True):
                    file.write(array.astype(dtype, copy=False))
            checksums |= {file.path.name: file.checksums() for file in files}
    return {**said, "checksums": checksums}


def _write_stored(
    source: KeySource, place: SegmentLayout, scratch: IO[bytes], stop: threading.Event | None
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The keys themselves, and their hashes into a scratch file; what they are, and checksums."""
    longest, end, made = 8 if source.kind == "int64" else 0, 0, Fingerprint()
    int64 = np.dtype(np.int64)
    with contextlib.ExitStack() as stack:
        if source.kind == "int64":
            files = [stack.enter_context(_array_file(place.keys, (source.n,), int64))]
        else:
            text = stack.enter_context(DurableFile(place.key_text))
            files = [text, stack.enter_context(_array_file(place.key_offsets, (source.n + 1,), int64))]
            files[1].write(np.zeros(1, np.int64))
        for block in source.blocks():
            Stopped.raise_if(stop)
            if isinstance(block, Texts):
                files[0].write(np.ascontiguousarray(block.data))
                files[1].write(block.offsets[1:] + end)
                end += int(block.offsets[-1])
                longest = max(longest, int(block.lengths.max(initial=0)))
            else:
                files[0].write(np.ascontiguousarray(block))
            made.update(block)
            scratch.write(hashes(block).tobytes())
        said = {"kind": source.kind, "longest": longest, "fingerprint": made.text}
        return said, {file.path.name: file.checksums() for file in files}


def _sorted_pieces(scratch: IO[bytes], n: int) -> Iterator[tuple[NDArray[np.uint64], IntArray]]:
    """All hashes ascending, with their rows, a part of the range of hashes after another."""
    count = -(-n // _SORTED)
    for i in range(count):
        low, high = (i << 64) // count, ((i + 1) << 64) // count - 1
        scratch.seek(0)
        picked: list[NDArray[np.uint64]] = []
        places: list[IntArray] = []
        for first in range(0, n, _SCANNED):
            some = np.fromfile(scratch, np.uint64, min(_SCANNED, n - first))
            at = np.flatnonzero((some >= np.uint64(low)) & (some <= np.uint64(high)))
            picked.append(some[at])
            places.append(at + first)
        hashed, rows = np.concatenate(picked), np.concatenate(places)
        order = np.argsort(hashed, kind="stable")
        yield hashed[order], rows[order]


def _see_unique(hashed: NDArray[np.uint64], rows: IntArray, stored: _Stored, where: str) -> None:
    """See that no two keys are the same; ``hashed`` ascend, so that same keys lie side by side."""
    for apart in itertools.count(1):
        near = np.flatnonzero(hashed[apart:] == hashed[:-apart])
        if not len(near):
            return
        for i in range(0, len(near), _COMPARED):
            some = near[i : i + _COMPARED]
            first, second = rows[some], rows[some + apart]
            keys = stored.take(first)
            same = np.flatnonzero(_same(keys, stored.take(second)))
            if len(same):
                at = int(same[0])
                raise DataError(
                    f"key {shown(keys, at)} is given twice in {where}: of rows {first[at]} and {second[at]}",
                    kind="duplicate-key",
                    hint="Each row needs a key of its own.",
                )


def _same(a: KeyBlock, b: KeyBlock) -> NDArray[np.bool_]:
    """Whether each key equals the one in its place."""
    if isinstance(a, Texts) and isinstance(b, Texts):
        return a.same(b)
    assert isinstance(a, np.ndarray)
    assert isinstance(b, np.ndarray)
    return np.asarray(a == b)


def _row_dtype(n: int) -> np.dtype[Any]:
    """Of the numbers of rows."""
    return np.dtype(np.uint32 if n <= 1 << 32 else np.int64)


def _array_file(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DurableFile:
    """A ``.npy`` file in the making, of which the header is written."""
    head = npy_head(shape, dtype)
    file = DurableFile(path, size=len(head) + int(np.prod(shape)) * dtype.itemsize)
    try:
        file.write(head)
    except BaseException:
        file.abandon()
        raise
    return file


def _file(path: Path) -> MappedFile:
    try:
        return MappedFile(path, random=True)
    except (OSError, OocError) as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> IndexDirError:
    return IndexDirError(
        f"{path} cannot be read: {why}",
        kind="index-damaged",
        hint="Copy the whole directory anew, or remove it and build.",
    )
