"""The order in which a search looks into lists, chosen by the true neighbours of the witnesses.

At each strength of the handicap (``ooc.engine.Handicap``) it is known, without a search, how many bytes
of lists are read until the list of a neighbour is met. The strength is taken at which those bytes are
fewest: in the mean of their logarithms, and of the neighbours that are found neither at once nor last, since
those decide what a search at a recall of .8 to .98 costs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ooc.build.searched import Searched
from ooc.build.sizes import ORDER_BYTES
from ooc.build.witness import Nearest
from ooc.build.workers import Pool, in_order
from ooc.engine import Handicap, Sketch, sketched
from ooc.errors import Stopped
from ooc.index.order import Order
from ooc.index.segment import Segments
from ooc.types import AnyArray, FloatArray, IntArray
from ooc.vectors import evenly

__all__ = ["choose_order", "sketch_lists"]

_STRENGTHS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
#: Witnesses that are asked, and neighbours of each; so many together.
_ASKED, _NEIGHBOURS, _TILE = 384, 10, 32
#: Of all neighbours those from this place to that one count, where the first are met soonest.
_FROM, _TO = 0.6, 0.98
#: A stronger handicap is taken where it saves more than this part of the bytes.
_GAIN = 0.005


def choose_order(
    segment: Segments,
    plan: Searched,
    spread: FloatArray,
    x: FloatArray,
    nearest: Nearest,
    pool: Pool,
    stop: threading.Event | None = None,
) -> Order:
    """The order that reads least, without a sketch.

    Parameters
    ----------
    segment : Segments
        The merged lists.
    spread : (nlist,) float32
        How far the rows of each list spread.
    x, nearest : (q, d) float32, Nearest
        Witnesses and their true neighbours.
    """
    handicaps = [Handicap(spread, strength, plan.metric) for strength in _STRENGTHS]
    list_bytes = segment.list_bytes(np.arange(segment.nlist)).astype(np.float32)
    asked = evenly(len(x), _ASKED)
    step = max(1, min(_TILE, ORDER_BYTES // (8 * _NEIGHBOURS * segment.nlist)))

    def one(some: IntArray) -> AnyArray:
        Stopped.raise_if(stop)
        there = nearest.rows[some, :_NEIGHBOURS] >= 0
        looks = segment.looks(segment.transform(x[some]))
        lists = nearest.lists[some, :_NEIGHBOURS]
        return np.stack([_bytes_until(h.key(looks), list_bytes, lists)[there] for h in handicaps])

    tiles: Iterator[IntArray] = (asked[i : i + step] for i in range(0, len(asked), step))
    # Without witnesses the nearest comes first.
    none = np.empty((len(handicaps), 0))
    costs = np.concatenate([none, *in_order(pool, one, tiles, plan.threads)], axis=1)
    costs = np.sort(np.log(np.maximum(costs, 1)), axis=1)
    count = costs.shape[1]
    costs = costs[:, int(_FROM * count) : max(int(_TO * count), int(_FROM * count) + 1)]
    best = 0
    if count and np.ptp(spread) > 0:
        for i, cost in enumerate(costs.mean(axis=1)):
            best = i if cost < costs[best].mean() - _GAIN else best
    return Order(handicaps[best] if best else None)


def sketch_lists(segment: Segments, plan: Searched, order: Order, sketch: Path) -> Order:
    """The same order with a sketch of the centroids, written there, where there are many lists."""
    if not sketched(segment.nlist, segment.d_code) or segment.has_graph:
        return order
    Sketch.make(segment.centroids, plan.metric, order.handicap).save(sketch)
    return Order(order.handicap, sketch)


def _bytes_until(key: FloatArray, list_bytes: FloatArray, lists: AnyArray) -> AnyArray:
    """Bytes of lists ``(q, k)`` that are read until one of the lists ``(q, k, m)`` of a neighbour is met."""
    met = key[np.arange(len(key))[:, None, None], lists].min(axis=2)
    until: AnyArray = (key[:, None] <= met[:, :, None]) @ list_bytes
    return until
