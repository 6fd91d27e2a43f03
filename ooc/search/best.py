"""The best of what was found: ordered, each row once."""

from __future__ import annotations

import numpy as np

from ooc.types import FloatArray, IntArray, Metric
from ooc.vectors import SHORT, pick

__all__ = ["best", "once", "worst"]


def worst(metric: Metric) -> float:
    """The distance of what is not there."""
    return float("inf") if metric == "l2" else float("-inf")


def best(found: FloatArray, ids: IntArray, k: int, metric: Metric) -> tuple[FloatArray, IntArray]:
    """The ``k`` best of each row, ordered by distance and then by id; padded with ids of -1.

    Parameters
    ----------
    found, ids : (nq, m) float32, (nq, m) int64
        Distances and the ids they belong to; entries with id -1 are not there.
    """
    m = found.shape[1]
    if len(found) == 1 and m <= SHORT:
        return _best_of_one(found[0], ids[0], k, metric)
    key = found if metric == "l2" else -found
    key = np.where(ids >= 0, key, np.inf)
    if m > 4 * k + 64:
        # All that are at least as near as the k-th, so that ties are settled by id below.
        kth = np.partition(key, k - 1, axis=1)[:, k - 1 : k]
        width = int((key <= kth).sum(axis=1).max())
        near = np.argpartition(key, min(width, m) - 1, axis=1)[:, :width]
        key, found = pick(key, near), pick(found, near)
        ids = pick(ids, near)
    order = np.lexsort((ids, key), axis=1)[:, :k]
    top_d, top_i = pick(found, order), pick(ids, order)
    if top_d.shape[1] < k:
        pad = ((0, 0), (0, k - top_d.shape[1]))
        top_d = np.pad(top_d, pad, constant_values=worst(metric))
        top_i = np.pad(top_i, pad, constant_values=-1)
    top_d[top_i < 0] = worst(metric)
    return np.ascontiguousarray(top_d), np.ascontiguousarray(top_i)


def _best_of_one(found: FloatArray, ids: IntArray, k: int, metric: Metric) -> tuple[FloatArray, IntArray]:
    """As ``best``, of one query ``(m,)`` by Python's own sort: see ``ooc.vectors.first_places``."""
    key = found if metric == "l2" else -found
    near = sorted(zip(key.tolist(), ids.tolist(), strict=True))
    if ids.min(initial=0) < 0:  # there may be none at all
        near = [one for one in near if one[1] >= 0]
    near = near[:k]
    top_d = np.array([[value for value, _ in near]], np.float32)
    top_i = np.array([[number for _, number in near]], np.int64)
    if metric != "l2":
        np.negative(top_d, out=top_d)
    if len(near) < k:
        top_d = np.append(top_d, np.full((1, k - len(near)), worst(metric), np.float32), axis=1)
        top_i = np.append(top_i, np.full((1, k - len(near)), -1, np.int64), axis=1)
    return top_d, top_i


def once(found: FloatArray, ids: IntArray, metric: Metric) -> tuple[FloatArray, IntArray]:
    """The same results with each id once, by its better distance: ids of the others become -1.

    Parameters
    ----------
    found, ids : (nq, m) float32, (nq, m) int64
        As for ``best``.

    Returns
    -------
    found, ids : (nq, m) float32, (nq, m) int64
        Of each query in the order of the ids.
    """
    order = np.lexsort((found if metric == "l2" else -found, ids), axis=1)
    found, ids = pick(found, order), pick(ids, order)
    again = ids[:, 1:] == ids[:, :-1]
    ids[:, 1:][again] = -1
    return found, ids
