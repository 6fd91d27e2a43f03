"""Roaring bitmaps of row numbers, read from bytes that nobody vouches for.

The portable format of 64-bit bitmaps (https://github.com/RoaringBitmap/RoaringFormatSpec). A library that
deserialises it trusts what it reads; here every length is compared with the bytes that are there, and values
must ascend. What comes out is a bit a row: containers of 65 536 values lie in that order anyway.
"""

from __future__ import annotations

import struct

import numpy as np

from ooc.types import BytesArray

__all__ = ["decode"]

#: Cookies of a 32-bit bitmap, with and without containers of runs.
_RUNS, _PLAIN = 12347, 12346
#: Values of a container; more of them than this are kept as bits; offsets are left out below so many.
_VALUES, _MOST_LISTED, _FEW = 1 << 16, 4096, 4
_BIT_BYTES = _VALUES // 8


def decode(data: bytes, end: int) -> BytesArray:
    """The set as bits ``(ceil(end / 8),)`` uint8.

    Value ``i`` is bit ``i % 8``, from the lowest, of byte ``i // 8``.

    Raises
    ------
    ValueError
        The bytes are no bitmap, or a value is not below ``end``.
    """
    bits = np.zeros(-(-end // 8), np.uint8)
    at = _At(data)
    before = -1
    for _ in range(at.number("<Q")):
        high = at.number("<I")
        if high <= before:
            raise ValueError("its parts do not ascend")
        before = high
        _decode_part(at, high << 32, end, bits)
    if at.rest():
        raise ValueError("there are bytes after its end")
    return bits


class _At:
    """Bytes, taken one after another."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def take(self, count: int) -> BytesArray:
        if count > self.rest():
            raise ValueError("it ends early")
        self._place += count
        return np.frombuffer(self._data, np.uint8, count, self._place - count)

    def number(self, code: str) -> int:
        return int(struct.unpack(code, self.take(struct.calcsize(code)).tobytes())[0])

    def shorts(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return self.take(2 * count).view("<u2").astype(np.int64)

    def rest(self) -> int:
        return len(self._data) - self._place


def _decode_part(at: _At, base: int, end: int, bits: BytesArray) -> None:
    """One 32-bit bitmap, of the values from ``base`` on."""
    cookie = at.number("<I")
    if cookie & 0xFFFF == _RUNS:
        count = (cookie >> 16) + 1
        is_run = np.unpackbits(at.take(-(-count // 8)), bitorder="little")[:count].tolist()
    elif cookie == _PLAIN:
        count = at.number("<I")
        if count > _VALUES:
            raise ValueError("it has too many containers")
        is_run = [0] * count
    else:
        raise ValueError("it does not begin as a bitmap")
    heads = at.shorts(2 * count)
    keys, sizes = heads[::2], heads[1::2] + 1
    if (np.diff(keys) <= 0).any():
        raise ValueError("its containers do not ascend")
    if any(is_run) and count < _FEW:
        pass  # no offsets
    else:
        at.take(4 * count)  # they follow from the sizes
    for key, size, run in zip(keys.tolist(), sizes.tolist(), is_run, strict=True):
        first = base + key * _VALUES
        container = _runs(at) if run else _listed(at, size) if size <= _MOST_LISTED else at.take(_BIT_BYTES)
        if int(np.bitwise_count(container).sum(dtype=np.int64)) != size:
            raise ValueError("a container has not as many values as it says")
        place = bits[first // 8 : first // 8 + _BIT_BYTES]
        used = int(np.flatnonzero(container)[-1]) + 1
        last = first + 8 * (used - 1) + int(container[used - 1]).bit_length() - 1
        if last >= end:
            raise ValueError(f"it holds {last}, which is not below {end}")
        place[:used] = container[:used]


def _listed(at: _At, size: int) -> BytesArray:
    """A container of values one after another, as bits."""
    values = at.shorts(size)
    if (np.diff(values) <= 0).any():
        raise ValueError("the values of a container do not ascend")
    found = np.zeros(_VALUES, np.uint8)
    found[values] = 1
    return np.packbits(found, bitorder="little")


def _runs(at: _At) -> BytesArray:
    """A container of runs, as bits."""
    pairs = at.shorts(2 * at.number("<H"))
    begins, ends = pairs[::2], pairs[::2] + pairs[1::2] + 1
    if (ends > _VALUES).any() or (begins[1:] < ends[:-1]).any():
        raise ValueError("the runs of a container do not ascend")
    steps = np.zeros(_VALUES + 1, np.int8)
    steps[begins] += 1
    np.subtract.at(steps, ends, 1)
    return np.packbits(np.cumsum(steps[:-1], dtype=np.int8).view(np.uint8), bitorder="little")
