"""How long a query takes, at the settings that recalls take.

Measured while recall is, on lists and rows that are in memory, one query at a time. It is kept in the
generation's report, where nothing depends on it: times are never the same again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ooc.build.searched import Searched
from ooc.engine import threads_limited
from ooc.errors import Stopped
from ooc.index.dead import Dead
from ooc.index.segment import Segments
from ooc.search.budget import Budget
from ooc.search.promise import Promise, Setting
from ooc.search.stages import Stages, Wanted
from ooc.stores import Store
from ooc.types import FloatArray, IntArray

__all__ = ["times"]

#: Queries at each setting at least and at most, and seconds after which no more than the least are asked;
#: where rows come slowly fewer are.
_LEAST, _MOST, _SECONDS, _MOST_SECONDS = 2, 16, 0.05, 1.0


def times(
    segment: Segments,
    rows: Store | None,
    searched: Searched,
    calibration: Mapping[str, Any],
    x: FloatArray,
    dead: Dead | None = None,
    stop: threading.Event | None = None,
) -> list[dict[str, Any]]:
    """The median time of a query at the setting of each recall that is shown.

    Parameters
    ----------
    segment : Segments
        The lists, in the order that was chosen.
    rows : Store, optional
        Where exact distances are taken from; without it nothing is measured.
    calibration : mapping
        What ``calibrate`` measured.
    x : (q, d) float32
        Prepared queries.
    dead : Dead, optional
        Rows in the lists that do not count.

    Returns
    -------
    list of dict
        ``k``, ``nprobe``, ``rerank``, ``p50_seconds``, and ``queries``, of how many.
    """
    promise = Promise.of({"calibration": calibration})
    if rows is None or promise is None:
        return []
    # Several recalls may come to one setting.
    asked = list(dict.fromkeys((k, setting) for k, _, setting, _ in promise.shown()))
    there = _Rows(rows, searched.n)
    stages = Stages(segment, there, searched.metric, Budget.of(None), numbering=there, dead=dead)
    seconds: list[list[float]] = [[] for _ in asked]
    began = time.perf_counter()
    with threads_limited(1):
        _one(stages, x[:1], *asked[0])  # what is loaded and looked up once is no query's time
        for turn in range(_MOST):
            for taken, (k, setting) in zip(seconds, asked, strict=True):
                Stopped.raise_if(stop)
                at = turn * len(x) // _MOST
                if time.perf_counter() - began < _MOST_SECONDS:
                    taken.append(_one(stages, x[at : at + 1], k, setting))
            if turn + 1 >= _LEAST and time.perf_counter() - began > _SECONDS:
                break
    return [
        {
            "k": k,
            "nprobe": setting.nprobe,
            "rerank": setting.candidates,
            "p50_seconds": round(float(np.median(taken)), 7),
            "queries": len(taken),
        }
        for taken, (k, setting) in zip(seconds, asked, strict=True)
        if taken
    ]


class _Rows:
    """Rows that are open already, and whose ids do not matter."""

    def __init__(self, store: Store, end: int) -> None:
        self._store, self.row_end = store, end

    def rows(self) -> Store:
        return self._store

    def ids(self, rows: IntArray) -> IntArray:
        return rows


def _one(stages: Stages, x: FloatArray, k: int, setting: Setting) -> float:
    """Seconds that a query takes."""
    wanted = Wanted(nprobe=setting.nprobe, reach=setting.reach, k=k, candidates=setting.candidates)
    began = time.perf_counter()
    stages.search(x, wanted)
    return time.perf_counter() - began
