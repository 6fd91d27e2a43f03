"""A file of lists opened through faiss's ``OnDiskInvertedLists``."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ooc.engine.coarse import Coarse
from ooc.engine.codec import ID_BYTES, Codec, check_platform, read_index, vectors
from ooc.engine.handicap import Handicap
from ooc.engine.select import Selector
from ooc.errors import IndexDirError
from ooc.mapping import advise_random, let_go
from ooc.types import FloatArray, IntArray

__all__ = ["DiskLists"]

#: ``parallel_mode`` of a scan: queries are divided among threads, and a query alone has one.
_BY_QUERIES = 3

#: A header ends with the number of bytes of its lists.
_END_BYTES = 8


def _parameters(nprobe: int, selector: Selector | None) -> Any:
    if selector is None:
        return faiss.SearchParametersIVF(nprobe=nprobe)
    return faiss.SearchParametersIVF(nprobe=nprobe, sel=selector.native)


class DiskLists:
    """A file of lists opened through faiss's ``OnDiskInvertedLists``, read-only.

    Opening maps the header and the lists and reads next to nothing. Safe from several threads.

    Parameters
    ----------
    header, lists : Path
        What ``Codec.save_header`` wrote, and the lists.
    sketch : Path, optional
        What ``Sketch.save`` wrote, of the centroids in transformed space; without, all are compared.
    handicap : Handicap, optional
        In which order lists are found, and a sketch proposes them; without, the nearest comes first.

    Attributes
    ----------
    sizes, offsets : (nlist,) int64
        Entries of each list, and the byte where it begins.
    """

    def __init__(
        self, header: Path, lists: Path, sketch: Path | None = None, handicap: Handicap | None = None
    ) -> None:
        check_platform()
        flags = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
        # Centroids are mapped: they are the kernel's to take back.
        self._codec = Codec(read_index(header, flags | faiss.IO_FLAG_MMAP_IFC))
        self._ivf = self._codec._ivf
        self._lists = faiss.downcast_InvertedLists(self._ivf.invlists)
        if type(self._lists).__name__ != "OnDiskInvertedLists":
            raise IndexDirError(f"{header} does not point to lists on disk", kind="index-damaged")
        self.d, self.d_code = self._codec.d, self._codec.d_code
        self.nlist, self.code_size = self._codec.nlist, self._codec.code_size
        self.sizes, self.offsets = self._table()
        self._check(header, lists)
        self._lists.filename = str(lists)
        self._lists.read_only = True
        self._lists.prefetch_nthread = 0  # reads are asked for by advice, not by threads that touch pages
        self._lists.do_mmap()
        self._ivf.parallel_mode = _BY_QUERIES
        self._ranging = threading.Lock()
        self._coarse = Coarse(self._codec, sketch, handicap)
        self._lists_at = int(self._lists.ptr) if self.entries else 0
        # What was not asked for ahead costs its own pages and no more.
        advise_random(self._lists_at, int(self._lists.totsize))
        if hasattr(self._ivf, "use_precomputed_table"):
            self._ivf.use_precomputed_table = 0

    def _table(self) -> tuple[IntArray, IntArray]:
        """Sizes and offsets out of faiss's vector of {size, capacity, offset}, without a call a list."""
        count = self._lists.lists.size()
        if count != self.nlist:
            raise IndexDirError(
                f"the header has {self.nlist} lists and places for {count}", kind="index-damaged"
            )
        pointer = ctypes.c_size_t * (3 * count)
        raw = np.frombuffer(pointer.from_address(int(self._lists.lists.data().this)), np.uint64)
        table = raw.reshape(count, 3).astype(np.int64)
        return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 2])

    def _check(self, header: Path, lists: Path) -> None:
        """Everything that faiss will address must lie within the file: it checks nothing itself."""
        try:
            size = lists.stat().st_size
        except FileNotFoundError:
            raise IndexDirError(f"the lists are missing: {lists}", kind="index-damaged") from None
        ends = self.offsets + self.sizes * (self.code_size + ID_BYTES)
        inside = (self.sizes >= 0) & (self.offsets >= 0) & (ends >= self.offsets) & (ends <= size)
        with header.open("rb") as file:
            file.seek(-_END_BYTES, os.SEEK_END)
            # Of a mapped header that was cut within its last number, faiss reads zeros beyond the end.
            end = int.from_bytes(file.read(), "little")
        if not inside.all() or not int(self._lists.totsize) == size == end:
            raise IndexDirError(
                f"{lists} has {size} bytes and {header} speaks of {end}",
                kind="index-damaged",
                hint="It was cut short or is another one: copy the directory anew, or remove it and build.",
            )

    @property
    def centroids(self) -> FloatArray:
        """``(nlist, d_code)``, in transformed space: a view of what is mapped."""
        return self._codec.centroids()

    @property
    def has_graph(self) -> bool:
        """Whether a graph finds centroids."""
        return self._codec.has_graph

    @property
    def entries(self) -> int:
        """Entries in all lists."""
        return int(self.sizes.sum())

    def list_bytes(self, list_nos: IntArray) -> IntArray:
        """Bytes of the given lists."""
        return self.sizes[list_nos] * (self.code_size + ID_BYTES)

    def ids_at(self, list_nos: IntArray) -> tuple[IntArray, IntArray]:
        """``(byte offset, count)`` of the ids of the given lists."""
        return self.offsets[list_nos] + self.sizes[list_nos] * self.code_size, self.sizes[list_nos]

    def transform(self, x: FloatArray) -> FloatArray:
        """``(m, d)`` rows or queries as the code sees them, ``(m, d_code)``."""
        return self._codec.transform_queries(x)

    def coarse(self, y: FloatArray, nprobe: int, *, ahead: bool = False) -> tuple[FloatArray, IntArray]:
        """The ``nprobe`` lists to look into first for transformed queries, see ``Coarse.find``."""
        return self._coarse.find(vectors(y, self.d_code), nprobe, ahead=ahead)

    def order(self, y: FloatArray) -> tuple[IntArray, FloatArray]:
        """All lists of each transformed query, see ``Coarse.order``."""
        return self._coarse.order(vectors(y, self.d_code))

    def reaches(self, y: FloatArray, coarse: FloatArray, list_nos: IntArray) -> FloatArray:
        """How far a search must reach for each list, see ``Coarse.reaches``."""
        return self._coarse.reaches(vectors(y, self.d_code), coarse, list_nos)

    def looks(self, y: FloatArray) -> FloatArray:
        """How near the centroids are to transformed queries, see ``Coarse.looks``."""
        return self._coarse.looks(vectors(y, self.d_code))

    def let_go(self, offset: int, length: int) -> None:
        """Unmap pages of the lists, which may then leave the page cache; they come back when touched."""
        let_go(self._lists_at + offset, length)

    def scan(
        self,
        y: FloatArray,
        list_nos: IntArray,
        coarse: FloatArray,
        k: int,
        selector: Selector | None = None,
    ) -> tuple[FloatArray, IntArray]:
        """The ``k`` best rows by code in the given lists of each query: ``(nq, k)`` distances and ids.

        Distances are those of the code; ids are -1 where there are fewer than ``k`` that the selector
        allows. List numbers of -1 are passed over.
        """
        y = vectors(y, self.d_code)
        nq, nprobe = list_nos.shape
        lists = np.ascontiguousarray(list_nos, dtype=np.int64)
        coarse = np.ascontiguousarray(coarse, dtype=np.float32)
        distances = np.empty((nq, k), np.float32)
        ids = np.empty((nq, k), np.int64)
        params = _parameters(nprobe, selector)
        self._ivf.search_preassigned_c(
            nq,
            faiss.swig_ptr(y),
            k,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(coarse),
            faiss.swig_ptr(distances),
            faiss.swig_ptr(ids),
            False,
            params,
        )
        return distances, ids

    def range_scan(
        self,
        y: FloatArray,
        list_nos: IntArray,
        coarse: FloatArray,
        radius: float,
        selector: Selector | None = None,
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """All rows within ``radius`` by code in the given lists: faiss's ``lims, D, I``."""
        y = vectors(y, self.d_code)
        nq, nprobe = list_nos.shape
        lists = np.ascontiguousarray(list_nos, dtype=np.int64)
        coarse = np.ascontiguousarray(coarse, dtype=np.float32)
        result = faiss.RangeSearchResult(nq)
        params = _parameters(nprobe, selector)
        with self._ranging:
            # faiss refuses a range search in the other mode; a search that meets this one has one thread.
            self._ivf.parallel_mode = 0
            try:
                self._ivf.range_search_preassigned_c(
                    nq,
                    faiss.swig_ptr(y),
                    radius,
                    faiss.swig_ptr(lists),
                    faiss.swig_ptr(coarse),
                    result,
                    False,
                    params,
                )
            finally:
                self._ivf.parallel_mode = _BY_QUERIES
        lims = faiss.rev_swig_ptr(result.lims, nq + 1).astype(np.int64)
        total = int(lims[-1])
        if total == 0:
            return lims, np.empty(0, np.float32), np.empty(0, np.int64)
        return (
            lims,
            faiss.rev_swig_ptr(result.distances, total).copy(),
            faiss.rev_swig_ptr(result.labels, total).copy(),
        )

    def close(self) -> None:
        """Unmap the lists; the object must not be used afterwards."""
        self._ivf = self._lists = None
        self._coarse = None  # type: ignore[assignment]
        self._codec = None  # type: ignore[assignment]
