"""Files of lists opened through faiss's ``OnDiskInvertedLists``, scanned together as one."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ooc.engine.coarse import Coarse
from ooc.engine.codec import ID_BYTES, Codec, check_platform, read_index, vectors
from ooc.engine.handicap import Handicap
from ooc.engine.select import Selector
from ooc.engine.skeleton import header_skeleton
from ooc.errors import IndexDirError
from ooc.mapping import advise_random, let_go
from ooc.types import FloatArray, IntArray

__all__ = ["DiskLists"]

#: ``parallel_mode`` of a scan: queries are divided among threads, and a query alone has one.
_BY_QUERIES = 3


def _parameters(nprobe: int, selector: Selector | None) -> Any:
    if selector is None:
        return _unselected(nprobe)
    return faiss.SearchParametersIVF(nprobe=nprobe, sel=selector.native)


@functools.lru_cache
def _unselected(nprobe: int) -> Any:
    """Of these searches nothing is changed, so one will do for all."""
    return faiss.SearchParametersIVF(nprobe=nprobe)


class DiskLists:
    """Files of lists opened through faiss's ``OnDiskInvertedLists``, read-only.

    Opening maps the header and the lists and reads next to nothing. Safe from several threads. Where there
    are several files, a list is what each of them has of it, one after the other; faiss puts that together
    as it comes to the list (``HStackInvertedLists``), so a query is prepared for a list once.

    Parameters
    ----------
    header, lists : Path
        What ``Codec.save_header`` wrote, and the lists.
    more : sequence of (Path, (nlist,) int64)
        Further files of lists, laid out alike, and how many entries each of their lists has.
    sketch : Path, optional
        What ``Sketch.save`` wrote, of the centroids in transformed space; without, all are compared.
    handicap : Handicap, optional
        In which order lists are found, and a sketch proposes them; without, the nearest comes first.

    Attributes
    ----------
    sizes : (nlist,) int64
        Entries of each list, of all files.
    skeleton : Skeleton
        What the structure of the header says.
    in_file, offsets : list of (nlist,) int64
        Entries of each list in each file, and the byte where it begins there.
    """

    def __init__(
        self,
        header: Path,
        lists: Path,
        sketch: Path | None = None,
        handicap: Handicap | None = None,
        *,
        more: Sequence[tuple[Path, IntArray]] = (),
    ) -> None:
        check_platform()
        self.skeleton = header_skeleton(header)
        flags = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
        # Centroids are mapped: they are the kernel's to take back.
        self._codec = Codec(read_index(header, flags | faiss.IO_FLAG_MMAP_IFC))
        self._ivf = self._codec._ivf
        self._lists = faiss.downcast_InvertedLists(self._ivf.invlists)
        if type(self._lists).__name__ != "OnDiskInvertedLists":
            raise IndexDirError(f"{header} does not point to lists on disk", kind="index-damaged")
        self.d, self.d_code = self._codec.d, self._codec.d_code
        self.nlist, self.code_size = self._codec.nlist, self._codec.code_size
        sizes, offsets = self._table(header, lists)
        self.in_file = [sizes, *(of for _, of in more)]
        entry = self.code_size + ID_BYTES
        self.offsets: list[IntArray] = [offsets, *((np.cumsum(of) - of) * entry for _, of in more)]
        self.sizes: IntArray = np.sum(self.in_file, axis=0, dtype=np.int64)
        #: Of each file; and where its lists are mapped.
        if more:
            self._files = [self._opened(lists, sizes), *(self._opened(path, of) for path, of in more)]
            self._stack()
        else:
            self._files = [_mapped(self._lists, lists)]
        self._lists_at = [
            int(file.ptr) if of.any() else 0 for file, of in zip(self._files, self.in_file, strict=True)
        ]
        for at, file in zip(self._lists_at, self._files, strict=True):
            # What was not asked for ahead costs its own pages and no more.
            advise_random(at, int(file.totsize))
        self._ivf.parallel_mode = _BY_QUERIES
        self._ranging, self._ranges = threading.Lock(), 0
        self._coarse = Coarse(self._codec, sketch, handicap)
        if hasattr(self._ivf, "use_precomputed_table"):
            self._ivf.use_precomputed_table = 0

    def _opened(self, path: Path, sizes: IntArray) -> Any:
        """A file of lists that lie one after the other."""
        entry = self.code_size + ID_BYTES
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise IndexDirError(f"the lists are missing: {path}", kind="index-damaged") from None
        if sizes.shape != (self.nlist,) or (sizes < 0).any() or found != int(sizes.sum()) * entry:
            raise IndexDirError(
                f"{path} has {found} bytes, which its {self.nlist} lists do not take",
                kind="index-damaged",
                hint="It was cut short or is another one: copy the directory anew, or remove it and build.",
            )
        lists = faiss.OnDiskInvertedLists()
        lists.nlist, lists.code_size = self.nlist, self.code_size
        lists.lists.resize(self.nlist)
        numbers = np.ascontiguousarray(sizes, dtype=np.uint64)  # lives until faiss has read it
        lists.set_all_lists_sizes(faiss.swig_ptr(numbers))
        lists.totsize = found
        return _mapped(lists, path)

    def _stack(self) -> None:
        """Let faiss see all files as one; those that it read with the header go."""
        self._lists = None
        pointers = faiss.InvertedListsPtrVector()
        for file in self._files:
            pointers.push_back(file)
        self._stacked = faiss.HStackInvertedLists(pointers.size(), pointers.data())
        self._ivf.replace_invlists(self._stacked, False)

    def _table(self, header: Path, lists: Path) -> tuple[IntArray, IntArray]:
        """Sizes and offsets of the lists: all that faiss will address lies within the file."""
        found, entry = self.skeleton, self.code_size + ID_BYTES
        sizes, offsets = found.sizes, found.offsets
        try:
            size = lists.stat().st_size
        except FileNotFoundError:
            raise IndexDirError(f"the lists are missing: {lists}", kind="index-damaged") from None
        # Compared before they are multiplied: a product could be beyond its type.
        inside = (sizes >= 0) & (sizes <= size // entry) & (offsets >= 0) & (offsets <= size)
        whole = inside.all() and (offsets + sizes * entry <= size).all()
        if not whole or not int(self._lists.totsize) == size == found.end:
            raise IndexDirError(
                f"{lists} has {size} bytes and {header} speaks of {found.end}",
                kind="index-damaged",
                hint="It was cut short or is another one: copy the directory anew, or remove it and build.",
            )
        return sizes, offsets

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

    def let_go(self, file: int, offset: int, length: int) -> None:
        """Unmap pages of a file, which may then leave the page cache; they come back when touched."""
        let_go(self._lists_at[file] + offset, length)

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
        with self._range_mode():
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

    @contextlib.contextmanager
    def _range_mode(self) -> Iterator[None]:
        """While any is run: faiss refuses them in the other mode. A search beside one has one thread."""
        with self._ranging:
            self._ranges += 1
            self._ivf.parallel_mode = 0
        try:
            yield
        finally:
            with self._ranging:
                self._ranges -= 1
                if not self._ranges:
                    self._ivf.parallel_mode = _BY_QUERIES

    def close(self) -> None:
        """Unmap the lists; the object must not be used afterwards."""
        self._ivf = self._lists = None
        self._files = []
        self._stacked = None
        self._coarse = None  # type: ignore[assignment]
        self._codec = None  # type: ignore[assignment]


def _mapped(lists: Any, path: Path) -> Any:
    """Lists of which sizes and places are known, mapped."""
    lists.filename = str(path)
    lists.read_only = True
    lists.prefetch_nthread = 0  # reads are asked for by advice, not by threads that touch pages
    if int(lists.totsize):
        lists.do_mmap()
    return lists
