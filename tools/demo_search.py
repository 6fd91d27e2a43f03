"""A process that opens an index and searches it, and nothing else: INDEX QUERIES.npy IDS.npy K

Says how long that took and how much memory is its own: the index itself stays on disk.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

import ooc
from ooc.mapping import private_bytes
from ooc.units import format_bytes


def main(index_path: str, queries_path: str, ids_path: str, k: str) -> None:
    queries = np.load(queries_path)
    ids = np.empty((len(queries), int(k)), np.int64)
    seconds = np.empty(len(queries))

    began = time.perf_counter()
    with ooc.open_index(index_path) as index:
        opened = time.perf_counter() - began
        for i in range(len(queries)):
            began = time.perf_counter()
            _, ids[i : i + 1] = index.search(queries[i : i + 1], k=int(k))
            seconds[i] = time.perf_counter() - began
        private = private_bytes()

    np.save(Path(ids_path), ids)
    median, late = np.percentile(seconds, (50, 99)) * 1e3
    print(f"  opened in {opened * 1e3:.0f} ms; a query takes {median:.1f} ms (99 % within {late:.1f} ms)")
    print(f"  private memory of the searching process: {format_bytes(private)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
