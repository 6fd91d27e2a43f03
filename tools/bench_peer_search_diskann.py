"""DiskANN (diskannpy) in the search benchmark: processes of their own in its environment.

    bench_peer_search_diskann.py make ROWS.npy DIRECTORY --rows N --threads N
    bench_peer_search_diskann.py JOB          # see bench_search_worker.main

Rows have unit length, so that the nearest by L2 are those by cosine. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import diskannpy  # type: ignore[import-not-found, unused-ignore]
import numpy as np
from bench_recall import K
from bench_search_worker import Setting, main, padded

#: The graph: links of a row, and how widely they are looked for.
_DEGREE, _COMPLEXITY = 32, 50
#: Reads of a search that are in flight at once.
_BEAM = 4
#: Bytes of the compressed vectors that it keeps in memory, as a share of the raw ones.
_MEMORY_SHARE = 0.02
#: What it may take to build, in GB.
_BUILD_GB = 8.0


class _DiskIndex:
    batches = True

    def __init__(self, side: dict[str, Any]) -> None:
        self._threads = side["threads"]
        self._n = side["rows"]
        self._index = diskannpy.StaticDiskIndex(
            index_directory=side["index"],
            num_threads=self._threads,
            num_nodes_to_cache=0,
            cache_mechanism=0,
        )

    def set(self, setting: Setting) -> None:
        self._complexity = setting["complexity"]

    def search(self, xq: Any) -> Any:
        if len(xq) == 1:
            found = self._index.search(xq[0], K, self._complexity, beam_width=_BEAM)
            return padded(found.identifiers, self._n)[None]
        found = self._index.batch_search(xq, K, self._complexity, self._threads, beam_width=_BEAM)
        return np.array([padded(ids, self._n) for ids in found.identifiers])

    def in_thread(self) -> None:
        """Threads need nothing of the caller."""


def make() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("make",))
    parser.add_argument("data")
    parser.add_argument("index")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    x = np.load(args.data, mmap_mode="r")[: args.rows]
    Path(args.index).mkdir()
    rows = Path(args.index) / "rows.bin"
    with rows.open("wb") as file:  # its own format: the shape, then the rows
        np.array(x.shape, np.int32).tofile(file)
        for first in range(0, len(x), 8_192):
            np.ascontiguousarray(x[first : first + 8_192]).tofile(file)
    began = time.monotonic()
    diskannpy.build_disk_index(
        data=str(rows),
        distance_metric="l2",
        index_directory=args.index,
        complexity=_COMPLEXITY,
        graph_degree=_DEGREE,
        search_memory_maximum=max(1e-3, x.nbytes * _MEMORY_SHARE / 2**30),
        build_memory_maximum=_BUILD_GB,
        num_threads=args.threads,
        vector_dtype=np.float32,
    )
    seconds = time.monotonic() - began
    for left in (rows, Path(args.index) / "ann_mem.index.data"):  # copies of the rows that nothing reads
        left.unlink(missing_ok=True)
    return {"rows": len(x), "seconds": seconds}


if __name__ == "__main__":
    if sys.argv[1] == "make":
        # It writes its progress to stdout: that goes where progress belongs.
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        print(json.dumps(make()), file=out, flush=True)
    else:
        main(_DiskIndex)
