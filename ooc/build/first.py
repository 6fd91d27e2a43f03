"""Recall of the first neighbour, from the few nearest.

Of one neighbour a query it is known whether it is found, and no more: some hundred queries leave recall@1
uncertain by a percent and a half. The next nearest know nearly as much of it. Their lists are met a little
less often, in proportion to the logarithm of their rank; and the code misses them more often, in proportion
to the rank or to a higher power of it. On word vectors, images and sentence embeddings the first estimate is
off by a percent or less, and the second has a half to a third of the standard error.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ooc.types import AnyArray, IntArray

__all__ = ["MOST_LOST", "first_lost", "first_met", "one_lost"]

#: Of so many nearest it is asked whether their lists are met, and of so many at most whether the code
#: misses them.
_MET, MOST_LOST = 10, 4

_TINY = np.finfo(float).tiny


def first_met(met: NDArray[np.bool_]) -> AnyArray:
    """Whether the list of the first neighbour is met, as the line through the nearest says: ``(q, ..)``.

    As far as the first neighbours themselves say something else, and more than chance would, they count: the
    two are put together with the weight ``1 - 2 v / b^2`` where they differ by ``b``, of variance ``v`` (less
    than nothing is none). Of one query it may be less than 0 or more than 1; the mean counts.

    Parameters
    ----------
    met : (q, .., k) bool
        Whether the list of each is, the nearest first.
    """
    ranks = np.arange(1, min(_MET, met.shape[-1]) + 1)
    line = np.stack((np.ones(len(ranks)), np.log(ranks)), axis=1)
    # Least squares: what each rank weighs in where the line begins.
    weights = np.linalg.pinv(line)[0]
    told: AnyArray = met[..., : len(ranks)] @ weights
    off: AnyArray = met[..., 0] - told
    square = off.mean(axis=0) ** 2
    chance = off.var(axis=0) / len(off)
    told += np.maximum(1 - 2 * chance / np.maximum(square, _TINY), 0) * off
    return told


def first_lost(lost: Callable[[int, slice], AnyArray], candidates: IntArray, most: int) -> AnyArray:
    """How often the code misses the first neighbour, of those whose list is met, at most: ``(s, .., c)``.

    Were the m-th missed m times as often as the first, the mean of m would be (m + 1) / 2 times that.

    Parameters
    ----------
    lost : callable
        ``lost(m, columns)``: the share of the m nearest that is missed at some of the candidates,
        ``(s, .., columns)``.
    candidates : (c,) int64
        In ascending order.
    most : int
        Of how many nearest it can be told, at most ``MOST_LOST``.
    """
    of = _of(candidates, most)
    ends = np.searchsorted(of, np.arange(most + 1), side="right").tolist()
    parts = [(m, slice(ends[m - 1], ends[m])) for m in range(1, most + 1) if ends[m - 1] < ends[m]]
    return np.concatenate([lost(m, columns) * (2 / (m + 1)) for m, columns in parts], axis=-1)


def one_lost(candidates: IntArray, most: int) -> AnyArray:
    """What one neighbour that is missed adds to ``first_lost``, ``(c,)``."""
    of = _of(candidates, most)
    share: AnyArray = 2 / (of * (of + 1.0))
    return share


def _of(candidates: IntArray, most: int) -> IntArray:
    """Of how many of the nearest: of more where candidates are many, or the later ones are all missed."""
    return np.clip(np.log2(candidates).astype(np.int64) - 1, 1, most)
