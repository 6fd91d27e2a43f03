"""The structure of faiss's files, checked before faiss reads them.

faiss takes lengths, types and references from a file as they are; a damaged one makes it ask for absurd
memory, or address what is not there when it searches. So a file is walked here first, field by field in the
order in which faiss 1.15 writes them: what kinds of index it is made of (those that ``ooc`` writes, and no
others), that every length agrees with the dimensions and fits into the file, that graphs refer to what is
there, and that the file ends where it should. Numbers themselves, such as centroids, are passed over: of a
file of 67 MB a few kB are read.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from ooc.errors import IndexDirError
from ooc.types import AnyArray, IntArray

__all__ = ["Skeleton", "header_skeleton", "see_sketch", "template_skeleton"]

#: Kinds of lists: on disk, and none yet.
_ON_DISK, _IN_MEMORY = "ilod", "ilar"
#: ``METRIC_INNER_PRODUCT`` and ``METRIC_L2``.
_METRICS = (0, 1)
_MOST_D = 1 << 20
#: Of faiss's scalar quantizers by number: bits of a value, and trained numbers (of a dimension, of all).
_SCALAR = {
    0: (8, (2, 0)),
    1: (4, (2, 0)),
    2: (8, (0, 2)),
    3: (4, (0, 2)),
    4: (16, (0, 0)),
    5: (8, (0, 0)),
    6: (6, (2, 0)),
    7: (16, (0, 0)),
    8: (8, (0, 0)),
}
#: FastScan's codes lie in blocks of so many.
_BLOCK = 32
#: Read at a time.
_READ_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """What the structure of a file says.

    Attributes
    ----------
    d, d_code : int
        Dimensions, before and after the transforms.
    nlist, code_size : int
    l2 : bool
        Whether its metric is squared distance, else the inner product.
    entries : int
        How many it says that its lists have.
    sizes, offsets : (nlist,) int64
        Of lists on disk: entries, and the byte where each begins. Of a template empty.
    end : int
        Bytes of the file of lists.
    """

    d: int
    d_code: int
    nlist: int
    code_size: int
    l2: bool
    entries: int
    sizes: IntArray
    offsets: IntArray
    end: int


def header_skeleton(path: Path) -> Skeleton:
    """The structure of the header of a file of lists.

    Raises
    ------
    IndexDirError
        The file is missing, or is no such header.
    """
    with _Walk.of(path) as walk:
        found = _index(walk, _ON_DISK)
        walk.finish()
        return found


def template_skeleton(path: Path) -> Skeleton:
    """The structure of a template: as a header, and without lists.

    Raises
    ------
    IndexDirError
        As ``header_skeleton``.
    """
    with _Walk.of(path) as walk:
        found = _index(walk, _IN_MEMORY)
        walk.finish()
        return found


def see_sketch(path: Path, nlist: int, d: int) -> None:
    """See that a file is a sketch of ``nlist`` centroids of ``d`` dimensions.

    Raises
    ------
    IndexDirError
        As ``header_skeleton``.
    """
    with _Walk.of(path) as walk:
        walk.see(walk.word() == "IxPT", "it is no sketch")
        top_d, _, total = walk.index()
        walk.see((top_d, total) == (d, nlist), f"it is of {total} centroids of {top_d} dimensions")
        walk.see(walk.number("<i") == 1, "it has several transforms")
        low = _transform(walk, d)
        walk.see(walk.word() == "IPfs", "it is no sketch")
        inner, _, total = walk.index()
        walk.see((inner, total) == (low, nlist), "its parts do not fit together")
        m, bits = _product(walk, low)
        walk.see(bits == 4, f"its codes are of {bits} bits")
        implem, bbs, _ = (walk.number("<i") for _ in range(3))
        blocks, wide = walk.number("<Q"), walk.number("<Q")
        walk.see((implem, bbs) == (0, _BLOCK), "its codes lie in another order")
        walk.see((blocks, wide) == (-(-nlist // _BLOCK) * _BLOCK, m + m % 2), "its codes are not in blocks")
        walk.vector(1, blocks * wide // 2)
        walk.finish()


def _index(walk: _Walk, lists: str) -> Skeleton:
    """Transforms, if any, and lists."""
    kind = walk.word()
    if kind != "IxPT":
        return _ivf(walk, kind, lists)
    d, metric, total = walk.index()
    count = walk.number("<i")
    walk.see(1 <= count <= 16, f"it has {count} transforms")
    wide = d
    for _ in range(count):
        wide = _transform(walk, wide)
    inner = _ivf(walk, walk.word(), lists)
    walk.see(
        (inner.d_code, inner.l2, inner.entries) == (wide, metric == 1, total), "its parts do not fit together"
    )
    return Skeleton(**{**{name: getattr(inner, name) for name in Skeleton.__slots__}, "d": d})


def _transform(walk: _Walk, d: int) -> int:
    """One transform of ``d`` dimensions; how many come out."""
    kind = walk.word()
    linear: tuple[int, int, int] | None = None
    means = 0
    if kind == "HRot":
        walk.skip(4)
    elif kind in ("rrot", "LTra"):
        linear = _linear(walk)
    elif kind == "Pcam":
        walk.skip(4 + 4)
        walk.flag()
        walk.skip(4)
        means = walk.vector(4)
        walk.vector(4)
        walk.vector(4)
        linear = _linear(walk)
    elif kind == "Viqt":
        means = walk.vector(4)
        walk.flag()
        _itq(walk)
        _transform(walk, -1)
    else:
        raise walk.damaged(f"it has a transform of kind {kind!r}")
    d_in, d_out = walk.number("<i"), walk.number("<i")
    walk.see(walk.flag(), "a transform was not trained")
    walk.see(
        (d_in == d or d < 0) and 1 <= d_out <= _MOST_D and d_in >= 1, "its transforms do not fit together"
    )
    if kind == "HRot":
        walk.see(d_out == 1 << (d_in - 1).bit_length(), "a rotation has other dimensions than it says")
    if linear is not None:
        has_bias, values, bias = linear
        walk.see(values == d_in * d_out, "a transform has other dimensions than it says")
        walk.see(
            bias == d_out if has_bias else bias in (0, d_out), "a transform has other dimensions than it says"
        )
    walk.see(means in (0, d_in), "a transform has other dimensions than it says")
    return d_out


def _linear(walk: _Walk) -> tuple[int, int, int]:
    """Whether it has a bias, and how many numbers its matrix and bias have."""
    return int(walk.flag()), walk.vector(4), walk.vector(4)


def _itq(walk: _Walk) -> None:
    """The rotation within an ITQ transform."""
    walk.see(walk.word() == "Viqm", "an ITQ transform has no rotation")
    walk.skip(4 + 4)
    _, values, _ = _linear(walk)
    d_in, d_out = walk.number("<i"), walk.number("<i")
    walk.flag()
    walk.see(
        min(d_in, d_out) >= 1 and values == d_in * d_out, "a transform has other dimensions than it says"
    )


def _ivf(walk: _Walk, kind: str, lists: str) -> Skeleton:
    d, metric, total = walk.index()
    nlist, _ = walk.number("<Q"), walk.number("<Q")
    walk.see(1 <= nlist <= 1 << 31, f"it has {nlist} lists")
    _quantizer(walk, d, nlist, metric)
    walk.see((walk.number("<b"), walk.number("<Q")) == (0, 0), "it has a map of ids")
    read = _CODES.get(kind)
    if read is None:
        raise walk.damaged(f"it is an index of kind {kind!r}")
    code_size = read(walk, d, metric)
    found = _lists(walk, lists, nlist, code_size)
    return Skeleton(d=d, d_code=d, nlist=nlist, code_size=code_size, l2=metric == 1, entries=total, **found)


def _quantizer(walk: _Walk, d: int, nlist: int, metric: int) -> None:
    """The centroids, and the graph over them where there is one."""
    kind = walk.word()
    if kind == "IHNf":
        walk.see(walk.index() == (d, metric, nlist), "its graph is of other centroids")
        _graph(walk, nlist)
        kind = walk.word()
    walk.see(kind == ("IxF2" if metric == 1 else "IxFI"), f"its centroids are an index of kind {kind!r}")
    walk.see(walk.index() == (d, metric, nlist), "it has other centroids than it says")
    walk.see(walk.vector(4) == nlist * d, "it has other centroids than it says")


def _graph(walk: _Walk, n: int) -> None:
    """A graph over ``n`` centroids: all that it refers to must be there."""
    wrong = "its graph refers to what is not there"
    walk.vector(8)
    places = walk.array(np.int32, most=1 << 10).astype(np.int64)
    levels = walk.array(np.int32, n).astype(np.int64)
    offsets = walk.array(np.uint64, n + 1).astype(np.int64)
    neighbours = walk.array(np.int32, int(offsets[-1]))  # the largest part: not copied
    entry, top = walk.number("<i"), walk.number("<i")
    walk.skip(3 * 4)
    walk.see(len(places) >= 2 and not places[0] and bool((np.diff(places) >= 0).all()), wrong)
    walk.see(bool(((levels >= 1) & (levels < len(places))).all()), wrong)
    walk.see(not offsets[0] and bool((np.diff(offsets) == places[levels]).all()), wrong)
    walk.see(not len(neighbours) or (int(neighbours.min()) >= -1 and int(neighbours.max()) < n), wrong)
    walk.see(0 <= entry < n and 0 <= top < len(places) - 1 and levels[entry] == top + 1, wrong)
    for level in range(1, int(levels.max())):
        nodes = np.flatnonzero(levels > level)
        at = offsets[nodes, None] + np.arange(places[level], places[level + 1])
        found = neighbours[at]
        # A neighbour must have this level too, or faiss reads beyond its own.
        walk.see(bool((levels[found[found >= 0]] > level).all()), wrong)


def _flat(walk: _Walk, d: int, metric: int) -> int:
    return 4 * d


def _scalar(walk: _Walk, d: int, metric: int) -> int:
    kind = walk.number("<i")
    bits, (each, all_) = _SCALAR.get(kind, (0, (0, 0)))
    walk.see(bits > 0, f"it has codes of kind {kind}")
    walk.skip(4 + 4)
    walk.see(walk.number("<Q") == d, "its codes are of other dimensions")
    size = (d * bits + 7) // 8
    walk.see(walk.number("<Q") == size, "its codes are of another size")
    walk.see(walk.vector(4) == each * d + all_, "its code was trained for other dimensions")
    walk.see(walk.number("<Q") == size, "its codes are of another size")
    walk.flag()
    return size


def _by_product(walk: _Walk, d: int, metric: int) -> int:
    walk.flag()
    size = walk.number("<Q")
    m, bits = _product(walk, d)
    walk.see(size == (m * bits + 7) // 8, "its codes are of another size")
    return size


def _product(walk: _Walk, d: int) -> tuple[int, int]:
    """Parts and bits of a product quantizer."""
    wide, m, bits = (walk.number("<Q") for _ in range(3))
    fits = wide == d and 1 <= m <= d and d % m == 0 and 1 <= bits <= 24
    walk.see(fits, "its product quantizer is of other dimensions")
    walk.see(walk.vector(4) == d << bits, "its product quantizer has other centroids than it says")
    return m, bits


def _signs(walk: _Walk, d: int, metric: int, *, several: bool = False) -> int:
    walk.see(walk.number("<Q") == d, "its codes are of other dimensions")
    inner = walk.number("<Q")
    walk.see(walk.number("<i") == metric, "its codes are for another metric")
    bits = walk.number("<Q") if several else 1
    walk.see(1 <= bits <= 9, f"its codes are of {bits} bits")
    size = walk.number("<Q")
    walk.flag()
    walk.see(0 <= walk.number("<B") <= 8, "queries have other bits than can be")
    walk.see(inner == size == _signs_bytes(d, bits), "its codes are of another size")
    return size


def _signs_bytes(d: int, bits: int) -> int:
    """Bytes of a RaBitQ code: signs and factors, and with several bits more of both."""
    return -(-d // 8) + 8 if bits == 1 else -(-d // 8) + 12 + -(-d * (bits - 1) // 8) + 8


def _several(walk: _Walk, d: int, metric: int) -> int:
    return _signs(walk, d, metric, several=True)


def _eden(walk: _Walk, d: int, metric: int) -> int:
    walk.see(walk.number("<Q") == d, "its codes are of other dimensions")
    inner = walk.number("<Q")
    walk.see(walk.number("<i") == metric, "its codes are for another metric")
    bits, scale = walk.number("<Q"), walk.number("<i")
    walk.see(1 <= bits <= 8 and 0 <= scale <= 2, f"its codes are of {bits} bits")
    size = walk.number("<Q")
    walk.flag()
    walk.see(
        inner == size and -(-d * bits // 8) < size <= -(-d * bits // 8) + 16, "its codes are of another size"
    )
    return size


_CODES = {
    "IwFl": _flat,
    "IwSq": _scalar,
    "IwPQ": _by_product,
    "Iwrq": _signs,
    "Iwrr": _several,
    "IwEe": _eden,
}


def _lists(walk: _Walk, wanted: str, nlist: int, code_size: int) -> dict[str, Any]:
    kind = walk.word()
    walk.see(kind == wanted, f"its lists are of kind {kind!r}")
    walk.see((walk.number("<Q"), walk.number("<Q")) == (nlist, code_size), "it has other lists than it says")
    if kind == _IN_MEMORY:
        walk.see(walk.word() == "sprs" and walk.number("<Q") == 0, "it holds rows")
        none = np.empty(0, np.int64)
        return {"sizes": none, "offsets": none, "end": 0}
    # Entries, room, and the byte where each list begins.
    table = walk.array(np.uint64, 3 * nlist, of=nlist).reshape(nlist, 3)
    walk.vector(16, most=16)  # room that is left over, and the name of the file: neither is used
    walk.vector(1, most=4096)
    return {
        "sizes": np.ascontiguousarray(table[:, 0]).view(np.int64),
        "offsets": np.ascontiguousarray(table[:, 2]).view(np.int64),
        "end": walk.number("<Q"),
    }


class _Walk:
    """A file that is gone through front to back."""

    def __init__(self, path: Path, file: int) -> None:
        self._path, self._file, self._at = path, file, 0
        self._size = os.fstat(file).st_size
        self._read = b""
        self._from = 0

    @classmethod
    def of(cls, path: Path) -> Self:
        try:
            return cls(path, os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)))
        except OSError as error:
            raise IndexDirError(
                f"{path} cannot be read: {error.strerror}",
                kind="index-damaged",
                hint="Copy the directory anew, or remove it and build.",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def see(self, holds: bool, why: str) -> None:
        """Raise where the file is not as it must be."""
        if not holds:
            raise self.damaged(why)

    def damaged(self, why: str) -> IndexDirError:
        return IndexDirError(
            f"{self._path} is damaged near byte {self._at}, or was written by a newer faiss: {why}",
            kind="index-damaged",
            hint="Copy the directory anew, mend it with `ooc verify --repair`, or remove it and build.",
        )

    def skip(self, count: int) -> None:
        """Pass over bytes, which must be there."""
        if count > self._size - self._at:
            raise self.damaged("it ends early")
        self._at += count

    def take(self, count: int) -> bytes:
        begin = self._at
        self.skip(count)
        if not self._from <= begin or self._at > self._from + len(self._read):
            self._from = begin
            self._read = os.pread(self._file, max(count, _READ_BYTES), begin)
        data = self._read[begin - self._from : self._at - self._from]
        self.see(len(data) == count, "it ends early")
        return data

    def word(self) -> str:
        """What is there: four characters."""
        return self.take(4).decode("latin-1")

    def number(self, code: str) -> int:
        """A whole number, as ``struct`` reads it."""
        return int(struct.unpack(code, self.take(struct.calcsize(code)))[0])

    def flag(self) -> bool:
        value = self.number("<B")
        self.see(value <= 1, f"it has {value} where yes or no is wanted")
        return value == 1

    def index(self) -> tuple[int, int, int]:
        """What every index begins with: dimensions, metric, and how many vectors it has."""
        d, total = self.number("<i"), self.number("<q")
        self.skip(16)
        trained, metric = self.flag(), self.number("<i")
        self.see(1 <= d <= _MOST_D and total >= 0, f"it has {total} vectors of {d} dimensions")
        self.see(trained, "it was not trained")
        self.see(metric in _METRICS, f"it has a metric of number {metric}")
        return d, metric, total

    def vector(self, item: int, expected: int | None = None, *, most: int | None = None) -> int:
        """Pass over a vector of items of so many bytes; how many it has."""
        count = self.number("<Q")
        fits = expected in (None, count) and (most is None or count <= most)
        self.see(fits and count <= (self._size - self._at) // item, f"it has a vector of {count} values")
        self.skip(count * item)
        return count

    def array(
        self, dtype: DTypeLike, expected: int | None = None, *, most: int | None = None, of: int | None = None
    ) -> AnyArray:
        """A vector's values. Its length counts the items ``of`` which it is, where they have several."""
        kind = np.dtype(dtype)
        count = self.number("<Q")
        if of is not None:
            self.see(count == of, f"it has a vector of {count} values")
            count = expected or 0
        fits = expected in (None, count) and (most is None or count <= most)
        room = (self._size - self._at) // kind.itemsize
        self.see(fits and count <= room, f"it has a vector of {count} values")
        return np.frombuffer(self.take(count * kind.itemsize), kind)

    def finish(self) -> None:
        """See that nothing comes after what was read."""
        self.see(self._at == self._size, "there are bytes after its end")
