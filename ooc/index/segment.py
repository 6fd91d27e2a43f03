"""A published segment, opened for reading: lists scanned through faiss, ids and copied rows mapped."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ooc.durable import read_json
from ooc.engine import DiskLists, Selector
from ooc.errors import IndexDirError
from ooc.index.layout import SegmentLayout
from ooc.index.lists import ID_BYTES
from ooc.index.order import Order
from ooc.mapping import MappedFile, joined
from ooc.stores import Store, open_store
from ooc.stores.npy import open_npy
from ooc.stores.scaled import ScaledStore
from ooc.types import FloatArray, IntArray

__all__ = ["Segment"]


class Segment:
    """One set of lists. Opening reads the header and maps the rest.

    Safe from several threads, until it is closed.

    Parameters
    ----------
    layout : SegmentLayout
    lists_per_row : int
        How many lists a row is in.
    order : Order, optional
        How lists are found; by default the nearest first, all centroids compared.

    Attributes
    ----------
    rows, entries : int
        Rows, and their entries in the lists: ``lists_per_row`` of each row.
    d, d_code : int
        Dimensions, before and after the transforms.
    sizes : (nlist,) int64
        Entries of each list.
    """

    def __init__(self, layout: SegmentLayout, lists_per_row: int = 1, order: Order | None = None) -> None:
        self.layout = layout
        self.record: dict[str, Any] = read_json(layout.record, what="the segment's record")
        self._check_sizes()
        order = order or Order()
        self._lists = DiskLists(layout.header, layout.lists, order.sketch, order.handicap)
        # A mapping of its own for advice and ids; the kernel shares the pages with faiss's.
        self.lists_per_row = lists_per_row
        self.entries = self._lists.entries
        self._file = MappedFile(layout.lists, random=True) if self.entries else None
        self.rows = self.entries // lists_per_row
        if self.record.get("rows") != self.rows or self.entries % lists_per_row:
            raise IndexDirError(
                f"{layout.header} has {self.entries} entries, {lists_per_row} of each row, "
                f"and its record {self.record.get('rows')!r} rows",
                kind="index-damaged",
            )
        self.d, self.nlist, self.code_size = self._lists.d, self._lists.nlist, self._lists.code_size
        self.d_code, self.sizes = self._lists.d_code, self._lists.sizes

    def _check_sizes(self) -> None:
        expected = self.record.get("bytes")
        if not isinstance(expected, dict):
            raise IndexDirError(f"{self.layout.record} is damaged", kind="index-damaged")
        for name, size in expected.items():
            if name not in ("index.faiss", "lists.ivfdata", "vectors.npy", "scales.npy", "blocks.xxh3"):
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

    def open_vectors(self) -> Store | None:
        """The rows that the index keeps itself, by row number; None where it keeps none.

        Those with scales come as float32.
        """
        if "vectors.npy" not in self.record["bytes"]:
            return None
        if "scales.npy" in self.record["bytes"]:
            return ScaledStore(open_npy(self.layout.vectors), open_npy(self.layout.scales))
        return open_store(self.layout.vectors)

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

    def will_need(self, list_nos: IntArray, part: Literal["all", "codes", "ids"] = "all") -> int:
        """Start reading lists, or their codes or ids alone; how many reads were asked for.

        In the order of the file, neighbours together; numbers of -1 are passed over.
        """
        if self._file is None:
            return 0
        numbers = np.unique(list_nos)
        numbers = numbers[numbers >= 0]
        begins = self._lists.offsets[numbers]
        ends = begins + self._lists.list_bytes(numbers)
        if part != "all":
            middle, _ = self._lists.ids_at(numbers)
            begins, ends = (begins, middle) if part == "codes" else (middle, ends)
        return self._file.will_need_spans(*joined(begins, ends))

    def let_go(self, list_nos: IntArray) -> None:
        """Let the pages of lists leave memory and the page cache."""
        if self._file is None:
            return
        numbers = np.unique(list_nos[list_nos >= 0])
        begins = self._lists.offsets[numbers]
        firsts, lasts = joined(begins, begins + self._lists.list_bytes(numbers))
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            self._lists.let_go(first, last - first)
            self._file.drop(first, last - first)

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
        if self._file is None or not len(numbers):
            return np.empty(0, np.int64)
        offsets, counts = self._lists.ids_at(numbers)
        data = self._file.bytes
        parts = [
            data[at : at + count * ID_BYTES]
            for at, count in zip(offsets.tolist(), counts.tolist(), strict=True)
        ]
        return np.concatenate(parts).view(np.int64)

    def close(self) -> None:
        """Give the mappings up; may be called twice."""
        self._lists.close()
        if self._file is not None:
            self._file.close()
