"""LanceDB's engine (pylance), as one would use it: processes of their own in its environment.

    bench_peer_lance.py store ROWS.npy DATASET             # not part of what is measured
    bench_peer_lance.py build DATASET --partitions N [--index-type IVF_PQ]
    bench_peer_lance.py judge DATASET TRUTH.npz

The index is IVF_RQ of one bit, or IVF_PQ of a byte for sixteen dimensions. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import lance  # type: ignore[import-not-found, unused-ignore]
import numpy as np
import pyarrow as pa
from bench_recall import CANDIDATES, ID_BYTES, K, probes, queries_of, recall

_BLOCK_ROWS = 8_192
_COLUMN = "vector"
#: A one-bit code and, besides the bits, what corrects its distances: three float32.
_FACTOR_BYTES = 12


def store(args: argparse.Namespace) -> dict[str, Any]:
    x = np.load(args.source, mmap_mode="r")
    d = x.shape[1]

    def batches() -> Iterator[Any]:
        for first in range(0, len(x), _BLOCK_ROWS):
            values = pa.array(np.ascontiguousarray(x[first : first + _BLOCK_ROWS], np.float32).reshape(-1))
            yield pa.record_batch([pa.FixedSizeListArray.from_arrays(values, d)], names=[_COLUMN])

    schema = pa.schema([(_COLUMN, pa.list_(pa.float32(), d))])
    # One fragment: a row's id is then its number.
    lance.write_dataset(
        pa.RecordBatchReader.from_batches(schema, batches()), args.target, max_rows_per_file=1 << 40
    )
    return {"fragments": len(lance.dataset(args.target).get_fragments())}


def build(args: argparse.Namespace) -> dict[str, Any]:
    dataset = lance.dataset(args.source)
    code = {"num_bits": 1} if args.index_type == "IVF_RQ" else {"num_sub_vectors": _sub_vectors(dataset)}
    dataset.create_index(
        _COLUMN, args.index_type, metric="cosine", num_partitions=args.partitions, replace=True, **code
    )
    return {"versions": {"pylance": lance.__version__, "pyarrow": pa.__version__}}


def _sub_vectors(dataset: Any) -> int:
    return max(1, int(dataset.schema.field(_COLUMN).type.list_size) // 16)


class Searcher:
    """A data set with its index, opened for searching."""

    def __init__(self, path: str) -> None:
        self.dataset = lance.dataset(path)
        offsets = [0]
        for fragment in self.dataset.get_fragments():
            offsets.append(offsets[-1] + fragment.count_rows())
        self._offsets = np.array(offsets)

    def search(self, query: Any, nprobe: int, candidates: int) -> Any:
        """Rows nearest to one query, ``(K,)`` int64, padded with -1."""
        nearest_to = {
            "column": _COLUMN,
            "q": query,
            "k": K,
            "minimum_nprobes": nprobe,
            "maximum_nprobes": nprobe,
            "refine_factor": max(1, candidates // K),
        }
        table = self.dataset.to_table(columns=["_rowid", "_distance"], with_row_id=True, nearest=nearest_to)
        found = table.column("_rowid").to_numpy().astype(np.int64)
        ids = np.full(K, -1, np.int64)
        ids[: len(found)] = self._offsets[found >> 32] + (found & 0xFFFFFFFF)
        return ids


def judge(args: argparse.Namespace) -> list[dict[str, Any]]:
    searcher = Searcher(args.source)
    sizes, centroids = _partitions(searcher.dataset)
    d = centroids.shape[1]
    curve = []
    for nprobe in probes(len(sizes)):
        point: dict[str, Any] = {"nprobe": nprobe}
        for name, xq, exact in queries_of(args.target):
            if "list_bytes_per_query" not in point:
                squares = (centroids**2).sum(axis=1) - 2 * xq @ centroids.T
                nearest = np.argpartition(squares, nprobe - 1, axis=1)[:, :nprobe]
                entries = sizes[nearest].sum() / len(xq)
                point["list_bytes_per_query"] = float(entries) * (d // 8 + _FACTOR_BYTES + ID_BYTES)
            ids = np.array([searcher.search(query, nprobe, CANDIDATES) for query in xq])
            point[name] = recall(ids, exact)
        curve.append(point)
    return curve


def _partitions(dataset: Any) -> tuple[Any, Any]:
    """Rows of each partition, and the centroids."""
    figures = dataset.stats.index_stats(dataset.list_indices()[-1]["name"])["indices"][0]
    sizes = np.array([partition["size"] for partition in figures["partitions"]])
    return sizes, np.array(figures["centroids"], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("store", "build", "judge"))
    parser.add_argument("source")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--partitions", type=int)
    parser.add_argument("--index-type", choices=("IVF_RQ", "IVF_PQ"), default="IVF_RQ")
    args = parser.parse_args()
    print(json.dumps({"store": store, "build": build, "judge": judge}[args.verb](args)))


if __name__ == "__main__":
    main()
