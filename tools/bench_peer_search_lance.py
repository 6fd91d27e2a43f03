"""LanceDB's engine in the search benchmark: a process of its own in its environment.

    bench_peer_search_lance.py JOB          # see bench_search_worker.main

The data set and its index are made by ``bench_peer_lance.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from bench_peer_lance import Searcher
from bench_search_worker import Setting, main


class _Lance:
    batches = False  # its queries are one by one

    def __init__(self, side: dict[str, Any]) -> None:
        self._searcher = Searcher(side["index"])

    def set(self, setting: Setting) -> None:
        self._setting = setting

    def search(self, xq: Any) -> Any:
        setting = self._setting
        return np.array([self._searcher.search(q, setting["nprobe"], setting["candidates"]) for q in xq])

    def in_thread(self) -> None:
        """Threads need nothing of the caller."""


if __name__ == "__main__":
    main(_Lance)
