"""Recall at every setting of a grid, from the lists that neighbours lie in and their ranks by code.

A neighbour is found where its list is among those probed and its code among the candidates. The first is
known of every witness, the second of some: recall is the share of neighbours in probed lists, of all, less
the share of those whose code is missed, of the ones that were scanned (a control variate).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ooc.build.first import MOST_LOST, first_lost, first_met, one_lost
from ooc.build.scans import MOST_CANDIDATES, Ranks
from ooc.build.witness import DEEP, Group, Nearest
from ooc.build.workers import Pool, in_order
from ooc.search.promise import TABLED_K, lower
from ooc.types import AnyArray, IntArray

__all__ = ["Recalls", "Scanned", "grid", "recalls"]

#: Settings lie so far apart: eight to a doubling.
_STEPS = 8
#: So many steps of the lists are reckoned together: more are no faster, and need more memory.
_TOGETHER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalls:
    """Recall@k and its lower bound ``(p, c)`` at each step of the lists, and ``candidates`` ``(c,)``."""

    k: int
    candidates: IntArray
    recall: AnyArray
    low: AnyArray


def grid(last: int) -> IntArray:
    """Whole numbers from 1 to ``last``, eight to a doubling where there are as many."""
    exact = 2 ** (np.arange(int(np.log2(last) * _STEPS) + 1) / _STEPS)
    return np.unique(np.append(np.round(exact), last).astype(np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """A group of witnesses, of which ``some`` ``(s,)`` were scanned and their neighbours have ``ranks``."""

    group: Group
    all: slice
    some: IntArray
    ranks: Ranks


def recalls(
    probed: IntArray,
    within: IntArray,
    groups: Sequence[Scanned],
    nearest: Nearest,
    n: int,
    pool: Pool,
    *,
    threads: int,
) -> list[Recalls]:
    """Recall at every setting of the grid, for each k that is tabled and has neighbours.

    Parameters
    ----------
    probed : (q, p) int64
        How many lists of each witness are probed at each step. After the first step at which all neighbours
        are met, recall is 0: more lists bring nothing, and read more.
    within : (q, k) int64
        How many lists must be probed to meet each neighbour.
    groups : sequence of Scanned
        Who tells of which k.
    nearest : Nearest
        The neighbours.
    n : int
        How many rows there are.
    """
    most, there = min(MOST_CANDIDATES, n), nearest.rows >= 0
    by = {k: of for of in groups for k in TABLED_K if (k == DEEP.k) == (of.group is DEEP) and k < max(n, 2)}
    tabled = sorted(by)
    counts = {k: np.minimum(there.sum(axis=1), min(k, by[k].group.depth)) for k in tabled}
    # Rows as far as the k-th will do as well; of these as many as are known.
    last = {k: nearest.keys[np.arange(len(there)), np.maximum(counts[k], 1) - 1] for k in tabled}
    right = {k: there & (nearest.keys <= last[k][:, None]) for k in tabled}
    # Of the first neighbour the next nearest tell, too: as many as each witness has.
    few = int(there[by[1].all].sum(axis=1).min()) if 1 in tabled else 0
    first = {
        m: there & (nearest.keys <= nearest.keys[:, m - 1 : m]) for m in range(1, min(few, MOST_LOST) + 1)
    }
    asked = grid(most)
    from_k = {k: int(np.searchsorted(asked, k)) for k in tabled}

    def at_steps(probed: IntArray) -> tuple[dict[int, AnyArray], NDArray[np.bool_]]:
        """Recall and its bound ``(2, t, c)`` for each k at some steps ``(q, t)``, and where all are met."""
        met = within[:, None] <= probed[:, :, None]
        told = {}
        for of in groups:
            who = of.some
            rank = np.stack([of.ranks.at(lists) for lists in probed[who].T], axis=1)
            at = np.searchsorted(asked, rank, "right")
            for k in (k for k in tabled if by[k] is of):
                if k == 1 and few:
                    share, lost, one = _of_first(met, of, at, first, few, asked)
                else:
                    columns = slice(from_k[k], len(asked))
                    share, lost, one = _of_all(met & right[k][:, None], of, at, counts[k], k, columns)
                mean = share.mean(axis=0)[:, None] - lost.mean(axis=0)
                told[k] = np.stack((mean, lower(share, lost, one)))
        all_met: NDArray[np.bool_] = np.all(met | ~there[:, None], axis=(0, 2))
        return told, all_met

    found = {k: np.zeros((2, probed.shape[1], len(asked) - from_k[k])) for k in tabled}
    parts = [slice(i, min(i + _TOGETHER, probed.shape[1])) for i in range(0, probed.shape[1], _TOGETHER)]
    done = in_order(pool, at_steps, (probed[:, part] for part in parts), threads)
    for part, (told, all_met) in zip(parts, done, strict=False):
        steps = int(all_met.argmax()) + 1 if all_met.any() else len(all_met)
        for k in tabled:
            found[k][:, part][:, :steps] = told[k][:, :steps]
        if all_met.any():
            break
    for k in tabled if most == n else ():
        found[k][:, -1, -1] = 1  # every row of every list
    return [
        Recalls(k=k, candidates=asked[from_k[k] :], recall=np.clip(found[k][0], 0, 1), low=found[k][1])
        for k in tabled
    ]


#: Of each witness what share is met ``(q, t)``; of those scanned, what share of it the code misses
#: ``(s, t, c)``; and what one neighbour is of that ``(c,)``.
_Shares: TypeAlias = tuple[AnyArray, AnyArray, AnyArray]


def _of_first(
    met: NDArray[np.bool_],
    of: Scanned,
    at: IntArray,
    first: Mapping[int, NDArray[np.bool_]],
    few: int,
    asked: IntArray,
) -> _Shares:
    """Of the first neighbour, as the nearest ``few`` tell it: ``first`` are the nearest m."""
    who = of.some

    def lost(m: int, columns: slice) -> AnyArray:
        return _lost(met[who] & first[m][who, None], np.full(len(who), m), at, columns)

    most = len(first)
    return first_met(met[of.all, :, :few]), first_lost(lost, asked, most), one_lost(asked, most)


def _of_all(
    met: NDArray[np.bool_], of: Scanned, at: IntArray, counts: IntArray, k: int, columns: slice
) -> _Shares:
    """Of the k nearest that are met, of which ``counts`` ``(q,)`` are known."""
    # Where several are as far as the k-th more than k may be found.
    share = _share(met[of.all].sum(axis=2), counts[of.all, None])
    lost = _lost(met[of.some], counts[of.some], at, columns)
    return share, lost, np.full(lost.shape[-1], 1 / k)


def _lost(met: NDArray[np.bool_], counts: IntArray, at: IntArray, columns: slice) -> AnyArray:
    """What share the code misses of neighbours ``(s, t, k)`` whose lists are met: ``(s, t, c)``.

    ``counts`` ``(s,)`` of them are asked for. ``at`` ``(s, t, k)`` says from which number of candidates on
    each is among them; asked is about those ``columns`` of them.
    """
    width, lines = columns.stop - columns.start, met.shape[0] * met.shape[1]
    cell = np.clip(at, columns.start, columns.stop) - columns.start
    cell += np.arange(lines).reshape(*met.shape[:2], 1) * (width + 1)
    hits = np.bincount(cell[met], minlength=lines * (width + 1)).reshape(*met.shape[:2], width + 1)
    most = counts[:, None, None]
    got = np.minimum(np.cumsum(hits[:, :, :-1], axis=2), most)
    lost: AnyArray = np.minimum(met.sum(axis=2, keepdims=True), most) - got
    return lost / np.maximum(most, 1)


def _share(found: AnyArray, count: IntArray) -> AnyArray:
    """What part of the neighbours was found, at most all; all, where there are none."""
    share: AnyArray = np.minimum(found, count) / np.maximum(count, 1)
    return np.where(count > 0, share, 1.0)
