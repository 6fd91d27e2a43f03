"""faiss in memory, as one would use it: a process of its own that `tools/bench` measures.

    bench_peer_faiss.py build ROWS.npy INDEX.faiss --nlist N --sample-rows N
    bench_peer_faiss.py judge ROWS.npy INDEX.faiss TRUTH.npz     # any IVF index that faiss opens

Rows have unit length, so that inner products are cosines. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import faiss
import numpy as np
from bench_recall import CANDIDATES, ID_BYTES, K, probes, queries_of, recall

#: Rows added at a time: what is rotated of them is a copy.
_BLOCK_ROWS = 65_536


def build(args: argparse.Namespace) -> dict[str, Any]:
    x = np.load(args.rows)
    began = time.monotonic()
    seconds = {}
    index = faiss.index_factory(x.shape[1], f"HR,IVF{args.nlist},RaBitQ", faiss.METRIC_INNER_PRODUCT)
    sample = np.sort(np.random.default_rng(0).choice(len(x), args.sample_rows, replace=False))
    index.train(x[sample])
    seconds["train"] = time.monotonic() - began
    began = time.monotonic()
    for first in range(0, len(x), _BLOCK_ROWS):
        index.add(x[first : first + _BLOCK_ROWS])
    seconds["add"] = time.monotonic() - began
    faiss.write_index(index, args.index)
    return {"stages": seconds, "versions": {"faiss": faiss.__version__, "numpy": np.__version__}}


def judge(args: argparse.Namespace) -> list[dict[str, Any]]:
    x = np.load(args.rows, mmap_mode="r")
    index = faiss.read_index(args.index)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:  # a graph, or no index at all: one setting, its own
        return [
            {"nprobe": None, "list_bytes_per_query": None}
            | {name: recall(search(index, x, xq)[:, :K], exact) for name, xq, exact in queries_of(args.truth)}
        ]
    lists = ivf.invlists
    sizes = np.array([lists.list_size(i) for i in range(ivf.nlist)])
    curve = []
    for nprobe in probes(ivf.nlist):
        ivf.nprobe = nprobe
        point: dict[str, Any] = {"nprobe": nprobe}
        for name, xq, exact in queries_of(args.truth):
            if "list_bytes_per_query" not in point:
                _, probed = ivf.quantizer.search(_transformed(index, xq), nprobe)
                entries = sizes[probed[probed >= 0]].sum() / len(xq)
                point["list_bytes_per_query"] = float(entries) * (ivf.code_size + ID_BYTES)
            point[name] = recall(search(index, x, xq), exact)
        curve.append(point)
    return curve


def _transformed(index: Any, xq: Any) -> Any:
    """Queries as the lists see them."""
    if not isinstance(index, faiss.IndexPreTransform):
        return xq
    for i in range(index.chain.size()):
        xq = faiss.downcast_VectorTransform(index.chain.at(i)).apply_py(xq)
    return xq


def search(index: Any, x: Any, xq: Any, candidates: int = CANDIDATES) -> Any:
    """Candidates by code, the best of them by exact comparison: ``(nq, K)`` rows."""
    _, found = index.search(xq, min(candidates, len(x)))
    best = np.full((len(xq), K), -1, np.int64)
    for i, ids in enumerate(found):
        ids = np.unique(ids[ids >= 0])  # in the order of the file; once, where lists overlap
        order = np.argsort(-(x[ids] @ xq[i]), kind="stable")[:K]
        best[i, : len(order)] = ids[order]
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("build", "judge"))
    parser.add_argument("rows")
    parser.add_argument("index")
    parser.add_argument("truth", nargs="?")
    parser.add_argument("--nlist", type=int)
    parser.add_argument("--sample-rows", type=int)
    args = parser.parse_args()
    print(json.dumps(build(args) if args.verb == "build" else judge(args)))


if __name__ == "__main__":
    main()
