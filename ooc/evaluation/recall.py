"""Recall with ties counted right, and how certain it is."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from ooc.search.rerank import distances
from ooc.stores.base import Store
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.vectors import pick

__all__ = ["CONFIDENCE", "drop_own", "interval", "limits", "recalls"]

CONFIDENCE = 0.95


def limits(xq: FloatArray, truth: IntArray, k: int, store: Store, metric: Metric) -> FloatArray:
    """The exact distance ``(nq,)`` of each query's last true neighbour: the k-th, or of fewer the last."""
    last = np.maximum((truth[:, :k] >= 0).sum(axis=1) - 1, 0)
    return distances(xq, pick(truth, last[:, None]), store, metric)[:, 0]


def recalls(
    ids: IntArray, found: FloatArray | None, truth: IntArray, limit: FloatArray | None, k: int, metric: Metric
) -> FloatArray:
    """The share of its ``k`` true neighbours that each query found, ``(nq,)`` float32.

    A found row counts where it is one of the true neighbours, or no farther than the last of them: of
    rows that are equally far, any will do.

    Parameters
    ----------
    ids, found : (nq, m) int64, (nq, m) float32
        What a search gave, each id at most once, and their exact distances; without these, ids alone count.
    truth : (nq, >= k) int64
        True neighbours, the nearest first; -1 for none.
    limit : (nq,) float32
        What ``limits`` gave; needed with ``found``.
    """
    truth, ids = truth[:, :k], ids[:, :k]
    wanted = (truth >= 0).sum(axis=1)
    # One number for each pair of query and id, so that one look-up does for all queries.
    queries = np.arange(len(ids))[:, None]
    end = max(int(truth.max(initial=0)), int(ids.max(initial=0))) + 1
    right = np.isin(queries * end + ids, (queries * end + truth)[truth >= 0])
    if found is not None and limit is not None:
        found = found[:, :k]
        right |= found <= limit[:, None] if metric == "l2" else found >= limit[:, None]
    right &= ids >= 0
    hits = np.minimum(right.sum(axis=1), wanted)
    # Where nothing is to be found nothing is missed.
    return np.where(wanted > 0, hits / np.maximum(wanted, 1), 1).astype(np.float32)


def drop_own(found: FloatArray, ids: IntArray, own: IntArray | None, k: int) -> tuple[FloatArray, IntArray]:
    """The ``k`` best of ``k + 1`` results, the query's own row left out."""
    if own is None:
        return found, ids
    # The own row, or else the last result, goes; the others keep their order.
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")[:, :k]
    return pick(found, order), pick(ids, order)


def interval(shares: AnyArray, *, k: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """A confidence interval of the mean recall of queries of this kind.

    Wilson's score interval (E. B. Wilson, JASA 22, 1927), with as many trials as the variance between
    queries is worth: p (1 - p) / s² of them a query, at least one, at most ``k``. The neighbours of
    one query are found or missed together, so that ``k`` trials a query would be too many. One query more,
    which found nothing, is counted in that variance: a bootstrap, and a plain normal interval, of a small
    sample that found everything would say that recall is 1 for certain. Nor is the lower end ever above
    that of as many queries which found everything.

    Parameters
    ----------
    shares : (nq,) float
        Recall of each query.
    """
    nq = len(shares)
    p = float(np.mean(shares, dtype=np.float64))
    more = np.append(np.asarray(shares, np.float64), 0.0)
    mean, variance = float(more.mean()), float(more.var())
    worth = mean * (1 - mean) / variance if variance > 0 else 1.0
    trials = nq * min(max(worth, 1.0), float(k))
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    spread = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    centre, scale = p + z * z / (2 * trials), 1 + z * z / trials
    low = min((centre - spread) / scale, nq / (nq + z * z))
    return max(0.0, low), min(1.0, (centre + spread) / scale)
