"""An index that somebody wrote with faiss: what it is, and where its lists lie in which file.

Its lists are never read here. Of a file that has them inside (``ArrayInvertedLists``) faiss maps them as if
they were on disk already; of one whose lists are on disk it reads the table of their places.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ooc.engine.codec import ID_BYTES, WORKS_ON_DISK, Codec, code_bytes
from ooc.errors import ArgumentError, IndexDirError, PlanError, ResourceError
from ooc.types import IntArray, Metric

__all__ = ["Foreign", "is_foreign", "read_foreign"]

#: How the files begin that may hold what is taken over, and those of which it is known what they are.
_IVF = (b"IwFl", b"IwSq", b"IwPQ", b"Iwrq", b"Iwrr", b"IwEe")
_CHAIN, _REFINED = b"IxPT", (b"IxRF", b"IxRP")
_OTHERS = {
    b"IxFI": "a flat index",
    b"IxF2": "a flat index",
    b"IxFl": "a flat index",
    b"IxMp": "an IndexIDMap",
    b"IxM2": "an IndexIDMap2",
    b"IHNf": "a graph over all rows (HNSW)",
    b"IHNs": "a graph over all rows (HNSW)",
    b"IHNp": "a graph over all rows (HNSW)",
    b"INSf": "a graph over all rows (NSG)",
    b"IwPf": "an IndexIVFPQFastScan, whose lists are in blocks",
    b"Iwrf": "an IndexIVFRaBitQFastScan, whose lists are in blocks",
    b"IwQR": "an IndexIVFPQR, which keeps refining codes outside the lists",
    b"IBwf": "an index of binary vectors",
}
#: What faiss writes of an index before what is its own: d, ntotal, two numbers of no use, trained, metric.
_HEAD_BYTES = 4 + 4 + 8 + 8 + 8 + 1 + 4

_WORKS = (
    "What works: IndexIVFFlat, IndexIVFScalarQuantizer, IndexIVFPQ, IndexIVFRaBitQ and IndexIVFEDEN, alone "
    "or in an IndexPreTransform, with an IndexFlat or IndexHNSWFlat as quantizer. From the vectors any index "
    "can be built: `ooc build`."
)

#: Norms of centroids that differ by less are the same.
_SAME_NORMS = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """An index of faiss's, without its rows.

    Attributes
    ----------
    codec : Codec
        Transforms, coarse quantizer and code.
    metric : {"l2", "ip", "cosine"}
        ``cosine`` where vectors are brought to unit length before all else.
    factory : str
        What faiss would make such an index of.
    kind : str
        faiss's name of the class that has the lists.
    left_out : str
        What of the file is not taken over, in words; empty where nothing is.
    lists : Path
        The file that has the lists.
    sizes, codes_at, ids_at : (nlist,) int64
        Entries of each list, and the bytes of that file where its codes and its ids (int64) begin.
    """

    codec: Codec
    metric: Metric
    factory: str
    kind: str
    left_out: str
    lists: Path
    sizes: IntArray
    codes_at: IntArray
    ids_at: IntArray

    @property
    def entries(self) -> int:
        """In all lists."""
        return int(self.sizes.sum())


def read_foreign(path: Path, *, metric: Metric | None = None, lists: Path | None = None) -> Foreign:
    """What a file of faiss's is.

    Parameters
    ----------
    path : Path
        What ``faiss.write_index`` wrote.
    metric : {"l2", "ip", "cosine"}, optional
        ``cosine``: the vectors of an index of inner products are of unit length. Default: as the file says.
    lists : Path, optional
        Where its lists are, if they are on disk and not where the file says nor beside it.

    Raises
    ------
    ArgumentError
        There is no such file, or it is of another metric.
    PlanError
        It is of a kind that cannot be taken over.
    IndexDirError
        It cannot be read, or says what cannot be.
    """
    index, left_out = _read(path)
    ivf = faiss.try_extract_index_ivf(index)
    ivf = None if ivf is None else faiss.downcast_index(ivf)
    kind = type(faiss.downcast_index(index) if ivf is None else ivf).__name__
    top = type(index).__name__
    if ivf is None or kind not in WORKS_ON_DISK or top not in (kind, "IndexPreTransform"):
        raise _refused(path, f"it holds an {top}" + (f" of an {kind}" if top != kind else ""))
    if not index.is_trained or not int(ivf.ntotal):
        raise PlanError(f"{path} cannot be taken over: it holds no rows", kind="faiss-kind", hint=_WORKS)
    owner = index
    index, chain, normalises = _chain(path, index, ivf)
    found = _metric(path, ivf, normalises, metric)
    _see_quantizer(path, ivf)
    table = _table(path, ivf)
    where = _lists_of(path, ivf, lists)
    factory = _factory(path, index, ivf, chain, found)
    _empty(index, ivf)
    sizes, capacities, offsets = table
    code_size = int(ivf.code_size)
    ids_at = offsets + capacities * code_size
    size, ends = where.stat().st_size, ids_at + sizes * ID_BYTES
    sound = (sizes >= 0) & (sizes <= capacities) & (offsets >= 0) & (ids_at >= offsets) & (ends <= size)
    if not sound[sizes > 0].all() or (sizes < 0).any():
        raise IndexDirError(
            f"{where} has {size} bytes, in which the lists of {path} do not lie",
            kind="faiss-file",
            hint="It was cut short or is another one: bring the file that belongs to the index.",
        )
    return Foreign(
        codec=Codec(index, owner),
        metric=found,
        factory=factory,
        kind=kind,
        left_out=left_out,
        lists=where,
        sizes=sizes,
        codes_at=offsets,
        ids_at=ids_at,
    )


def is_foreign(path: Path) -> bool:
    """Whether a file begins as those of faiss do whose kinds are known here, or is empty."""
    try:
        return path.is_file() and _magic(path) in (b"", *_IVF, _CHAIN, *_REFINED, *_OTHERS)
    except OSError:
        return False


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(b"IwFl"))


def _read(path: Path) -> tuple[Any, str]:
    """The index in the file, its lists mapped or not opened; and what of the file was passed over."""
    try:
        magic = _magic(path)
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be read: {error.strerror}", kind="faiss-file", hint="Name what faiss wrote."
        ) from error
    if magic not in (*_IVF, _CHAIN, *_REFINED):
        raise _refused(path, f"it holds {_OTHERS.get(magic, 'something else than an index with lists')}")
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
    try:
        reader = faiss.FileIOReader(str(path))
        if magic in _REFINED:
            # The vectors that refine come last and may be large: only what is before them is read.
            head = np.empty(_HEAD_BYTES, np.uint8)
            reader(faiss.swig_ptr(head), 1, _HEAD_BYTES)
        index = faiss.read_index(reader, flags)
    except RuntimeError as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        reason = str(error).rsplit("Error:", 1)[-1].strip().splitlines()[0]
        raise IndexDirError(
            f"{path} cannot be read by faiss {faiss.__version__}: {reason}",
            kind="faiss-file",
            hint="It was cut short, is damaged, or was written by another version: read and write it with "
            "this one.",
        ) from error
    left_out = (
        "the vectors by which it refines (IndexRefine): pass them as store" if magic in _REFINED else ""
    )
    return index, left_out


def _chain(path: Path, index: Any, ivf: Any) -> tuple[Any, list[Any], bool]:
    """The index without a first step that brings vectors to unit length; its other steps; whether it had one.

    What is in it stays the index's, which must be kept.
    """
    if type(index).__name__ != "IndexPreTransform":
        return index, [], False
    if type(faiss.downcast_index(index.index)).__name__ != type(ivf).__name__:
        raise _refused(path, "it has transforms within transforms")
    steps = [faiss.downcast_VectorTransform(index.chain.at(i)) for i in range(index.chain.size())]
    if not steps or type(steps[0]).__name__ != "NormalizationTransform":
        return index, steps, False
    if steps[0].norm != 2.0:
        raise _refused(path, f"it divides vectors by their {steps[0].norm:g}-norm")
    rest = steps[1:]
    made: Any = ivf
    if rest:
        made = faiss.IndexPreTransform(ivf)
        for step in reversed(rest):
            made.prepend_transform(step)
    made.is_trained = True
    return made, rest, True


def _metric(path: Path, ivf: Any, normalises: bool, wanted: Metric | None) -> Metric:
    metrics: dict[int, Metric] = {faiss.METRIC_L2: "l2", faiss.METRIC_INNER_PRODUCT: "ip"}
    said = metrics.get(int(ivf.metric_type))
    if said is None:
        raise _refused(path, f"its metric is number {int(ivf.metric_type)} of faiss's")
    if normalises and said == "l2":
        raise _refused(path, "it compares vectors that it brings to unit length by l2, not by inner products")
    found: Metric = "cosine" if normalises else said
    if wanted is None or wanted == found:
        return found
    if wanted == "cosine" and found == "ip":
        return "cosine"
    raise ArgumentError(
        f"{path} is of metric {found}, not {wanted}",
        kind="metric",
        hint="Leave the metric out. Only an index of inner products of unit vectors can be taken for cosine.",
    )


def _see_quantizer(path: Path, ivf: Any) -> None:
    """See that lists can be found as here.

    Centroids of one length may have been compared by either metric: the order is the same.
    """
    quantizer = faiss.downcast_index(ivf.quantizer)
    name = type(quantizer).__name__
    graph = name == "IndexHNSWFlat"
    flat = faiss.downcast_index(quantizer.storage) if graph else quantizer
    if not type(flat).__name__.startswith("IndexFlat") or int(flat.ntotal) != int(ivf.nlist):
        raise _refused(path, f"its lists are found by an {name}")
    mixed = [one for one in (quantizer, flat) if one.metric_type != ivf.metric_type]
    if not mixed:
        return
    centroids = faiss.rev_swig_ptr(flat.get_xb(), int(ivf.nlist) * int(ivf.d))
    centroids = centroids.reshape(int(ivf.nlist), -1)
    norms = np.linalg.norm(centroids, axis=1)
    if np.ptp(norms) > _SAME_NORMS * norms.max():
        raise PlanError(
            f"{path} cannot be taken over: its centroids are compared by another metric than its rows, and "
            "are of different lengths",
            kind="faiss-kind",
            hint="Make the index again with a quantizer of its metric (faiss.IndexFlatIP for inner "
            "products).",
        )
    for one in mixed:
        one.metric_type = ivf.metric_type


def _table(path: Path, ivf: Any) -> tuple[IntArray, IntArray, IntArray]:
    """Sizes, capacities and offsets of the lists."""
    lists: Any = None if ivf.invlists is None else faiss.downcast_InvertedLists(ivf.invlists)
    if type(lists).__name__ != "OnDiskInvertedLists":
        raise _refused(path, f"its lists are {'missing' if lists is None else f'{type(lists).__name__}'}")
    count = int(lists.lists.size())
    if count != int(ivf.nlist) or int(lists.code_size) != int(ivf.code_size):
        raise IndexDirError(
            f"{path} has {int(ivf.nlist)} lists and places for {count}", kind="faiss-file", hint=_WORKS
        )
    raw: Any = (ctypes.c_size_t * (3 * count)).from_address(int(lists.lists.data().this))
    table = np.frombuffer(raw, np.uint64).reshape(count, 3).astype(np.int64)
    return tuple(np.ascontiguousarray(table[:, i]) for i in range(3))  # type: ignore[return-value]


def _lists_of(path: Path, ivf: Any, lists: Path | None) -> Path:
    """The file that has the lists."""
    named = str(faiss.downcast_InvertedLists(ivf.invlists).filename)
    if not named:  # in the same file
        return path
    candidates = [lists] if lists is not None else [Path(named), path.parent / Path(named).name]
    for one in candidates:
        if one.is_file():
            return one.absolute()
    raise IndexDirError(
        f"the lists of {path} are in {' or '.join(map(str, dict.fromkeys(candidates)))}, "
        "and no file is there",
        kind="faiss-file",
        hint="Lay the file of the lists beside the index, or say where it is: lists=, --lists.",
    )


def _factory(path: Path, index: Any, ivf: Any, chain: list[Any], metric: Metric) -> str:
    """What faiss would make it of; seen to be of the same sizes."""
    quantizer = faiss.downcast_index(ivf.quantizer)
    graph = f"_HNSW{quantizer.hnsw.nb_neighbors(1)}" if hasattr(quantizer, "hnsw") else ""
    steps = [_step(path, step, ivf) for step in chain]
    factory = ",".join([*steps, f"IVF{int(ivf.nlist)}{graph}", _code(path, ivf)])
    made = code_bytes(factory, int(index.d), "l2" if metric == "l2" else "ip")
    if made != (int(ivf.code_size), int(ivf.d)):
        raise _refused(
            path, f"its codes are of {int(ivf.code_size)} bytes, and those of {factory} of {made[0]}"
        )
    return factory


def _step(path: Path, step: Any, ivf: Any) -> str:
    name, d_out = type(step).__name__, int(step.d_out)
    if name == "HadamardRotation":
        return "HR"
    if name == "RandomRotationMatrix":
        return "RR" if d_out == int(step.d_in) else f"RR{d_out}"
    if name == "PCAMatrix":
        how = "W" if step.eigen_power == -0.5 else "R" if step.random_rotation else ""
        return f"PCA{how}{d_out}"
    if name == "ITQTransform":
        return f"ITQ{d_out}"
    if name in ("OPQMatrix", "LinearTransform"):  # of an OPQ faiss writes the matrix alone
        m = int(ivf.pq.M) if hasattr(ivf, "pq") and not d_out % int(ivf.pq.M) else 1
        return f"OPQ{m}_{d_out}"
    raise _refused(path, f"it transforms vectors by a {name}")


def _code(path: Path, ivf: Any) -> str:
    kind = type(ivf).__name__
    if kind == "IndexIVFFlat":
        return "Flat"
    if kind == "IndexIVFPQ":
        return f"PQ{int(ivf.pq.M)}" + (f"x{int(ivf.pq.nbits)}" if int(ivf.pq.nbits) != 8 else "")
    if kind == "IndexIVFRaBitQ":
        return "RaBitQ" + (f"{int(ivf.rabitq.nb_bits)}" if int(ivf.rabitq.nb_bits) > 1 else "")
    quantizer = faiss.ScalarQuantizer
    if kind == "IndexIVFEDEN":
        bits = int(ivf.sq.qtype) - int(quantizer.QT_1bit_eden) + 1
        return f"EDEN{bits}" + ("BIASED" if int(ivf.scale_type) == faiss.EDENScaleType_BIASED else "")
    names = {
        quantizer.QT_8bit: "SQ8",
        quantizer.QT_6bit: "SQ6",
        quantizer.QT_4bit: "SQ4",
        quantizer.QT_fp16: "SQfp16",
        quantizer.QT_bf16: "SQbf16",
        quantizer.QT_8bit_direct: "SQ8_direct",
        quantizer.QT_8bit_direct_signed: "SQ8_direct_signed",
    }
    name = names.get(int(ivf.sq.qtype))
    if name is None:
        raise _refused(path, f"its scalar quantizer is of type {int(ivf.sq.qtype)} of faiss's")
    return name


def _empty(index: Any, ivf: Any) -> None:
    """Take the rows out of the index: what is left is a template."""
    ivf.set_direct_map_type(faiss.DirectMap.NoMap)
    lists = faiss.ArrayInvertedLists(int(ivf.nlist), int(ivf.code_size))
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    ivf.ntotal = index.ntotal = 0


def _refused(path: Path, why: str) -> PlanError:
    return PlanError(f"{path} cannot be taken over: {why}", kind="faiss-kind", hint=_WORKS)
