"""Recall of an index of ours at several settings, with its own re-ranking: a process of its own.

    bench_judge.py INDEX.ooc TRUTH.npz

Prints JSON.
"""

from __future__ import annotations

import json
import sys

from bench_recall import CANDIDATES, ID_BYTES, K, probes, queries_of, recall

import ooc
from ooc.index.segment import Segments


def main() -> None:
    path, truth = sys.argv[1:]
    curve: list[dict[str, float]] = []
    with ooc.open_index(path) as index:
        segment = index._view().segments
        # Some below: at equal bytes none of theirs shall lie outside the range of ours.
        for nprobe in sorted({*probes(index.nlist), *range(1, min(4, index.nlist + 1))}):
            point: dict[str, float] = {"nprobe": nprobe}
            for name, xq, exact in queries_of(truth):
                if "list_bytes_per_query" not in point:
                    point["list_bytes_per_query"] = _bytes(segment, xq, nprobe) / len(xq)
                point[name] = recall(index.search(xq, K, nprobe=nprobe, rerank=CANDIDATES)[1], exact)
            curve.append(point)
    print(json.dumps(curve))


def _bytes(segment: Segments, xq: ooc.types.FloatArray, nprobe: int) -> float:
    """Bytes of the lists that all queries look into."""
    _, lists = segment.coarse(segment.transform(xq), nprobe)
    return float(segment.sizes[lists[lists >= 0]].sum()) * (segment.code_size + ID_BYTES)


if __name__ == "__main__":
    main()
