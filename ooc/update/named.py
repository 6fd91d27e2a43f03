"""Rows as somebody names them for a change: by id or by key."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ooc.errors import ArgumentError, DataError
from ooc.index.live_keys import LiveKeys, no_keys
from ooc.stores.keys import KeyBlock, KeySource, open_keys, shown
from ooc.types import AnyArray, IntArray, KeysLike
from ooc.update.publish import Live

__all__ = [
    "Named",
    "by_id",
    "by_key",
    "checked_ids",
    "live_rows_of_ids",
    "live_rows_of_keys",
    "see_keyed",
    "see_new",
    "see_one_of",
]


def see_one_of(ids: object, keys: object) -> None:
    """See that rows are named by one of the two.

    Raises
    ------
    ArgumentError
        By none, or by both.
    """
    if (ids is None) == (keys is None):
        how = "by neither ids nor keys" if ids is None else "by ids and by keys"
        raise ArgumentError(f"rows are named {how}", kind="ids", hint="Give one of the two.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The rows of an upsert as somebody names them: their ids, and keys where they have some."""

    ids: IntArray
    keys: KeyBlock | None


def by_id(before: Live, ids: AnyArray) -> Named:
    """Rows by id; they keep the keys that they have."""
    wanted = checked_ids(ids, before.generation.id_end)
    ascending = np.sort(wanted)
    twice = ascending[1:][ascending[1:] == ascending[:-1]]
    if len(twice):
        raise ArgumentError(
            f"id {twice[0]} is given twice",
            kind="ids",
            hint="Leave out all but the vector that it shall have.",
        )
    if before.keys is None:
        return Named(ids=wanted, keys=None)
    rows = before.numbering.rows(wanted)
    if (rows < 0).any():
        raise ArgumentError(
            f"id {wanted[rows < 0][0]} was deleted, and its key with it",
            kind="ids",
            hint="Name the row by the key that it shall have: keys=, `ooc upsert INDEX --keys KEYS STORE`.",
        )
    return Named(ids=wanted, keys=before.keys.take(rows))


def by_key(before: Live, keys: KeysLike) -> Named:
    """Known keys keep their ids; those that no live row has get new ones, in the order given."""
    live_keys = before.keys
    if live_keys is None:
        raise no_keys(before.layout.root)
    block = open_keys(keys, live_keys.kind).all()
    ids = before.numbering.ids(live_keys.rows(block))
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero((ids[order][1:] == ids[order][:-1]) & (ids[order][1:] >= 0))
    if len(twice):
        raise DataError(
            f"key {shown(block, int(order[twice[0]]))} is given twice",
            kind="duplicate-key",
            hint="Leave out all but the vector that its row shall have.",
        )
    unknown = np.flatnonzero(ids < 0)
    ids[unknown] = before.generation.id_end + np.arange(len(unknown))
    return Named(ids=ids, keys=block)


def checked_ids(ids: AnyArray, end: int) -> IntArray:
    """Ids that somebody names, ``(m,)`` int64.

    Raises
    ------
    ArgumentError
        They are no whole numbers of one dimension, or one was never given.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ArgumentError(
            f"ids must be a 1-d array of integers, not {array.ndim}-d {array.dtype}", kind="ids"
        )
    if array.size and (int(array.min()) < 0 or int(array.max()) >= end):
        bad = array[(array < 0) | (array >= end)][0]
        raise ArgumentError(
            f"id {bad} was never given: this index has ids 0 to {end - 1}",
            kind="ids",
            hint="New vectors get their ids from `ooc append`.",
        )
    return array.astype(np.int64)


def see_keyed(before: Live, *, given: bool) -> None:
    """See that rows come with keys if and only if those of the index have some."""
    if given and not before.generation.keyed:
        raise no_keys(before.layout.root)
    if before.generation.keyed and not given:
        raise ArgumentError(
            f"the rows of {before.layout.root} have keys, and none are given for these",
            kind="keys",
            hint="Give a key for each: keys=, `ooc append INDEX STORE --keys KEYS`.",
        )


def see_new(before: Live, live_keys: LiveKeys, source: KeySource) -> None:
    """See that no live row has any of the keys."""
    for block in source.blocks():
        rows = live_keys.rows(block)
        known = np.flatnonzero(rows >= 0)
        if len(known):
            at = known[:1]
            raise DataError(
                f"key {shown(block, int(at[0]))} of {source.where} is in the index already: "
                f"id {before.numbering.ids(rows[at])[0]} has it",
                kind="duplicate-key",
                hint="Replace such rows with `ooc upsert INDEX --keys KEYS STORE`, or leave them out.",
            )


def live_rows_of_ids(before: Live, ids: AnyArray) -> IntArray:
    """The live rows of ids, ascending."""
    if ids.dtype == bool and ids.shape == (before.generation.id_end,):
        ids = np.flatnonzero(ids)
    rows = before.numbering.rows(np.unique(checked_ids(ids, before.generation.id_end)))
    return np.sort(rows[rows >= 0])


def live_rows_of_keys(before: Live, keys: KeysLike) -> tuple[IntArray, int]:
    """The live rows of keys, ascending, and how many keys no live row has."""
    live_keys = before.keys
    if live_keys is None:
        raise no_keys(before.layout.root)
    found = [live_keys.rows(block) for block in open_keys(keys, live_keys.kind).blocks()]
    rows = np.concatenate([np.empty(0, np.int64), *found])
    return np.unique(rows[rows >= 0]), int((rows < 0).sum())
