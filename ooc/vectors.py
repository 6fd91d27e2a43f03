"""What is done to vectors value by value, and numpy calls that a search makes often enough to matter."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ooc.types import FloatArray, IntArray

__all__ = [
    "LEAST_SQUARE",
    "MOST_SQUARE",
    "SHORT",
    "distinct",
    "evenly",
    "first_places",
    "narrow",
    "normalise",
    "pick",
    "places",
    "widen",
]

_T = TypeVar("_T", bound=np.generic)

#: The largest bits of a finite float32 that rounds to a finite bfloat16.
_MOST = np.uint32(0x7F7F7FFF)
#: Squared lengths outside of these lose digits in float32, or overflow.
LEAST_SQUARE, MOST_SQUARE = np.float32(1e-30), np.float32(1e30)
#: Numbers that Python sorts about as quickly as numpy.
SHORT = 256
_SIGN = np.uint32(0x80000000)


def narrow(x: FloatArray) -> NDArray[np.uint16]:
    """The bits of ``x`` as bfloat16, rounded: the range of float32 in half the bytes, 8 bits of precision."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    size = np.minimum(bits & ~_SIGN, _MOST)
    size += np.uint32(0x8000)
    size |= bits & _SIGN
    size >>= np.uint32(16)
    narrowed: NDArray[np.uint16] = size.astype(np.uint16)
    return narrowed


def widen(bits: NDArray[np.uint16]) -> FloatArray:
    """What ``narrow`` made, as float32."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def normalise(x: FloatArray, squares: FloatArray | None = None) -> tuple[FloatArray, int]:
    """Rows ``(m, d)`` divided by their length, in an array of their own; how many are zero.

    Zero rows stay zero: their cosine with anything is taken as 0. ``squares`` ``(m,)`` are those of the
    lengths, in float32, where the caller has them.
    """
    with np.errstate(over="ignore"):
        norms: FloatArray = np.sqrt(np.einsum("ij,ij->i", x, x) if squares is None else squares)
    # Squares over- and underflow where the values do not: those few rows are measured in float64,
    # and brought near 1 before they are divided.
    odd = np.flatnonzero(~np.isfinite(norms) | (norms < 1e-15))
    if not len(odd):
        return x / norms[:, None], 0
    wide = x[odd].astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1)
    zero = lengths == 0
    norms[odd] = 1
    unit = x / norms[:, None]
    unit[odd] = wide / np.where(zero, 1, lengths)[:, None]
    return unit, int(zero.sum())


def places(order: IntArray) -> IntArray:
    """The place of each number in its line of ``order`` ``(m, n)``, of all numbers from 0 to n - 1."""
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(order.shape[1])[None], axis=1)
    return place


def evenly(n: int, m: int) -> IntArray:
    """``m`` of the numbers from 0 to ``n`` - 1, from the first to the last; all where there are no more."""
    return np.unique(np.linspace(0, n - 1, min(m, n)).astype(np.int64))


def distinct(numbers: IntArray, end: int) -> IntArray:
    """The numbers from 0 to ``end`` - 1 among ``numbers`` (any shape), ascending. Of others there may be -1.

    Of many numbers in few marks are quicker than ``numpy.unique``, by a multiple.
    """
    if numbers.size < end // 8:
        found = np.unique(numbers)
        return found[found >= 0]
    marks = np.zeros(end + 1, bool)
    marks[numbers] = True  # -1 is the last
    return np.flatnonzero(marks[:-1])


def first_places(key: NDArray[_T], count: int) -> IntArray:
    """Where the ``count`` least of each line of ``key`` ``(m, n)`` are, ``(m, count)``, the least first.

    Of one short line Python's own sort finds them: numpy's lets go of Python's lock, and each time it is let
    go another thread wakes up, which takes longer than the sort.
    """
    if len(key) == 1 and key.shape[1] <= SHORT:
        values = key[0].tolist()
        return np.array([sorted(range(len(values)), key=values.__getitem__)[:count]], np.int64)
    return np.argsort(key, axis=1)[:, :count]


def pick(a: NDArray[_T], columns: IntArray) -> NDArray[_T]:
    """``a[i, columns[i, j]]`` as ``(m, c)``: ``numpy.take_along_axis``, in a tenth of its time for one row.

    Parameters
    ----------
    a : (m, n) array
        C-contiguous, or it is copied.
    columns : (m, c) int64
        Each from 0 to n - 1.
    """
    if len(a) > 1:
        columns = columns + np.arange(len(a))[:, None] * a.shape[1]
    return a.take(columns)
