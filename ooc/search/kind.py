"""Whether queries are of the kind by which recall was measured.

A promise of recall holds for queries that lie among the rows as those did by which it was measured. Others
lie between the lists, and need more of them. That shows without knowing a neighbour: they are farther from
the centroid of the list that comes first.
"""

from __future__ import annotations

import warnings

import numpy as np

from ooc.errors import RecallWarning
from ooc.types import AnyArray, FloatArray, Metric

__all__ = ["FAR", "Kind", "nearness"]

#: The share of the witnesses that lie farther from all centroids than what is called far.
FAR = 0.05
#: Nothing is said before so many queries, and where no more than this share of them is far.
_QUERIES, _MANY = 64, 0.25


def nearness(coarse: FloatArray, y: FloatArray, metric: Metric) -> AnyArray:
    """How near queries are to the centroid of the first list: more is nearer; ``ip`` leaves their length out.

    Parameters
    ----------
    coarse : (nq,) float32
        The distance to, or product with, the centroid of the list that comes first.
    y : (nq, d) float32
        The queries, transformed.
    """
    if metric == "l2":
        return -coarse
    if metric == "cosine":
        return coarse
    lengths = np.sqrt(np.einsum("ij,ij->i", y, y))
    return coarse / np.where(lengths > 0, lengths, 1)


class Kind:
    """Looks at the queries of a promised recall, and warns once where they are of another kind.

    Parameters
    ----------
    far : float
        Nearness below which one in twenty witnesses lay.
    by : str
        What those were: ``"rows"`` or ``"queries"``.
    name : str
        The index, for the message.

    Notes
    -----
    Threads that look at once may count a few queries too few.
    """

    def __init__(self, far: float, *, metric: Metric, by: str, name: str) -> None:
        self._far, self._metric, self._by, self._name = far, metric, by, name
        self._seen = self._far_seen = 0
        self._told = False

    def look(self, coarse: FloatArray, y: FloatArray) -> None:
        """Look at queries ``(nq, d)``, transformed, and how near the first list of each is ``(nq,)``."""
        if self._told:
            return
        near = nearness(coarse, y, self._metric)
        self._seen += len(y)
        self._far_seen += int(near[0] < self._far) if len(y) == 1 else int((near < self._far).sum())
        if self._seen >= _QUERIES and self._far_seen > _MANY * self._seen:
            self._told = True
            measured = "rows of the store" if self._by == "rows" else "the queries that were given"
            share = self._far_seen / self._seen
            text = (
                f"{share:.0%} of {self._seen} queries lie farther from the lists of {self._name} than "
                f"{1 - FAR:.0%} of {measured}, by which its recall was measured: they may find less. "
                "`ooc eval` tells; an index built with queries of their kind (--queries) keeps its promise"
            )
            warnings.warn(RecallWarning(text), stacklevel=2)
