"""Keys of rows as somebody gives them: in memory or in a file, read in blocks.

A key is a whole number (int64) or a string. Those of a collection are all of one kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xxhash

from ooc.durable import as_bytes
from ooc.errors import ArgumentError
from ooc.stores.texts import Texts
from ooc.types import AnyArray, IntArray, KeyKind

if TYPE_CHECKING:
    from ooc.types import KeysLike

__all__ = [
    "BLOCK_KEYS",
    "MOST_BYTES",
    "Fingerprint",
    "KeyBlock",
    "KeySource",
    "as_block",
    "from_sequence",
    "keys_of_rows",
    "kind_of",
    "open_keys",
    "shown",
]

#: Some keys: int64, or strings.
KeyBlock: TypeAlias = IntArray | Texts

#: Keys that are looked at together.
BLOCK_KEYS = 16_384

#: The longest string, in bytes: a file that is none of keys has "lines" of any length.
MOST_BYTES = 65_535

_FORMS = "a list or array of whole numbers or strings, or a file: .npy, text, Parquet, Arrow, HDF5, Zarr"


@dataclass(frozen=True, slots=True, eq=False)
class KeySource:
    """Keys that can be read from the first on, any number of times.

    Attributes
    ----------
    where : str
        Their name, for messages.
    n : int
    kind : {"int64", "str"}
    read : callable
        Reads them all: arrays, lists or ``Texts``, of any lengths.
    first : int
        How many of those that it reads come before the first one here.
    """

    where: str
    n: int
    kind: KeyKind
    read: Callable[[], Iterator[Any]]
    first: int = 0
    _told: dict[tuple[int, int], tuple[str, int]] = field(default_factory=dict)

    def part(self, start: int, stop: int) -> KeySource:
        """Keys ``start`` to ``stop``."""
        return KeySource(self.where, stop - start, self.kind, self.read, self.first + start, self._told)

    @classmethod
    def of(cls, block: KeyBlock, where: str) -> KeySource:
        """Keys that are in memory."""
        return cls(where, len(block), kind_of(block), lambda: iter((block,)))

    def blocks(self) -> Iterator[KeyBlock]:
        """The keys, ``BLOCK_KEYS`` at a time and the last ones fewer or not, seen to be keys.

        Raises
        ------
        ArgumentError
            One is missing, of another kind, empty, too long, or no UTF-8.
        """
        at, stop = 0, self.first + self.n
        if not self.n:
            return
        for raw in self.read():
            begin, end = max(self.first - at, 0), min(stop - at, len(raw))
            for i in range(begin, end, BLOCK_KEYS):
                some = as_block(raw[i : min(i + BLOCK_KEYS, end)], self.where, at + i)
                _see_kind(some, self.kind, self.where)
                yield some
            at += len(raw)
            if at >= stop:
                return
        raise ArgumentError(
            f"there are {at} keys in {self.where}, and there were {stop}",
            kind="keys",
            hint="It was changed while it was read: call again.",
        )

    def all(self) -> KeyBlock:
        """All keys together."""
        blocks = list(self.blocks())
        if self.kind == "str":
            return Texts.joined([block for block in blocks if isinstance(block, Texts)])
        return np.concatenate([np.empty(0, np.int64), *blocks])

    def fingerprint(self) -> tuple[str, int]:
        """A short text that differs where any key does, and the bytes of all; read once."""
        if (self.first, self.n) not in self._told:
            made = Fingerprint()
            for block in self.blocks():
                made.update(block)
            self._told[self.first, self.n] = made.text, made.bytes
        return self._told[self.first, self.n]


class Fingerprint:
    """Tells keys from others, however they are cut into blocks.

    Attributes
    ----------
    bytes : int
        Of the keys so far.
    """

    def __init__(self) -> None:
        self._keys, self._lengths = xxhash.xxh3_128(), xxhash.xxh3_128()
        self.bytes = 0

    def update(self, block: KeyBlock) -> None:
        """Take the next keys."""
        if isinstance(block, Texts):
            self._lengths.update(as_bytes(block.lengths))
        data = as_bytes(np.ascontiguousarray(block.data if isinstance(block, Texts) else block))
        self._keys.update(data)
        self.bytes += len(data)

    @property
    def text(self) -> str:
        """Of the keys so far. Those of strings differ from those of numbers by the lengths."""
        return f"xxh3:{xxhash.xxh3_128_hexdigest(self._keys.digest() + self._lengths.digest())}"


def open_keys(keys: KeysLike, kind: KeyKind | None = None) -> KeySource:
    """Keys for reading, wherever they are.

    Parameters
    ----------
    keys : array, sequence, path or KeySource
        Whole numbers or strings: a 1-d array, a list, or what can be sliced like one; a ``.npy`` file; a text
        file, a key a line; ``PATH::column`` of Parquet or Arrow; ``PATH::/name`` in HDF5 or Zarr.
    kind : {"int64", "str"}, optional
        What they must be. Lines of a text file are whole numbers where that is ``"int64"``, else strings.

    Raises
    ------
    ArgumentError
        They are none, or of another kind.
    StoreError, MissingExtraError
        The file is missing or cannot be read, or a package for it.
    """
    if isinstance(keys, KeySource):
        source = keys
    elif isinstance(keys, str | os.PathLike):
        from ooc.stores.key_files import open_key_file

        source = open_key_file(os.fspath(keys), kind)
    else:
        source = from_sequence(keys, "the keys", kind)
    if kind is not None and source.kind != kind and source.n:
        raise _other_kind(source.where, source.kind, kind)
    return source


def from_sequence(values: Any, where: str, kind: KeyKind | None = None) -> KeySource:
    """Keys in what has a length and can be sliced: a list, an array, a dataset.

    ``kind`` is taken where there are no keys to tell it.
    """
    shape = getattr(values, "shape", None)
    if isinstance(values, bytes | dict | set) or not hasattr(values, "__getitem__") or shape == ():
        raise ArgumentError(f"keys cannot be a {type(values).__name__}", kind="keys", hint=f"Give {_FORMS}.")
    if shape is not None and len(shape) != 1:
        raise ArgumentError(
            f"{where} are {' x '.join(map(str, shape))}; keys are 1-d, one for each row", kind="keys"
        )
    n = len(values) if shape is None else shape[0]
    found = kind_of(as_block(values[:1], where, 0)) if n else kind or "int64"

    def read() -> Iterator[Any]:
        for i in range(0, n, BLOCK_KEYS):
            yield values[i : i + BLOCK_KEYS]

    return KeySource(where, n, found, read)


def kind_of(block: KeyBlock) -> KeyKind:
    """Of some keys."""
    return "str" if isinstance(block, Texts) else "int64"


def shown(block: KeyBlock, i: int) -> str:
    """A key for messages, not at any length."""
    if not isinstance(block, Texts):
        return str(block[i])
    text = block[i : i + 1].strings()[0]
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def as_block(raw: Any, where: str, row: int) -> KeyBlock:
    """Values of any sort as keys; ``row`` is the number of the first, for messages."""
    if isinstance(raw, Texts):
        return _seen(raw, where, row)
    if type(raw).__module__.partition(".")[0] == "pyarrow":
        from ooc.stores.key_files import arrow_values

        return as_block(arrow_values(raw, where, row), where, row)
    array = raw if isinstance(raw, np.ndarray) else None
    if array is not None and array.dtype.kind in "iu":
        return _whole(array, where, row)
    values = list(raw) if array is None else array.tolist()
    if values and all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in values):
        return _whole(np.array(values, object), where, row)
    if array is not None and not values:
        return np.empty(0, np.int64)
    return _seen(Texts.of([_utf8(one, where, row + i) for i, one in enumerate(values)]), where, row)


def _whole(array: AnyArray, where: str, row: int) -> IntArray:
    limits = np.iinfo(np.int64)
    if array.dtype.kind in "uO" and array.size:
        bad = (array > limits.max) | (array < limits.min)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ArgumentError(
                f"key {array[at]} of row {row + at} in {where} is beyond int64",
                kind="keys",
                hint="Give such numbers as strings.",
            )
    return np.ascontiguousarray(array, dtype=np.int64)


def _utf8(value: Any, where: str, row: int) -> bytes:
    """A string, or its bytes, as UTF-8."""
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, bytes):
            value.decode()
            return value
    except UnicodeError as error:
        raise ArgumentError(
            f"the key of row {row} in {where} is no UTF-8 text: {error}",
            kind="keys",
            hint="Write it again as UTF-8.",
        ) from error
    if value is None or value != value:
        raise ArgumentError(f"row {row} in {where} has no key", kind="keys", hint="Every row needs one.")
    raise ArgumentError(
        f"the key of row {row} in {where} is {value!r}: keys are all whole numbers, or all strings",
        kind="keys",
    )


def _seen(block: Texts, where: str, row: int) -> Texts:
    """Strings, seen to be keys."""
    lengths = block.lengths
    bad = (lengths == 0) | (lengths > MOST_BYTES)
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        what = "is empty" if not lengths[at] else f"has {lengths[at]} bytes: {MOST_BYTES} are the most"
        raise ArgumentError(f"the key of row {row + at} in {where} {what}", kind="keys")
    if not block.data.all():  # files of results and other programs end strings there
        at = int(np.searchsorted(block.offsets, int(np.argmin(block.data)), side="right")) - 1
        raise ArgumentError(f"the key of row {row + at} in {where} holds a NUL character", kind="keys")
    return block


def _see_kind(block: KeyBlock, kind: KeyKind, where: str) -> None:
    if len(block) and kind_of(block) != kind:
        raise _other_kind(where, kind_of(block), kind)


def _other_kind(where: str, found: KeyKind, wanted: KeyKind) -> ArgumentError:
    names = {"int64": "whole numbers", "str": "strings"}
    return ArgumentError(
        f"the keys here are {names[wanted]}, and those in {where} are {names[found]}",
        kind="keys",
        hint="Give all keys of an index in one kind.",
    )


def keys_of_rows(keys: KeySource, first: int, stop: int, n: int) -> KeySource:
    """The keys of rows ``first`` to ``stop`` of a store of ``n`` rows, given for these or for all.

    Raises
    ------
    ArgumentError
        There are more or fewer.
    """
    if keys.n == stop - first:
        return keys
    if keys.n == n:
        return keys.part(first, stop)
    raise ArgumentError(
        f"there are {keys.n} keys in {keys.where}, and {stop - first} rows",
        kind="keys",
        hint="Every row needs one, in the order of the rows.",
    )
