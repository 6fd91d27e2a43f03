"""Published segments, opened for reading: lists scanned through faiss, ids and copied rows mapped.

A generation has one segment or several. A search sees them as one: it finds lists once, asks for what all
segments have of them together, and scans a list of all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ooc.durable import read_json
from ooc.engine import DiskLists, Selector
from ooc.errors import IndexDirError
from ooc.index.layout import SegmentLayout
from ooc.index.lists import ID_BYTES, list_groups
from ooc.index.order import Order
from ooc.mapping import MappedFile, joined
from ooc.stores import Store, open_store
from ooc.stores.npy import open_npy
from ooc.stores.scaled import ScaledStore
from ooc.types import AnyArray, BytesArray, FloatArray, IntArray
from ooc.vectors import distinct

__all__ = ["Segment", "Segments", "open_vectors", "read_checksums", "read_ids", "read_sizes"]

_Part: TypeAlias = Literal["all", "codes", "ids"]

#: What may lie in the directory of a segment besides its record.
_FILES = (
    "index.faiss", "sizes.npy", "lists.ivfdata", "ids.npy", "vectors.npy", "scales.npy", "blocks.xxh3",
    "keys.npy", "keys.utf8", "key_offsets.npy", "key_hashes.npy", "key_rows.npy",
)  # fmt: skip

#: Ids of lists that are looked at together.
_IDS_BYTES = 16 * 1024 * 1024


class Segment:
    """The directory of one segment: what its record says, the ids in its lists, its own rows.

    Parameters
    ----------
    layout : SegmentLayout

    Attributes
    ----------
    record : dict
        What ``segment.json`` says.
    rows, entries : int
        Rows in the lists, and their entries.
    """

    def __init__(self, layout: SegmentLayout) -> None:
        self.layout = layout
        self.record: dict[str, Any] = read_json(layout.record, what="the segment's record")
        self._check_files()
        rows, entries = self.record.get("rows"), self.record.get("entries")
        if not isinstance(rows, int) or not isinstance(entries, int) or not 0 <= rows <= entries:
            raise IndexDirError(
                f"{layout.record} is damaged: rows {rows!r}, entries {entries!r}", kind="index-damaged"
            )
        self.rows, self.entries = rows, entries
        # A mapping of its own for advice and ids; the kernel shares the pages with faiss's.
        self.file = MappedFile(layout.lists, random=True) if entries else None

    def _check_files(self) -> None:
        expected = self.record.get("bytes")
        if not isinstance(expected, dict):
            raise IndexDirError(f"{self.layout.record} is damaged", kind="index-damaged")
        for name, size in expected.items():
            if name not in _FILES:
                raise IndexDirError(f"{self.layout.record} names a file {name!r}", kind="index-damaged")
            path = self.layout.root / name
            try:
                found = path.stat().st_size
            except FileNotFoundError:
                raise IndexDirError(
                    f"{path} is missing",
                    kind="index-damaged",
                    hint="Copy the whole directory, or remove it and build.",
                ) from None
            if found != size:
                raise IndexDirError(
                    f"{path} has {found} bytes and its record says {size}",
                    kind="index-damaged",
                    hint="It was cut short or changed: copy the directory anew, or remove it and build.",
                )

    def sizes(self, nlist: int) -> IntArray:
        """Entries of each list ``(nlist,)``, of a segment without a header of its own."""
        return read_sizes(self.layout.sizes, nlist)

    def id_bytes(self, offsets: IntArray, counts: IntArray) -> list[BytesArray]:
        """The ids of some lists as bytes: views, by where they begin and how many ids they are."""
        data = np.empty(0, np.uint8) if self.file is None else self.file.bytes
        ends = offsets + counts * ID_BYTES
        return [data[at:end] for at, end in zip(offsets.tolist(), ends.tolist(), strict=True)]

    def close(self) -> None:
        """Give the mapping up; may be called twice."""
        if self.file is not None:
            self.file.close()


def open_vectors(layout: SegmentLayout) -> Store:
    """The rows that the index keeps in the directory of a segment; those with scales come as float32."""
    if layout.scales.exists():
        return ScaledStore(open_npy(layout.vectors), open_npy(layout.scales))
    return open_store(layout.vectors)


def read_checksums(path: Path) -> dict[str, list[str]]:
    """What ``blocks.xxh3`` says: checksums by file name."""
    found: dict[str, list[str]] = {}
    try:
        for line in path.read_text().splitlines():
            digest, name, number = line.split("  ")
            digests = found.setdefault(name, [])
            if int(number) != len(digests):
                raise ValueError(line)
            digests.append(digest)
    except (OSError, ValueError) as error:
        raise IndexDirError(
            f"{path} cannot be read: {error}",
            kind="index-damaged",
            hint="Copy the whole directory anew, or remove it and build.",
        ) from error
    return found


def read_sizes(path: Path, nlist: int) -> IntArray:
    """What ``sizes.npy`` holds: entries of each list ``(nlist,)`` int64."""
    try:
        sizes: IntArray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexDirError(
            f"{path} cannot be read: {error}",
            kind="index-damaged",
            hint="Copy the whole directory anew, or remove it and build.",
        ) from error
    if sizes.shape != (nlist,) or sizes.dtype != np.int64 or (sizes < 0).any():
        raise IndexDirError(f"{path} does not hold the sizes of {nlist} lists", kind="index-damaged")
    return sizes


def read_ids(layout: SegmentLayout, rows: int) -> IntArray:
    """The id of each row that a segment brought, ``(rows,)`` int64, ascending, mapped."""
    try:
        ids: IntArray = np.load(layout.ids, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexDirError(
            f"{layout.ids} cannot be read: {error}",
            kind="index-damaged",
            hint="Copy the whole directory anew, or remove it and build.",
        ) from error
    if ids.shape != (rows,) or ids.dtype != np.int64:
        raise IndexDirError(f"{layout.ids} does not hold {rows} ids", kind="index-damaged")
    return ids


class Segments:
    """The segments of a generation as one. Opening reads the header and maps the rest.

    Safe from several threads, until it is closed.

    Parameters
    ----------
    layouts : sequence of SegmentLayout
        At least one, in the order of their rows; the first one has a header.
    lists_per_row : int
        How many lists a row is in.
    order : Order, optional
        How lists are found; by default the nearest first, all centroids compared.

    Attributes
    ----------
    each : list of Segment
    rows, entries : int
        Rows, and their entries in the lists: ``lists_per_row`` of each row.
    d, d_code : int
        Dimensions, before and after the transforms.
    sizes : (nlist,) int64
        Entries of each list.
    """

    def __init__(
        self, layouts: Sequence[SegmentLayout], lists_per_row: int = 1, order: Order | None = None
    ) -> None:
        self.each = [Segment(layout) for layout in layouts]
        order = order or Order()
        first, others = layouts[0], self.each[1:]
        nlist = 0 if not others else len(np.load(others[0].layout.sizes, mmap_mode="r"))
        more = [(one.layout.lists, one.sizes(nlist)) for one in others]
        self._lists = DiskLists(first.header, first.lists, order.sketch, order.handicap, more=more)
        self.lists_per_row = lists_per_row
        for one, sizes in zip(self.each, self._lists.in_file, strict=True):
            if one.entries != int(sizes.sum()) or one.rows * lists_per_row != one.entries:
                raise IndexDirError(
                    f"{one.layout.root} has {int(sizes.sum())} entries, {lists_per_row} of each row, "
                    f"and its record {one.rows} rows",
                    kind="index-damaged",
                )
        self.entries, self.rows = self._lists.entries, self._lists.entries // lists_per_row
        self.d, self.nlist, self.code_size = self._lists.d, self._lists.nlist, self._lists.code_size
        self.d_code, self.sizes = self._lists.d_code, self._lists.sizes

    @property
    def in_segments(self) -> list[IntArray]:
        """Entries of each list ``(nlist,)`` in each segment."""
        return self._lists.in_file

    @property
    def described(self) -> str:
        """Where the lists are, for messages."""
        more = f" and {len(self.each) - 1} more" if len(self.each) > 1 else ""
        return f"{self.each[0].layout.lists}{more}"

    def transform(self, x: FloatArray) -> FloatArray:
        """Queries ``(nq, d)`` as the code sees them."""
        return self._lists.transform(x)

    def coarse(self, y: FloatArray, nprobe: int, *, ahead: bool = False) -> tuple[FloatArray, IntArray]:
        """The ``nprobe`` lists that come first for transformed queries.

        Distances and numbers ``(nq, nprobe)``, -1 where a graph finds fewer. ``ahead``: centroids are asked
        of the disk first.
        """
        return self._lists.coarse(y, nprobe, ahead=ahead)

    def order(self, y: FloatArray) -> tuple[IntArray, FloatArray]:
        """Numbers of all lists ``(nq, nlist)`` in the order in which ``coarse`` finds them, and distances."""
        return self._lists.order(y)

    def reaches(self, y: FloatArray, coarse: FloatArray, list_nos: IntArray) -> FloatArray:
        """How far a search must reach for each of the lists that ``coarse`` found, ``(nq, nprobe)``."""
        return self._lists.reaches(y, coarse, list_nos)

    def looks(self, y: FloatArray) -> FloatArray:
        """Products of transformed queries with all centroids ``(nq, nlist)``; for l2 squared distances.

        These without the squared length of the query.
        """
        return self._lists.looks(y)

    @property
    def centroids(self) -> FloatArray:
        """``(nlist, d_code)`` float32, mapped, in transformed space."""
        return self._lists.centroids

    @property
    def has_graph(self) -> bool:
        """Whether a graph finds centroids."""
        return self._lists.has_graph

    def list_bytes(self, list_nos: IntArray) -> IntArray:
        """Bytes of lists, codes and ids."""
        return self._lists.list_bytes(list_nos)

    def will_need(self, list_nos: IntArray, part: _Part = "all") -> int:
        """Start reading lists, or their codes or ids alone; how many reads were asked for.

        Of all segments, in the order of their files, neighbours together; numbers of -1 are passed over.
        """
        numbers = distinct(list_nos, self.nlist)
        asked = 0
        for i, one in enumerate(self.each):
            if one.file is not None:
                asked += one.file.will_need_spans(*joined(*self._spans(i, numbers, part)))
        return asked

    def _spans(self, i: int, numbers: IntArray, part: _Part = "all") -> tuple[IntArray, IntArray]:
        """Where segment ``i`` has lists, or their codes or ids: bytes from and to."""
        sizes, begins = self._lists.in_file[i][numbers], self._lists.offsets[i][numbers]
        middles = begins + sizes * self.code_size
        ends = middles + sizes * ID_BYTES
        return (middles if part == "ids" else begins), (middles if part == "codes" else ends)

    def let_go(self, list_nos: IntArray) -> None:
        """Let the pages of lists leave memory and the page cache."""
        numbers = distinct(list_nos, self.nlist)
        for i, one in enumerate(self.each):
            if one.file is None:
                continue
            firsts, lasts = joined(*self._spans(i, numbers))
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                self._lists.let_go(i, first, last - first)
                one.file.drop(first, last - first)

    def scan(
        self,
        y: FloatArray,
        list_nos: IntArray,
        coarse: FloatArray,
        k: int,
        selector: Selector | None = None,
    ) -> tuple[FloatArray, IntArray]:
        """The ``k`` best rows by code in the given lists, of those that the selector allows: ``(nq, k)``.

        Ids are -1 where there are fewer.
        """
        return self._lists.scan(y, list_nos, coarse, k, selector)

    def range_scan(
        self,
        y: FloatArray,
        list_nos: IntArray,
        coarse: FloatArray,
        radius: float,
        selector: Selector | None = None,
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """All rows within ``radius`` by code in the given lists that the selector allows: ``lims, D, I``."""
        return self._lists.range_scan(y, list_nos, coarse, radius, selector)

    def ids(self, list_nos: IntArray) -> IntArray:
        """The ids in the given lists (numbers below 0 are passed over), one list after the other."""
        numbers = list_nos[list_nos >= 0]
        if not len(numbers):
            return np.empty(0, np.int64)
        of_each = [
            one.id_bytes(self._spans(i, numbers, "ids")[0], self._lists.in_file[i][numbers])
            for i, one in enumerate(self.each)
        ]
        # Of each list what the first segment has, then the second, and so on.
        return np.concatenate([ids for lists in zip(*of_each, strict=True) for ids in lists]).view(np.int64)

    def lists_of(self, rows: IntArray) -> AnyArray:
        """The lists ``(m, lists_per_row)`` int32 that rows ``(m,)`` are in, -1 of those in none.

        Goes through the ids of all lists.
        """
        wanted, which = np.unique(rows, return_inverse=True)
        found = np.full((len(wanted) + 1, self.lists_per_row), -1, np.int32)
        known = np.zeros(len(wanted) + 1, np.int64)
        for first, last in list_groups(self.sizes, ID_BYTES, _IDS_BYTES):
            numbers = np.arange(first, last)
            self.will_need(numbers, "ids")
            ids = self.ids(numbers)
            place = np.searchsorted(wanted, ids)
            here = np.flatnonzero((place < len(wanted)) & (np.append(wanted, -1)[place] == ids))
            lists = np.repeat(numbers, self.sizes[first:last])[here]
            for at, number in zip(place[here].tolist(), lists.tolist(), strict=True):
                found[at, known[at]] = number
                known[at] += 1
        return found[which]

    def all_ids(self) -> Iterator[IntArray]:
        """The ids of all lists, some lists at a time."""
        for first, last in list_groups(self.sizes, ID_BYTES, _IDS_BYTES):
            yield self.ids(np.arange(first, last))

    def close(self) -> None:
        """Give the mappings up; may be called twice."""
        self._lists.close()
        for one in self.each:
            one.close()
