"""Recall of a finished index, and what it reads for it: shared by every side's own script.

Imports numpy alone: it also runs in the peers' environments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Neighbours that are asked for, and candidates of the codes that are compared exactly for them.
K = 10
CANDIDATES = 100
#: Bytes of an id in a list.
ID_BYTES = 8

#: The sets of queries: the name of their recall, and their arrays in the file of the truth.
_SETS = (
    ("recall", "queries", "neighbors"),
    ("recall_shifted", "shifted_queries", "shifted_neighbors"),
)


def probes(nlist: int) -> list[int]:
    """Numbers of lists to probe: powers of two from 4 to 256, and never more than there are."""
    return [p for p in (4, 8, 16, 32, 64, 128, 256) if p <= nlist] or [nlist]


def queries_of(truth: str | Path) -> Iterator[tuple[str, Any, Any]]:
    """Each set of queries: the name of its recall, ``(nq, d)`` queries, ``(nq, K)`` exact neighbours."""
    with np.load(truth) as arrays:
        for name, queries, neighbours in _SETS:
            if queries in arrays and len(arrays[queries]):
                yield name, arrays[queries], arrays[neighbours][:, :K]


def recall(ids: Any, exact: Any) -> float:
    """The share of the exact neighbours that were found."""
    found = (exact[:, :, None] == ids[:, None, :]) & (exact >= 0)[:, :, None]
    return float(found.any(axis=2).sum() / max(1, (exact >= 0).sum()))


def at_equal_bytes(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], name: str = "recall"
) -> list[dict[str, float]]:
    """Our recall where we read as many bytes of lists as each of their settings does.

    Ours is interpolated between settings, over the logarithm of the bytes; their settings outside the
    range of ours are left out.
    """
    points = sorted(
        (p["list_bytes_per_query"], p[name]) for p in ours if p.get("list_bytes_per_query") and name in p
    )
    if not points:
        return []
    size, reached = np.log([p[0] for p in points]), np.array([p[1] for p in points])
    compared = []
    for point in theirs:
        at = point.get("list_bytes_per_query")
        if at and name in point and points[0][0] <= at <= points[-1][0]:
            mine = float(np.interp(np.log(at), size, reached))
            compared.append(
                {
                    "list_bytes_per_query": at,
                    "their_nprobe": point["nprobe"],
                    "ours": mine,
                    "theirs": point[name],
                    "difference": mine - point[name],
                }
            )
    return compared
