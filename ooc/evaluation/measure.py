"""What an index does at each setting of a grid: recall, time and bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ooc.evaluation.recall import drop_own, interval, recalls
from ooc.search.rerank import distances
from ooc.search.searcher import Index
from ooc.stores.base import Store
from ooc.types import FloatArray, IntArray

__all__ = ["Asked", "default_candidates", "default_nprobes", "measured", "with_best"]

#: Queries that are searched one at a time, for latency and bytes.
_SINGLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Queries and what is true of them.

    Attributes
    ----------
    xq : (nq, d) float32
        Of unit length where the metric is cosine.
    own : (nq,) int64, optional
        The rows that the queries are, each left out of its own answer.
    truth : (nq, >= k) int64
        True neighbours.
    limit : (nq,) float32, optional
        Exact distance of the last of the ``k``; None where the rows cannot be read.
    rows : Store, optional
        Where exact distances are to be taken from; None: a search gives them as they are.
    rows_of : callable
        The rows there of ids ``(nq, k)``; ``own`` and ``truth`` are ids.
    """

    xq: FloatArray
    own: IntArray | None
    truth: IntArray
    limit: FloatArray | None
    rows: Store | None
    rows_of: Callable[[IntArray], IntArray]


def default_nprobes(index: Index) -> list[int]:
    """Powers of two, from a 32nd of what a search probes where nobody says up to four times that."""
    usual = index.default_nprobe
    powers = [2**i for i in range((4 * usual).bit_length()) if usual <= 32 * 2**i and 2**i <= 4 * usual]
    return sorted({min(power, index.nlist) for power in powers})


def default_candidates(index: Index, k: int) -> list[int]:
    """From twice ``k`` to five times what a search compares where nobody says; without vectors none."""
    if not index.info()["vectors"]:
        return [0]
    usual = index.default_rerank(k)
    return sorted({min(m, index.n) for m in (2 * k, 5 * k, usual, 5 * usual)})


def measured(
    index: Index,
    asked: Asked,
    k: int,
    nprobes: Sequence[int],
    candidates: Sequence[int],
    *,
    stop: threading.Event | None = None,
) -> Iterator[dict[str, Any]]:
    """A JSON-ready record of each setting: see ``ooc.evaluate``.

    The batch goes first, so that single queries meet lists and rows in the page cache.
    """
    from ooc.errors import Stopped

    wanted = k + (asked.own is not None)
    for nprobe in nprobes:
        for count in candidates:
            Stopped.raise_if(stop)
            options: dict[str, Any] = {"nprobe": nprobe, "rerank": max(count, wanted) if count else 0}
            began = time.perf_counter()
            found, ids = index.search_until(stop, asked.xq, wanted, **options)
            seconds = time.perf_counter() - began
            found, ids = drop_own(found, ids, asked.own, k)
            if asked.rows is not None:
                found = distances(asked.xq, asked.rows_of(ids), asked.rows, index.metric)
            exact = None if asked.limit is None else found
            shares = recalls(ids, exact, asked.truth, asked.limit, k, index.metric)
            low, high = interval(shares, k=k)
            yield {
                "nprobe": nprobe,
                "candidates": count,
                "recall": float(shares.mean(dtype=np.float64)),
                "recall_low": low,
                "recall_high": high,
                "queries_per_second": len(asked.xq) / seconds,
                **_singles(index, asked.xq[:_SINGLES], wanted, options, stop),
            }


def _singles(
    index: Index, xq: FloatArray, k: int, options: dict[str, Any], stop: threading.Event | None
) -> dict[str, Any]:
    """Latency percentiles and means of what is read, of queries searched one at a time."""
    from ooc.errors import Stopped

    done = []
    for i in range(len(xq)):
        Stopped.raise_if(stop)
        done.append(index.explain(xq[i], k, **options))
    p50, p95, p99 = np.percentile([one.seconds["total"] for one in done], (50, 95, 99)).tolist()
    means = {
        name: float(np.mean([getattr(one, name) for one in done]))
        for name in ("lists", "entries", "list_bytes", "rows", "row_bytes")
    }
    return {"latency_seconds": {"p50": p50, "p95": p95, "p99": p99}, **means}


def with_best(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The points with ``best``: whether no other reads as little and recalls as much, or more.

    By bytes, not time: the same again on any machine.
    """
    order = sorted(points, key=lambda p: (p["list_bytes"] + p["row_bytes"], -p["recall"]))
    best, most = set(), -1.0
    for point in order:
        if point["recall"] > most:
            best.add((point["nprobe"], point["candidates"]))
            most = point["recall"]
    return [{**point, "best": (point["nprobe"], point["candidates"]) in best} for point in points]
