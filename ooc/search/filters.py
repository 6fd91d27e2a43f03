"""Which rows a search may return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ooc.engine.select import Selector
from ooc.errors import ArgumentError
from ooc.types import AnyArray, BytesArray, IntArray

__all__ = ["Booleans", "Filter"]

Booleans: TypeAlias = NDArray[np.bool_]

#: Rows that are unpacked at a time: a multiple of 8.
_WINDOW = 1 << 20
#: What an id takes in the engine's hash table, in bits: ids are kept as such where that is less than a
#: bit for each row.
_BITS_OF_ID = 400


class Filter:
    """The rows that a search may return. Made by ``Filter.of``; never changes; safe from several threads.

    Kept in the least memory: consecutive rows as their first and last, few rows as their ids, and many
    as a bit for each row of the index (n / 8 bytes).

    Attributes
    ----------
    n : int
        Rows of the index: ids are 0 to n - 1.
    count : int
        Allowed rows; 0 is allowed too.
    """

    __slots__ = ("__weakref__", "_bits", "_few", "_selector", "_span", "count", "n")

    def __init__(
        self,
        n: int,
        count: int,
        span: tuple[int, int],
        *,
        bits: BytesArray | None = None,
        few: IntArray | None = None,
    ) -> None:
        self.n, self.count = n, count
        self._span = span  # no allowed row is outside; all inside are where there are no bits and no ids
        self._bits, self._few = bits, few
        self._selector: Selector | None = None

    @classmethod
    def of(cls, allowed: object, n: int) -> Filter:
        """The filter that somebody means.

        Parameters
        ----------
        allowed : array, list, set, range, roaring bitmap or Filter
            Booleans, one a row: a mask ``(n,)``. Whole numbers: the ids that are allowed, in any order,
            repeats allowed, also as a ``range`` of any step or as a bitmap of ``pyroaring``. (Zeros and
            ones that are not booleans are ids.) What is given is copied, unless it is a Filter.
        n : int
            Rows of the index: ids are 0 to n - 1.

        Raises
        ------
        ArgumentError
            None of these; a mask of another length; ids that are not there; another shape than ``(m,)``.
        """
        if isinstance(allowed, Filter):
            if allowed.n != n:
                raise _wrong(
                    f"the filter was made for {allowed.n} rows, and this index has {n}",
                    "Make it for this index, of the ids or the mask.",
                )
            return allowed
        if isinstance(allowed, range):
            return cls._of_range(allowed, n)
        if any(kind.__module__.partition(".")[0] == "pyroaring" for kind in type(allowed).__mro__):
            return cls._of_roaring(allowed, n)
        return cls._of_array(_array(allowed), n)

    @classmethod
    def _of_array(cls, array: AnyArray, n: int) -> Filter:
        if array.dtype == bool:
            if len(array) != n:
                raise _wrong(
                    f"the filter is a mask of {len(array)} rows, and this index has {n}",
                    "Give one boolean for each row, in the order of the store; or the ids that are allowed.",
                )
            count = int(np.count_nonzero(array))
            if not count:
                return cls(n, 0, (0, 0))
            span = int(array.argmax()), n - int(array[::-1].argmax())
            if count == span[1] - span[0]:
                return cls(n, count, span)
            if count * _BITS_OF_ID < n:
                return cls(n, count, span, few=np.flatnonzero(array))
            return cls(n, count, span, bits=np.packbits(array, bitorder="little"))
        if not array.size:
            return cls(n, 0, (0, 0))
        _check_ids(int(array.min()), int(array.max()), n)
        ids = array.astype(np.int64)
        if (ids[1:] <= ids[:-1]).any():
            ids.sort()
            ids = ids[np.concatenate(([True], ids[1:] != ids[:-1]))]
        return cls._of_ascending(ids, n)

    @classmethod
    def _of_ascending(cls, ids: IntArray, n: int) -> Filter:
        """Of ascending ids that occur once, at least one."""
        span = int(ids[0]), int(ids[-1]) + 1
        if len(ids) == span[1] - span[0]:
            return cls(n, len(ids), span)
        if len(ids) * _BITS_OF_ID < n:
            return cls(n, len(ids), span, few=ids)

        def within(first: int, last: int) -> IntArray:
            begin, end = np.searchsorted(ids, (first, last))
            return ids[begin:end] - first

        return cls(n, len(ids), span, bits=_packed(n, within))

    @classmethod
    def _of_range(cls, ids: range, n: int) -> Filter:
        if not ids:
            return cls(n, 0, (0, 0))
        if ids.step < 0:
            ids = ids[::-1]
        _check_ids(ids[0], ids[-1], n)
        span = ids[0], ids[-1] + 1
        if ids.step == 1 or len(ids) == 1:
            return cls(n, len(ids), span)
        if len(ids) * _BITS_OF_ID < n:
            return cls(n, len(ids), span, few=np.arange(ids.start, ids.stop, ids.step, dtype=np.int64))

        def within(first: int, last: int) -> slice:
            if last <= ids.start or first >= span[1]:
                return slice(0, 0)
            begin = ids.start if first <= ids.start else first + (ids.start - first) % ids.step
            return slice(begin - first, min(last, span[1]) - first, ids.step)

        return cls(n, len(ids), span, bits=_packed(n, within))

    @classmethod
    def _of_roaring(cls, bitmap: Any, n: int) -> Filter:
        count = len(bitmap)
        if not count:
            return cls(n, 0, (0, 0))
        span = bitmap.min(), bitmap.max() + 1
        _check_ids(span[0], span[1] - 1, n)
        if count == span[1] - span[0]:
            return cls(n, count, span)
        if count * _BITS_OF_ID < n:
            return cls(n, count, span, few=_of_roaring(bitmap).astype(np.int64))
        kind = type(bitmap)
        return cls(
            n,
            count,
            span,
            bits=_packed(n, lambda first, last: _of_roaring(bitmap & kind(range(first, last))) - first),
        )

    @classmethod
    def of_windows(cls, n: int, within: Callable[[int, int], AnyArray]) -> Filter:
        """Of a function that says which of the rows from ``first`` to ``last`` are allowed: booleans."""
        bits = _packed(n, within)
        count = int(np.bitwise_count(bits).sum(dtype=np.int64))
        everything = cls(n, count, (0, n), bits=bits)
        if not count:
            return cls(n, 0, (0, 0))
        if count == n:
            return cls(n, n, (0, n))
        return everything if count * _BITS_OF_ID >= n else cls._of_ascending(everything.ids(), n)

    def ids(self, limit: int | None = None) -> IntArray:
        """The allowed ids, ascending, ``(count,)`` int64; the first ``limit`` of them where it is given."""
        most = self.count if limit is None else max(0, min(limit, self.count))
        first = self._span[0]
        if self._few is not None:
            return self._few[:most].copy()
        if self._bits is None:
            return np.arange(first, first + most, dtype=np.int64)
        out = np.empty(most, np.int64)
        filled, at = 0, first - first % 8
        while filled < most:
            some = self._bits[at >> 3 : (at + _WINDOW) >> 3]
            found = np.flatnonzero(np.unpackbits(some, bitorder="little").view(bool))[: most - filled]
            np.add(found, at, out=out[filled : filled + len(found)])
            filled, at = filled + len(found), at + _WINDOW
        return out

    def contains(self, ids: IntArray) -> Booleans:
        """Whether each of ``ids`` (int64, any shape) is allowed; ids that are not there, as -1, are not."""
        first, stop = self._span
        inside: Booleans = (ids >= first) & (ids < stop)
        if self._bits is not None:
            safe = np.where(inside, ids, first)
            inside &= ((self._bits[safe >> 3] >> (safe & 7).astype(np.uint8)) & 1).view(bool)
        elif self._few is not None:
            safe = np.where(inside, ids, first)
            inside &= self._few[np.searchsorted(self._few, safe)] == safe
        return inside

    def both(self, other: Filter) -> Filter:
        """What this one and another of the same index allow."""
        fewer, more = sorted((self, other), key=lambda one: one.count)
        if fewer.count * _BITS_OF_ID < self.n:
            ids = fewer.ids()
            return Filter._of_array(ids[more.contains(ids)], self.n)

        def within(first: int, last: int) -> Booleans:
            ids = np.arange(first, last)
            return fewer.contains(ids) & more.contains(ids)

        return Filter.of_windows(self.n, within)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(array.nbytes for array in (self._bits, self._few) if array is not None)

    def selector(self) -> Selector:
        """The same for the engine's scan."""
        if self._selector is None:
            if self._bits is not None:
                self._selector = Selector.of_bits(self._bits)
            elif self._few is not None:
                self._selector = Selector.of_ids(self._few)
            else:
                self._selector = Selector.of_range(*self._span)
        return self._selector

    def __repr__(self) -> str:
        return f"<ooc.Filter {self.count} of {self.n} rows>"


def _packed(n: int, within: Callable[[int, int], slice | AnyArray]) -> BytesArray:
    """A bit a row; ``within(first, last)`` says which of the rows between are set, counted from first."""
    bits = np.empty((n + 7) // 8, np.uint8)
    for first in range(0, n, _WINDOW):
        last = min(first + _WINDOW, n)
        mask = np.zeros(last - first, bool)
        mask[within(first, last)] = True
        bits[first >> 3 : (last + 7) >> 3] = np.packbits(mask, bitorder="little")
    return bits


def _of_roaring(bitmap: Any) -> AnyArray:
    """The ids of a roaring bitmap, ascending: unsigned, of 32 or 64 bits."""
    ids = bitmap.to_array()
    return np.frombuffer(ids, f"u{ids.itemsize}") if len(ids) else np.empty(0, np.uint32)


def _array(allowed: object) -> AnyArray:
    """A 1-d array of booleans or whole numbers."""
    is_set = isinstance(allowed, set | frozenset)
    try:
        array = np.asarray(list(allowed) if is_set else allowed)  # type: ignore[call-overload]
    except (ValueError, OverflowError, TypeError):  # rows of unlike lengths
        array = np.empty(0, object)
    if array.ndim != 1:
        raise _wrong(
            f"the filter is {f'of shape {array.shape}' if array.ndim else _kind(allowed)}: "
            "it must be a mask or ids, of one dimension",
            _TAKEN,
        )
    if isinstance(allowed, list | tuple | set | frozenset) and not allowed:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" and (array.dtype != bool or is_set):
        raise _wrong(
            f"the filter is {_kind(allowed)} of {array.dtype}: neither a mask of booleans nor whole numbers",
            _TAKEN,
        )
    return array


_TAKEN = (
    "A filter is a mask of booleans, one for each row; or the ids that are allowed, as an array, a list, "
    "a set, a range or a roaring bitmap."
)


def _kind(allowed: object) -> str:
    name = type(allowed).__name__
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _check_ids(least: int, largest: int, n: int) -> None:
    if least < 0 or largest >= n:
        raise _wrong(
            f"the filter allows id {least if least < 0 else largest}, and this index has "
            + (f"ids 0 to {n - 1}" if n else "no rows"),
            "Ids are row numbers of the store that was indexed.",
        )


def _wrong(message: str, hint: str) -> ArgumentError:
    return ArgumentError(message, kind="filter", hint=hint)
