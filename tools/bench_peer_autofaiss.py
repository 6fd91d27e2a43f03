"""autofaiss, as one would use it: a process of its own in autofaiss's environment.

    bench_peer_autofaiss.py DIRECTORY-OF-NPY INDEX.faiss INDEX_BYTES

It chooses the index by itself: one of at most INDEX_BYTES, with all of the machine's free memory to
make it in. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys

import autofaiss  # type: ignore[import-not-found, unused-ignore]


def main() -> None:
    directory, index, index_bytes = sys.argv[1:]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _, infos = autofaiss.build_index(
        embeddings=directory,
        index_path=index,
        index_infos_path=index + ".json",
        max_index_memory_usage=f"{int(index_bytes) // 10**6}MB",
        current_memory_available=f"{free // 10**6}MB",
        metric_type="ip",
        verbose=30,
    )
    print(
        json.dumps({"chosen": (infos or {}).get("index_key"), "settings": (infos or {}).get("index_param")})
    )


if __name__ == "__main__":
    main()
