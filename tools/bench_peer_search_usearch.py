"""USearch in the search benchmark: processes of their own in its environment.

    bench_peer_search_usearch.py make f32|i8 ROWS.npy INDEX --rows N --seconds S
    bench_peer_search_usearch.py JOB          # see bench_search_worker.main

The index is a graph with the vectors in it, of float32 or of a byte a dimension, and is not loaded but
viewed: mapped. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from bench_recall import K
from bench_search_worker import Setting, main, padded
from usearch.index import Index  # type: ignore[import-not-found, unused-ignore]

_BLOCK_ROWS = 4_096
#: The share of its time that the graph may grow for.
_SHARE = 0.85


class _Viewed:
    batches = True

    def __init__(self, side: dict[str, Any]) -> None:
        self._index = Index.restore(side["index"], view=True)
        self._n = side["rows"]

    def set(self, setting: Setting) -> None:
        self._index.expansion_search = setting["ef"]

    def search(self, xq: Any) -> Any:
        if len(xq) == 1:
            return padded(self._index.search(xq[0], K, threads=1).keys, self._n)[None]
        return np.array([padded(keys, self._n) for keys in self._index.search(xq, K).keys])

    def in_thread(self) -> None:
        """Threads need nothing of the caller."""


def make() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("make",))
    parser.add_argument("dtype", choices=("f32", "i8"))
    parser.add_argument("data")
    parser.add_argument("index")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args()
    x = np.load(args.data, mmap_mode="r")[: args.rows]
    index = Index(ndim=x.shape[1], metric="cos", dtype=args.dtype)
    began = time.monotonic()
    for first in range(0, len(x), _BLOCK_ROWS):
        block = np.ascontiguousarray(x[first : first + _BLOCK_ROWS])
        index.add(np.arange(first, first + len(block), dtype=np.uint64), block)
        if time.monotonic() - began > _SHARE * args.seconds:
            break
    index.save(args.index)
    return {"rows": len(index), "seconds": time.monotonic() - began}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        print(json.dumps(make()))
    else:
        main(_Viewed)
