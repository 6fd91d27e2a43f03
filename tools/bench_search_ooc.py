"""Our side of the search benchmark: a process of its own that opens an index and searches it.

bench_search_ooc.py JOB          # see bench_search_worker.main
"""

from __future__ import annotations

from typing import Any

from bench_recall import K
from bench_search_worker import Setting, main

import ooc


class _Ours:
    batches = True

    def __init__(self, side: dict[str, Any]) -> None:
        self._index = ooc.open_index(side["index"])

    def set(self, setting: Setting) -> None:
        if "promised" in setting:
            self._options: dict[str, Any] = {"recall": setting["promised"] / 1000}
        else:
            self._options = {"nprobe": setting["nprobe"], "rerank": setting["candidates"]}

    def search(self, xq: Any) -> Any:
        return self._index.search(xq, K, **self._options)[1]

    def in_thread(self) -> None:
        """Threads need nothing of the caller."""


if __name__ == "__main__":
    main(_Ours)
