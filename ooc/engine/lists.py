"""A file of lists opened through faiss's ``OnDiskInvertedLists``."""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ooc.engine.codec import ID_BYTES, Codec, check_platform, read_index, vectors
from ooc.engine.select import Selector
from ooc.engine.sketch import Sketch, compare
from ooc.errors import IndexDirError
from ooc.mapping import advise_random, advise_soon, let_go
from ooc.types import FloatArray, IntArray
from ooc.vectors import pick

__all__ = ["DiskLists"]

#: Centroids that a sketch proposes for each list that is probed, and so many more. Of 1M x 1024 rows in
#: 4096 lists, .995 to .999 of the nearest 16 to 256 are among them (twice as many: .98 to .99).
_SKETCH_TIMES = 3
_SKETCH_MORE = 16
#: Queries whose lists are found together: bounds the memory of what a sketch proposes.
_COARSE_QUERIES = 1024

#: ``parallel_mode`` of a scan: queries are divided among threads, and a query alone has one.
_BY_QUERIES = 3

#: Where more than one in so many centroids is wanted, all are asked for: it takes less advice.
_MOST_OF_ALL = 4

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

    Attributes
    ----------
    sizes, offsets : (nlist,) int64
        Entries of each list, and the byte where it begins.
    """

    def __init__(self, header: Path, lists: Path, sketch: Path | None = None) -> None:
        check_platform()
        flags = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
        # Centroids are mapped: they are the kernel's to take back.
        self._codec = Codec(read_index(header, flags | faiss.IO_FLAG_MMAP_IFC))
        self._ivf = self._codec._ivf
        self._quantizer = faiss.downcast_index(self._ivf.quantizer)
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
        self._sketch = None if sketch is None else Sketch.load(sketch, self.nlist, self.d_code)
        self._lists_at = int(self._lists.ptr) if self.entries else 0
        self._centroids_at = self._codec.centroids().ctypes.data
        # What was not asked for ahead costs its own pages and no more.
        advise_random(self._lists_at, int(self._lists.totsize))
        advise_random(self._centroids_at, 4 * self.nlist * self.d_code)
        self._is_hnsw = self._codec.has_graph
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
        """The ``nprobe`` nearest lists of transformed queries, nearest first.

        Parameters
        ----------
        y : (nq, d_code) float32
            Transformed queries.
        nprobe : int
            At nlist all lists are found.
        ahead : bool
            Whether centroids are asked of the disk before they are compared.

        Returns
        -------
        distances, numbers : (nq, nprobe) float32, (nq, nprobe) int64
            Where a graph finds fewer, the rest are -1.
        """
        y = vectors(y, self.d_code)
        among = _SKETCH_TIMES * nprobe + _SKETCH_MORE
        if self._sketch is not None and 2 * among <= self.nlist:
            parts = [
                self._sketched(self._sketch, y[first : first + _COARSE_QUERIES], nprobe, among, ahead)
                for first in range(0, max(len(y), 1), _COARSE_QUERIES)
            ]
            if len(parts) == 1:
                return parts[0]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        if ahead:
            self._ask_for_centroids(None)
        if self._is_hnsw and nprobe < self.nlist:
            params = faiss.SearchParametersHNSW(efSearch=max(64, 2 * nprobe))
            distances, lists = self._quantizer.search(y, nprobe, params=params)
        elif self._is_hnsw:
            distances, lists = self._flat().search(y, nprobe)
        else:
            distances, lists = self._quantizer.search(y, nprobe)
        return distances, lists

    def order(self, y: FloatArray) -> IntArray:
        """All lists of each transformed query ``(nq, d_code)``, nearest first: numbers ``(nq, nlist)``.

        As ``coarse`` at nlist, but that of lists which are equally near any may come first; far quicker.
        """
        centroids = self._codec.centroids()
        looks = vectors(y, self.d_code) @ centroids.T
        if self._ivf.metric_type == faiss.METRIC_L2:
            looks -= np.einsum("ij,ij->i", centroids, centroids) / np.float32(2)
        return np.argsort(-looks, axis=1, kind="stable")

    def _sketched(
        self, sketch: Sketch, y: FloatArray, nprobe: int, among: int, ahead: bool
    ) -> tuple[FloatArray, IntArray]:
        numbers = sketch.candidates(y, among)
        if ahead:
            self._ask_for_centroids(np.unique(numbers))
        found = compare(self._flat(), y, numbers)
        key = found if self._ivf.metric_type == faiss.METRIC_L2 else -found
        near = np.argsort(key, axis=1)[:, :nprobe]
        return pick(found, near), pick(numbers, near)

    def _ask_for_centroids(self, numbers: IntArray | None) -> None:
        """Start reading centroids; where they are many, or None is given, all of them."""
        row = 4 * self.d_code
        if numbers is None or len(numbers) * _MOST_OF_ALL > self.nlist:
            advise_soon(self._centroids_at, self.nlist * row)
            return
        for number in numbers[numbers >= 0].tolist():
            advise_soon(self._centroids_at + number * row, row)

    def _flat(self) -> Any:
        """The centroids as a flat index."""
        return faiss.downcast_index(self._quantizer.storage) if self._is_hnsw else self._quantizer

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
        self._ivf = self._lists = self._quantizer = None
        self._codec = None  # type: ignore[assignment]
