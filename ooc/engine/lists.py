"""A file of lists opened through faiss's ``OnDiskInvertedLists``."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ooc.engine.codec import ID_BYTES, Codec, check_platform, read_index, vectors
from ooc.engine.select import Selector
from ooc.errors import IndexDirError
from ooc.types import FloatArray, IntArray

__all__ = ["DiskLists"]


def _parameters(nprobe: int, selector: Selector | None) -> Any:
    if selector is None:
        return faiss.SearchParametersIVF(nprobe=nprobe)
    return faiss.SearchParametersIVF(nprobe=nprobe, sel=selector.native)


class DiskLists:
    """A file of lists opened through faiss's ``OnDiskInvertedLists``, read-only.

    Opening maps the file and reads only the header. Safe from several threads.

    Attributes
    ----------
    sizes, offsets : (nlist,) int64
        Entries of each list, and the byte where it begins.
    """

    def __init__(self, header: Path, lists: Path) -> None:
        check_platform()
        flags = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
        self._codec = Codec(read_index(header, flags))
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
        self._is_hnsw = type(self._quantizer).__name__.startswith("IndexHNSW")
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
        if not inside.all() or int(self._lists.totsize) != size:
            raise IndexDirError(
                f"{lists} has {size} bytes and {header} speaks of {int(self._lists.totsize)}",
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
        return self._codec.transform(x)

    def coarse(self, y: FloatArray, nprobe: int) -> tuple[FloatArray, IntArray]:
        """The ``nprobe`` nearest lists of transformed queries: distances and numbers, ``(nq, nprobe)``.

        Where a graph finds fewer, the rest are -1.
        """
        y = vectors(y, self.d_code)
        if self._is_hnsw and nprobe < self.nlist:
            params = faiss.SearchParametersHNSW(efSearch=max(64, 2 * nprobe))
            distances, lists = self._quantizer.search(y, nprobe, params=params)
        elif self._is_hnsw:
            flat = faiss.downcast_index(self._quantizer.storage)
            distances, lists = flat.search(y, nprobe)
        else:
            distances, lists = self._quantizer.search(y, nprobe)
        return distances, lists

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
