"""The template: transforms, coarse quantizer and code, and the header of a file of lists."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ooc.durable import BlockHash, DurableFile
from ooc.engine import rabitq
from ooc.engine.rotation import Rotation
from ooc.engine.skeleton import header_skeleton, template_skeleton
from ooc.engine.threads import threads_limited
from ooc.errors import DataError, IndexDirError, PlanError, ResourceError
from ooc.types import BytesArray, FloatArray, IntArray, Metric

__all__ = [
    "ID_BYTES",
    "LISTS_NAME",
    "WORKS_ON_DISK",
    "Codec",
    "check_platform",
    "code_bytes",
    "read_index",
    "require_rows",
    "vectors",
    "version",
    "write_index",
]

#: The name that a header gives its file of lists, relative to the header.
LISTS_NAME = "lists.ivfdata"

ID_BYTES = 8

#: Values of rows that are decoded together.
_DECODED_VALUES = 1 << 20

#: faiss index types whose lists have a fixed code size and are scanned from disk as in memory.
WORKS_ON_DISK = {
    "IndexIVFFlat",
    "IndexIVFScalarQuantizer",
    "IndexIVFPQ",
    "IndexIVFRaBitQ",
    "IndexIVFEDEN",
}

#: Lower bytes of the numbers that codes of several bits have beside them.
_FACTOR_BYTES = 12

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


def _chain(index: Any) -> list[Any]:
    """What is done to a vector before its code is made, step by step."""
    chain = getattr(index, "chain", None)
    return (
        [faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size())]
        if chain is not None
        else []
    )


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
    if ivf is None or name not in WORKS_ON_DISK or top not in (name, "IndexPreTransform"):
        raise PlanError(
            f"{factory!r} makes a {name if ivf is not None else top}, "
            "which cannot be scanned from lists on disk",
            kind="factory",
            hint="Use one of Flat, SQ8, SQfp16, SQ4, PQ64, RaBitQ, RaBitQ2, EDEN2 as code.",
        )
    return int(ivf.code_size), int(ivf.d)


def require_rows(factory: str, d: int, metric: Metric, n: int) -> None:
    """See that ``n`` rows are enough to train an ``IVF`` factory string by.

    Raises
    ------
    PlanError
        There are fewer than a codebook has entries, or a projection dimensions.
    """
    index = _make(factory, d, metric)
    needs = {"a projection": 1, "a codebook": 1}
    for step in _chain(index):
        kind = type(step).__name__
        if kind == "OPQMatrix":
            needs["a codebook"] = 256
        elif kind in ("PCAMatrix", "ITQTransform"):
            needs["a projection"] = max(needs["a projection"], int(step.d_out))
    ivf = faiss.downcast_index(faiss.try_extract_index_ivf(index))
    if hasattr(ivf, "pq"):
        needs["a codebook"] = max(needs["a codebook"], int(ivf.pq.ksub))
    what, least = max(needs.items(), key=lambda need: need[1])
    if n < least:
        raise PlanError(
            f"{n} rows are too few for {factory}: {what} of it is trained by {least} at least",
            kind="too-few-rows",
            hint="Use a code that needs no training by rows, as RaBitQ or Flat.",
        )


def vectors(x: FloatArray, d: int) -> FloatArray:
    """``x`` as faiss takes it: C-contiguous float32 of shape ``(n, d)``."""
    if x.ndim != 2 or x.shape[1] != d:
        raise DataError(f"vectors of shape {x.shape} where (n, {d}) is needed", kind="shape")
    return np.ascontiguousarray(x, dtype=np.float32)


class Codec:
    """A template: transforms, coarse quantizer and code, trained or to be trained; no rows.

    ``transform`` and ``encode`` are safe from several threads at once.

    Parameters
    ----------
    index : faiss index
        Owns all that it is made of, but for what ``owner`` owns.
    """

    def __init__(self, index: Any, owner: Any = None) -> None:
        self._index, self._owner = index, owner  # own everything below
        self._ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
        self._chain = _chain(index)
        self.d = int(index.d)
        self.d_code = int(self._ivf.d)
        self.nlist = int(self._ivf.nlist)
        self.code_size = int(self._ivf.code_size)
        self._l2 = int(self._ivf.metric_type) == faiss.METRIC_L2
        kind = type(self._ivf).__name__
        one_bit = kind == "IndexIVFRaBitQ" and int(self._ivf.rabitq.nb_bits) == 1
        self._sign_bits = one_bit and bool(self._ivf.by_residual)

    @functools.cached_property
    def _steps(self) -> list[Callable[[FloatArray], FloatArray]]:
        """What ``transform`` does; made when rows are first transformed: a search does without."""
        return [
            Rotation(step).apply if type(step).__name__ == "HadamardRotation" else step.apply
            for step in self._chain
        ]

    def centroids(self) -> FloatArray:
        """The ``(nlist, d_code)`` centroids where faiss has them, in transformed space: a view."""
        flat = faiss.downcast_index(self._ivf.quantizer)
        if hasattr(flat, "storage"):
            flat = faiss.downcast_index(flat.storage)
        shape = (self.nlist, self.d_code)
        view: FloatArray = faiss.rev_swig_ptr(flat.get_xb(), self.nlist * self.d_code).reshape(shape)
        return view

    @classmethod
    def create(cls, factory: str, d: int, metric: Metric, seed: int) -> Codec:
        """An untrained template of an ``IVF`` factory string (see ``code_bytes`` for its checks)."""
        index = _make(factory, d, metric)
        for i, step in enumerate(_chain(index)):
            if type(step).__name__ in _ISOMETRIC:
                step.init(seed + i)
        return cls(index)

    @classmethod
    def load(cls, path: Path) -> Codec:
        """The template that ``save`` wrote.

        Raises
        ------
        IndexDirError
            The file is missing or damaged.
        """
        template_skeleton(path)
        return cls(read_index(path, 0))

    @classmethod
    def of_header(cls, path: Path) -> Codec:
        """The template that a header of lists was made of: all but the lists is in it.

        Raises
        ------
        IndexDirError
            The file is missing or damaged.
        """
        header_skeleton(path)
        made = cls(read_index(path, faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY))
        made._empty()
        return made

    def _empty(self) -> None:
        """Put no lists, in memory, in the place of those that there are."""
        empty = faiss.ArrayInvertedLists(self.nlist, self.code_size)
        self._ivf.replace_invlists(empty, True)
        empty.this.disown()
        self._ivf.ntotal = self._index.ntotal = 0

    @property
    def isometric(self) -> bool:
        """Whether the transforms keep all distances: rotations do, PCA and OPQ do not."""
        return all(type(step).__name__ in _ISOMETRIC for step in self._chain)

    @property
    def has_graph(self) -> bool:
        """Whether centroids are found through a graph."""
        return type(faiss.downcast_index(self._ivf.quantizer)).__name__.startswith("IndexHNSW")

    @property
    def transforms_trained(self) -> bool:
        """Whether what precedes the code needs no training: rotations do not."""
        return all(step.is_trained for step in self._chain)

    @property
    def code_needs_rows(self) -> bool:
        """Whether the code learns from rows; signs do not."""
        return not self._sign_bits

    @property
    def trained_soon(self) -> bool:
        """Whether the code learns a few numbers of few rows; codebooks take many."""
        return not hasattr(self._ivf, "pq")

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
        """``(m, d)`` rows as the code sees them, ``(m, d_code)``: by BLAS, whose threads callers limit."""
        x = vectors(x, self.d)
        for apply in self._steps:
            x = apply(x)
        return x

    def transform_queries(self, x: FloatArray) -> FloatArray:
        """As ``transform``, by faiss alone: BLAS would leave threads spinning, which slows what follows."""
        x = vectors(x, self.d)
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
            quantizer.add(vectors(centroids, self.d_code))
        quantizer.is_trained = True

    def train_code(self, y: FloatArray) -> None:
        """Train the code on ``(m, d_code)`` transformed rows; the centroids must be set."""
        if hasattr(self._ivf, "pq"):
            self._ivf.pq.cp.min_points_per_centroid = 1  # else faiss warns on the process's stderr
            # What the factory turns on and no search here uses: it is nearly all of the training.
            self._ivf.do_polysemous_training = False
        # One thread: sums in k-means of a product quantizer depend on how the rows are divided.
        with threads_limited(1):
            self._ivf.train(vectors(y, self.d_code))
        self._index.is_trained = True

    def encode(self, y: FloatArray, list_nos: IntArray) -> BytesArray:
        """Codes ``(m, code_size)`` of transformed rows ``(m, d_code)`` in the lists ``(m,)``."""
        y = vectors(y, self.d_code)
        if self._sign_bits:
            return rabitq.encode(y, list_nos, self.centroids(), l2=self._l2)
        lists = np.ascontiguousarray(list_nos, dtype=np.int64)
        codes = np.empty((len(y), self.code_size), np.uint8)
        self._ivf.encode_vectors(len(y), faiss.swig_ptr(y), faiss.swig_ptr(lists), faiss.swig_ptr(codes))
        return codes

    def decode(self, codes: BytesArray, list_nos: IntArray) -> FloatArray:
        """What codes ``(m, code_size)`` in the lists ``(m,)`` stand for: transformed rows ``(m, d_code)``."""
        codes = np.ascontiguousarray(codes)
        lists = np.ascontiguousarray(list_nos, dtype=np.int64)
        y = np.empty((len(codes), self.d_code), np.float32)
        self._ivf.decode_vectors(len(y), faiss.swig_ptr(codes), faiss.swig_ptr(lists), faiss.swig_ptr(y))
        return y

    def far(self, codes: BytesArray, number: int) -> FloatArray:
        """How far rows ``(m,)`` are from the centroid of their list, as far as their codes know.

        Squared distances for l2, else negative products. RaBitQ keeps these exactly; of other codes what they
        stand for is compared.
        """
        centroid = self.centroids()[number]
        if type(self._ivf).__name__ == "IndexIVFRaBitQ":
            kept = rabitq.offsets(codes, self.d_code)
            return kept if self._l2 else (kept - centroid @ centroid) / np.float32(2)
        out = np.empty(len(codes), np.float32)
        step = max(1, _DECODED_VALUES // self.d_code)
        for first in range(0, len(codes), step):
            some = codes[first : first + step]
            y = self.decode(some, np.full(len(some), number))
            if self._l2:
                y -= centroid
                out[first : first + step] = np.einsum("ij,ij->i", y, y)
            else:
                out[first : first + step] = -(y @ centroid)
        return out

    def row_centroids(self) -> FloatArray:
        """Centroids ``(nlist, m)`` in the space in which rows are assigned: before rotations, else after."""
        centroids = self.centroids()
        if not self.isometric or not self._chain:
            return np.array(centroids)
        # A rotation has no constant part: what it makes of the unit vectors is all of it.
        turned: FloatArray = centroids @ self.transform(np.eye(self.d, dtype=np.float32)).T
        return turned

    def alike(self, codes: BytesArray, others: BytesArray, part: float) -> NDArray[np.bool_]:
        """Whether codes ``(m, code_size)`` are the same but for rounding, which processors do differently.

        ``part`` is the share of bits, or bytes, that may differ; numbers beside them may by a thousandth.
        """
        kind = type(self._ivf).__name__
        if self._sign_bits:
            bits, wide = self.code_size - rabitq.FACTOR_BYTES, self.d_code
            other = np.bitwise_count(codes[:, :bits] ^ others[:, :bits]).sum(axis=1, dtype=np.int64)
            factors, expected = (
                np.ascontiguousarray(one[:, bits:]).view(np.float32).astype(np.float64)
                for one in (codes, others)
            )
            near = np.abs(factors - expected) <= 1e-3 * (1 + np.abs(expected).max(axis=1, keepdims=True))
            return np.asarray((other <= max(1, int(part * wide))) & near.all(axis=1))
        # Their factors lie among the bytes: the lower bytes of these may differ.
        factors_bytes = _FACTOR_BYTES if kind in ("IndexIVFRaBitQ", "IndexIVFEDEN") else 0
        differing = (codes != others).sum(axis=1)
        return np.asarray(
            differing <= max(int(part * self.code_size), min(factors_bytes, self.code_size // 4))
        )

    def save(self, path: Path) -> list[str]:
        """Write the template durably; its checksums."""
        return write_index(self._index, path)

    def checksums(self) -> list[str]:
        """Those of the file that ``save`` would write."""
        digest = BlockHash()
        writer = faiss.PyCallbackIOWriter(digest.update)
        faiss.write_index(self._index, writer)
        del writer
        return digest.digests()

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
        lists.totsize = int(sizes.sum()) * (self.code_size + ID_BYTES)
        n = int(sizes.sum())
        self._ivf.replace_invlists(lists, False)
        self._ivf.ntotal = self._index.ntotal = n
        try:
            return write_index(self._index, path)
        finally:
            self._empty()


def write_index(index: Any, path: Path) -> list[str]:
    """Write what faiss writes of an index, durably; its checksums."""
    with DurableFile(path) as file:
        writer = faiss.PyCallbackIOWriter(file.write)
        faiss.write_index(index, writer)
        del writer
        return file.checksums()


def read_index(path: Path, flags: int) -> Any:
    """What faiss reads from a file, its errors turned into one that says what to do.

    The caller has seen to the structure of the file (``ooc.engine.skeleton``).
    """
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        reason = str(error).rsplit("Error:", 1)[-1].strip().splitlines()[0]
        raise IndexDirError(
            f"{path} cannot be read by faiss: {reason}",
            kind="index-damaged",
            hint="Copy the directory anew, or remove it and build.",
        ) from error
