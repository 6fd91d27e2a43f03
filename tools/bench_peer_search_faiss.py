"""faiss as the search benchmark uses it: processes of their own.

    bench_peer_search_faiss.py make KIND ROWS.npy INDEX --rows N [--nlist N --sample-rows N --parts FILE]
                                    [--source INDEX.faiss] [--seconds S]
    bench_peer_search_faiss.py JOB          # see bench_search_worker.main

Kinds that live in memory: ``flat``, ``sq8``, ``rabitq`` and ``fastscan`` (IVF), ``hnsw``; on disk:
``ondisk`` (lists of ours, opened plainly) and ``mmap`` (the same lists written by faiss). The IVF kinds share
centroids and assignment, trained and made by faiss once (``make parts``). Rows have unit length, so that
inner products are cosines.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from bench_peer_faiss import search as search_and_rerank
from bench_recall import K
from bench_search_worker import Setting, main

#: Rows added at a time: what is rotated of them is a copy.
_BLOCK_ROWS = 65_536
_FACTORIES = {
    "flat": "IVF{},Flat",
    "sq8": "IVF{},SQ8",
    "rabitq": "HR,IVF{},RaBitQ",
    "fastscan": "HR,IVF{},RaBitQfs",
}
#: Rows that a graph grows by at a time, and the share of its time that it may grow for.
_GRAPH_ROWS = 4_096
_GRAPH_SHARE = 0.9


class _Faiss:
    batches = True

    def __init__(self, side: dict[str, Any]) -> None:
        kind, n = side["kind"], side["rows"]
        self._kind = kind
        self._x = np.load(side["data"], mmap_mode="r")[:n]
        if kind == "flat":
            self._index = _flat(side["parts"], self._x)
        elif kind == "hnsw":
            self._index = _with_rows(faiss.read_index(side["index"]), self._x)
        elif kind == "ondisk":
            self._index = faiss.read_index(side["index"], faiss.IO_FLAG_ONDISK_SAME_DIR)
        elif kind == "mmap":
            self._index = faiss.read_index(side["index"], faiss.IO_FLAG_MMAP)
        else:
            self._index = faiss.read_index(side["index"])
        self._ivf = None if kind == "hnsw" else faiss.extract_index_ivf(self._index)
        self._copies = side.get("lists_per_row", 1)
        if kind in ("rabitq", "fastscan"):
            self._codes = self._index
            self._index = faiss.IndexRefineFlat(self._codes, faiss.swig_ptr(np.asarray(self._x)))

    def set(self, setting: Setting) -> None:
        if self._ivf is None:
            self._index.hnsw.efSearch = setting["ef"]
            return
        self._ivf.nprobe = setting["nprobe"]
        if self._kind in ("rabitq", "fastscan"):
            self._index.k_factor = setting["candidates"] / K
        self._candidates = setting.get("candidates", 0) * self._copies

    def search(self, xq: Any) -> Any:
        if self._kind in ("ondisk", "mmap"):
            return search_and_rerank(self._index, self._x, xq, self._candidates)
        return self._index.search(xq, K)[1]

    def in_thread(self) -> None:
        faiss.omp_set_num_threads(1)  # of each thread its own


def _with_rows(index: Any, x: Any) -> Any:
    """A graph that was written without its vectors, with them."""
    storage = faiss.IndexFlatIP(x.shape[1])
    for _, block in _blocks(x[: index.ntotal]):
        storage.add(block)
    index.storage = storage
    index.own_fields = True
    storage.this.disown()
    return index


def _flat(parts: str, x: Any) -> Any:
    """The rows in lists: made anew each time, as the file would be as large as the rows."""
    index = _trained("flat", parts, x)
    _add(index, x, np.load(parts)["assigned"])
    return index


def make(args: argparse.Namespace) -> dict[str, Any]:
    x = np.load(args.data, mmap_mode="r")[: args.rows]
    began = time.monotonic()
    rows = len(x)
    if args.kind == "parts":
        _parts(args, x)
    elif args.kind == "mmap":
        faiss.write_index(
            _in_memory(faiss.read_index(args.source, faiss.IO_FLAG_ONDISK_SAME_DIR)), args.index
        )
    elif args.kind == "hnsw":
        index = faiss.index_factory(x.shape[1], "HNSW32", faiss.METRIC_INNER_PRODUCT)
        for first in range(0, len(x), _GRAPH_ROWS):
            index.add(np.ascontiguousarray(x[first : first + _GRAPH_ROWS]))
            if time.monotonic() - began > _GRAPH_SHARE * args.seconds:
                break
        rows = index.ntotal
        faiss.write_index(index, args.index, faiss.IO_FLAG_SKIP_STORAGE)
    else:
        index = _trained(args.kind, args.parts, x)
        if args.kind == "fastscan":  # takes no assignment
            for _, block in _blocks(x):
                index.add(block)
        else:
            _add(index, x, np.load(args.parts)["assigned"])
        faiss.write_index(index, args.index)
    return {"rows": rows, "seconds": time.monotonic() - began}


def _parts(args: argparse.Namespace, x: Any) -> None:
    """Centroids as faiss trains them, the sample they are from, and the list of each row."""
    sample = np.sort(np.random.default_rng(0).choice(len(x), min(args.sample_rows, len(x)), replace=False))
    index = faiss.index_factory(x.shape[1], f"IVF{args.nlist},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(x[sample])
    assigned = np.concatenate([index.quantizer.search(block, 1)[1][:, 0] for _, block in _blocks(x)])
    with open(args.index, "wb") as file:  # noqa: PTH123 (np.savez would add an ending to a name)
        np.savez(
            file, centroids=index.quantizer.reconstruct_n(0, args.nlist), sample=sample, assigned=assigned
        )


def _trained(kind: str, parts: str, x: Any) -> Any:
    """An empty index over the centroids that the kinds share."""
    with np.load(parts) as arrays:
        centroids, sample = arrays["centroids"], arrays["sample"]
    index = faiss.index_factory(
        x.shape[1], _FACTORIES[kind].format(len(centroids)), faiss.METRIC_INNER_PRODUCT
    )
    transform, ivf = _taken_apart(index)
    ivf.quantizer.add(transform(centroids))
    # Its quantizer is there: what is trained is the code alone.
    index.train(x[sample])
    return index


def _add(index: Any, x: Any, assigned: Any) -> None:
    transform, ivf = _taken_apart(index)
    pointer = faiss.swig_ptr
    for first, block in _blocks(x):
        block = np.ascontiguousarray(transform(block))
        ids = np.arange(first, first + len(block))
        lists = np.ascontiguousarray(assigned[first : first + len(block)], np.int64)
        ivf.add_core(len(block), pointer(block), pointer(ids), pointer(lists))
    index.ntotal = len(x)


def _taken_apart(index: Any) -> tuple[Any, Any]:
    """What is done to rows before they come to the lists, and the lists."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.downcast_VectorTransform(index.chain.at(0)).apply, ivf
    return (lambda rows: rows), ivf


def _in_memory(index: Any) -> Any:
    """An index with the same lists in memory, so that they are written into the one file."""
    ivf = faiss.extract_index_ivf(index)
    source = ivf.invlists
    lists = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    for number in range(ivf.nlist):
        size = source.list_size(number)
        if size:
            lists.add_entries(number, size, source.get_ids(number), source.get_codes(number))
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    return index


def _blocks(x: Any) -> Iterator[tuple[int, Any]]:
    for first in range(0, len(x), _BLOCK_ROWS):
        yield first, np.ascontiguousarray(x[first : first + _BLOCK_ROWS])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("make",))
    parser.add_argument("kind", choices=("parts", "sq8", "rabitq", "fastscan", "hnsw", "mmap"))
    parser.add_argument("data")
    parser.add_argument("index")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--nlist", type=int)
    parser.add_argument("--sample-rows", type=int)
    parser.add_argument("--parts")
    parser.add_argument("--source")
    parser.add_argument("--seconds", type=float, default=600)
    return parser.parse_args()


if __name__ == "__main__":
    if sys.argv[1] == "make":
        print(json.dumps(make(_arguments())))
    else:
        main(_Faiss)
