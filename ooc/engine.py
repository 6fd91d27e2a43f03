"""faiss, behind a few functions: the rest of the package sees numpy arrays.

Two things live here. ``Codec`` is the trained, empty index (the template): it rotates rows, encodes
them against their list, and writes the header that makes faiss open a file of lists. ``DiskLists``
is that header and file opened for reading.

What SWIG asks for is done here and only here: arrays that are contiguous, of the right dtype and
kept alive; the top object kept alive as long as a view of its parts; thread counts set in the calling
thread alone and put back.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ooc.durable import DurableFile
from ooc.errors import DataError, IndexDirError, PlanError, ResourceError
from ooc.types import BytesArray, FloatArray, IntArray, Metric

__all__ = [
    "LISTS_NAME",
    "Codec",
    "DiskLists",
    "check_platform",
    "code_bytes",
    "one_thread",
    "threads_limited",
    "version",
]

#: The name that a header gives its file of lists, relative to the header.
LISTS_NAME = "lists.ivfdata"

_ID_BYTES = 8

#: faiss index types whose lists have a fixed code size and are scanned from disk as in memory.
_WORKS_ON_DISK = {
    "IndexIVFFlat",
    "IndexIVFScalarQuantizer",
    "IndexIVFPQ",
    "IndexIVFRaBitQ",
    "IndexIVFEDEN",
}

#: Transforms that keep all distances: rows can be assigned before them.
_ISOMETRIC = {"HadamardRotation", "RandomRotationMatrix"}


def version() -> str:
    """faiss's version."""
    return str(faiss.__version__)


def check_platform() -> None:
    """Raise ResourceError where faiss has no lists on disk."""
    if sys.platform == "win32" or not hasattr(faiss, "OnDiskInvertedLists"):
        raise ResourceError(
            "faiss has no OnDiskInvertedLists on this platform",
            kind="platform",
            hint="Build and search under Linux or macOS; on Windows, inside WSL.",
        )


@contextlib.contextmanager
def threads_limited(n: int) -> Iterator[None]:
    """Let faiss use ``n`` threads for calls from this thread; other threads keep their setting."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def one_thread() -> None:
    """Let faiss use one thread for calls from this thread, for good: what a pool's thread starts with."""
    faiss.omp_set_num_threads(1)


def _faiss_metric(metric: Metric) -> int:
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def _make(factory: str, d: int, metric: Metric) -> Any:
    try:
        return faiss.index_factory(d, factory, _faiss_metric(metric))
    except RuntimeError as error:
        reason = str(error).rsplit("Error:", 1)[-1].strip().splitlines()[0]
        raise PlanError(
            f"faiss cannot make {factory!r} for {d} dimensions and metric {metric}: {reason}",
            kind="factory",
            hint="See `ooc help plan` for the codes that work.",
        ) from error


def code_bytes(factory: str, d: int, metric: Metric) -> tuple[int, int]:
    """``(bytes of a code, dimensions after the transforms)`` of an ``IVF`` factory string.

    Raises
    ------
    PlanError
        When faiss does not know the string, it does not fit ``d``, or its lists cannot lie on disk.
    """
    index = _make(factory, d, metric)
    ivf = faiss.try_extract_index_ivf(index)
    name = type(faiss.downcast_index(ivf)).__name__ if ivf is not None else type(index).__name__
    top = type(faiss.downcast_index(index)).__name__
    if ivf is None or name not in _WORKS_ON_DISK or top not in (name, "IndexPreTransform"):
        raise PlanError(
            f"{factory!r} makes a {name if ivf is not None else top}, "
            "which cannot be scanned from lists on disk",
            kind="factory",
            hint="Use one of Flat, SQ8, SQfp16, SQ4, PQ64, RaBitQ, RaBitQ2, EDEN2 as code.",
        )
    return int(ivf.code_size), int(ivf.d)


def _vectors(x: FloatArray, d: int) -> FloatArray:
    if x.ndim != 2 or x.shape[1] != d:
        raise DataError(f"vectors of shape {x.shape} where (n, {d}) is needed", kind="shape")
    return np.ascontiguousarray(x, dtype=np.float32)


class Codec:
    """A template: transforms, coarse quantizer and code, trained or to be trained; no rows.

    ``transform`` and ``encode`` are safe from several threads at once.
    """

    def __init__(self, index: Any) -> None:
        self._index = index  # owns everything below
        self._ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
        chain = getattr(index, "chain", None)
        self._chain = (
            [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
            if chain is not None
            else []
        )
        self.d = int(index.d)
        self.d_code = int(self._ivf.d)
        self.nlist = int(self._ivf.nlist)
        self.code_size = int(self._ivf.code_size)

    @classmethod
    def create(cls, factory: str, d: int, metric: Metric, seed: int) -> Codec:
        """An untrained template of an ``IVF`` factory string (see ``code_bytes`` for its checks)."""
        codec = cls(_make(factory, d, metric))
        for i, step in enumerate(codec._chain):
            if type(step).__name__ in _ISOMETRIC:
                step.init(seed + i)
        return codec

    @classmethod
    def load(cls, path: Path) -> Codec:
        """The template that ``save`` wrote."""
        return cls(_read(path, 0))

    @property
    def isometric(self) -> bool:
        """Whether the transforms keep all distances: rotations do, PCA and OPQ do not."""
        return all(type(step).__name__ in _ISOMETRIC for step in self._chain)

    def train_transforms(self, x: FloatArray) -> None:
        """Train what precedes the code (PCA, OPQ) on ``(m, d)`` rows."""
        for step in self._chain:
            if not step.is_trained:
                if hasattr(step, "pq"):  # OPQ: its inner quantizer would warn of few rows on stderr
                    step.pq = quantizer = faiss.ProductQuantizer(step.d_out, step.M, 8)
                    quantizer.cp.min_points_per_centroid = 1
                with threads_limited(1):
                    step.train(x)
                if hasattr(step, "pq"):
                    step.pq = None
            x = step.apply(x)

    def transform(self, x: FloatArray) -> FloatArray:
        """``(m, d)`` rows as the code sees them, ``(m, d_code)``."""
        x = _vectors(x, self.d)
        for step in self._chain:
            x = step.apply(x)
        return x

    def set_centroids(self, centroids: FloatArray) -> None:
        """Fill the coarse quantizer with ``(nlist, d_code)`` centroids, in transformed space.

        A graph over them (``_HNSW32``) is built by one thread, so that the same centroids give the
        same graph.
        """
        quantizer = self._ivf.quantizer
        quantizer.reset()
        with threads_limited(1):
            quantizer.add(_vectors(centroids, self.d_code))
        quantizer.is_trained = True

    def train_code(self, y: FloatArray) -> None:
        """Train the code on ``(m, d_code)`` transformed rows; the centroids must be set."""
        if hasattr(self._ivf, "pq"):
            self._ivf.pq.cp.min_points_per_centroid = 1  # else faiss warns on the process's stderr
            # What the factory turns on and no search here uses: it is nearly all of the training.
            self._ivf.do_polysemous_training = False
        # One thread: sums in k-means of a product quantizer depend on how the rows are divided.
        with threads_limited(1):
            self._ivf.train(_vectors(y, self.d_code))
        self._index.is_trained = True

    def encode(self, y: FloatArray, list_nos: IntArray) -> BytesArray:
        """Codes ``(m, code_size)`` of transformed rows ``(m, d_code)`` in the lists ``(m,)``."""
        y = _vectors(y, self.d_code)
        lists = np.ascontiguousarray(list_nos, dtype=np.int64)
        codes = np.empty((len(y), self.code_size), np.uint8)
        self._ivf.encode_vectors(len(y), faiss.swig_ptr(y), faiss.swig_ptr(lists), faiss.swig_ptr(codes))
        return codes

    def save(self, path: Path) -> list[str]:
        """Write the template durably; its checksums."""
        return _write(self._index, path)

    def save_header(self, path: Path, sizes: IntArray) -> list[str]:
        """Write the header of a file of lists with ``sizes`` (nlist,) rows each; its checksums.

        Lists lie one after the other from offset 0 in the order of their numbers, each as all its
        codes and then all its ids (int64): what faiss's ``OnDiskInvertedLists`` reads. The template
        is empty again afterwards.
        """
        sizes = np.ascontiguousarray(sizes, dtype=np.uint64)
        lists = faiss.OnDiskInvertedLists()
        lists.nlist, lists.code_size, lists.filename, lists.read_only = (
            self.nlist,
            self.code_size,
            LISTS_NAME,
            True,
        )
        lists.lists.resize(self.nlist)
        lists.set_all_lists_sizes(faiss.swig_ptr(sizes))
        lists.totsize = int(sizes.sum()) * (self.code_size + _ID_BYTES)
        n = int(sizes.sum())
        empty = faiss.ArrayInvertedLists(self.nlist, self.code_size)
        self._ivf.replace_invlists(lists, False)
        self._ivf.ntotal = self._index.ntotal = n
        try:
            return _write(self._index, path)
        finally:
            self._ivf.replace_invlists(empty, True)
            empty.this.disown()
            self._ivf.ntotal = self._index.ntotal = 0


def _write(index: Any, path: Path) -> list[str]:
    with DurableFile(path) as file:
        writer = faiss.PyCallbackIOWriter(file.write)
        faiss.write_index(index, writer)
        del writer
        return file.checksums()


def _read(path: Path, flags: int) -> Any:
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        reason = str(error).rsplit("Error:", 1)[-1].strip().splitlines()[0]
        raise IndexDirError(
            f"{path} cannot be read by faiss: {reason}",
            kind="index-damaged",
            hint="Copy the directory anew, or remove it and build.",
        ) from error


class DiskLists:
    """A file of lists opened through faiss's ``OnDiskInvertedLists``, read-only.

    Opening maps the file and reads only the header. Safe from several threads.

    Attributes
    ----------
    sizes, offsets : (nlist,) int64
        Rows of each list, and the byte where it begins.
    """

    def __init__(self, header: Path, lists: Path) -> None:
        check_platform()
        flags = faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
        self._codec = Codec(_read(header, flags))
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
        ends = self.offsets + self.sizes * (self.code_size + _ID_BYTES)
        inside = (self.sizes >= 0) & (self.offsets >= 0) & (ends >= self.offsets) & (ends <= size)
        if not inside.all() or int(self._lists.totsize) != size:
            raise IndexDirError(
                f"{lists} has {size} bytes and {header} speaks of {int(self._lists.totsize)}",
                kind="index-damaged",
                hint="It was cut short or is another one: copy the directory anew, or remove it and build.",
            )

    @property
    def rows(self) -> int:
        """Entries in all lists."""
        return int(self.sizes.sum())

    def list_bytes(self, list_nos: IntArray) -> IntArray:
        """Bytes of the given lists."""
        return self.sizes[list_nos] * (self.code_size + _ID_BYTES)

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
        y = _vectors(y, self.d_code)
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
        self, y: FloatArray, list_nos: IntArray, coarse: FloatArray, k: int
    ) -> tuple[FloatArray, IntArray]:
        """The ``k`` best rows by code in the given lists of each query: ``(nq, k)`` distances and ids.

        Distances are those of the code; ids are -1 where there are fewer than ``k``.
        """
        y = _vectors(y, self.d_code)
        nq, nprobe = list_nos.shape
        lists = np.ascontiguousarray(list_nos, dtype=np.int64)
        coarse = np.ascontiguousarray(coarse, dtype=np.float32)
        distances = np.empty((nq, k), np.float32)
        ids = np.empty((nq, k), np.int64)
        params = faiss.SearchParametersIVF(nprobe=nprobe)
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
        self, y: FloatArray, list_nos: IntArray, coarse: FloatArray, radius: float
    ) -> tuple[IntArray, FloatArray, IntArray]:
        """All rows within ``radius`` by code in the given lists: faiss's ``lims, D, I``."""
        y = _vectors(y, self.d_code)
        nq, nprobe = list_nos.shape
        lists = np.ascontiguousarray(list_nos, dtype=np.int64)
        coarse = np.ascontiguousarray(coarse, dtype=np.float32)
        result = faiss.RangeSearchResult(nq)
        params = faiss.SearchParametersIVF(nprobe=nprobe)
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
