"""Witnesses: queries whose true neighbours are found on the pass that fills the shards.

They are rows drawn from the store, each left out of its own answer, or queries of the caller's. What a search
finds of their neighbours is what ``ooc.build.calibrate`` measures. Each shard keeps, beside its lists, the
rows of it that may be among the nearest; what is nearest of all is known when all shards are there,
whichever process filled them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np

from ooc.build.draw import draw_witnesses
from ooc.build.rows import Prepared, prepare
from ooc.build.sample import bad_rows_error
from ooc.build.shards import Shard
from ooc.build.sizes import DEEP_SHARE, witnesses_of
from ooc.durable import write_bytes
from ooc.errors import IndexDirError, ResourceError
from ooc.index.dead import Dead
from ooc.index.layout import BuildLayout
from ooc.search.sweep import Found, Sweep, ordered, place_of_each
from ooc.stores.base import Store
from ooc.types import AnyArray, FloatArray, IntArray, Metric, OnBad

__all__ = ["DEEP", "Group", "Looked", "Nearest", "Neighbours", "Witnesses", "neighbours_found"]

#: What each part of the witnesses found in a block of rows; None where none of the rows are its.
Looked: TypeAlias = list[Found | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What some witnesses tell of: their ``k`` nearest rows.

    Each knows the ``depth`` nearest of every ``every``-th row, of those whose numbers leave the same rest as
    its own number among the witnesses. Of the hundred nearest rows a quarter, drawn at random or nearly so,
    is as good as all, and takes a quarter of the time to find. Not the same quarter for all: where few rows
    are near to many queries, these few differ.
    """

    k: int
    depth: int
    every: int
    scanned: int


#: A few more than ten, for rows that are equally far.
NEAR = Group(k=10, depth=16, every=1, scanned=192)
#: Not 25: of these the last are often beyond the hundredth. Recall@100 of real sets is off by .002 at most,
#: and by .015 too low where candidates are hardly more than the hundred.
DEEP = Group(k=100, depth=24, every=4, scanned=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnesses:
    """Queries ``x`` ``(q, d)`` float32, prepared for the metric; ``own`` ``(q,)``: the row each is, or -1.

    ``deep`` of them, the first, tell of the hundred nearest rows, the others of the ten nearest. Where the
    caller gave few queries they are in both parts; ``count`` counts them once.
    """

    own: IntArray
    x: FloatArray
    deep: int
    count: int

    @property
    def groups(self) -> list[tuple[Group, slice]]:
        """Which of them tell of what."""
        return [(DEEP, slice(0, self.deep)), (NEAR, slice(self.deep, len(self.own)))]

    @property
    def parts(self) -> list[tuple[Group, range]]:
        """The same, those apart that know of different rows."""
        return [
            (group, range(some.start + first, some.stop, group.every))
            for group, some in self.groups
            for first in range(group.every)
        ]

    @property
    def by(self) -> str:
        """What they are: ``"rows"`` or ``"queries"``."""
        return "rows" if (self.own >= 0).any() else "queries"

    @property
    def depth(self) -> IntArray:
        """How many neighbours of each are found, ``(q,)``."""
        return np.where(np.arange(len(self.own)) < self.deep, DEEP.depth, NEAR.depth)

    @classmethod
    def draw(
        cls,
        store: Store,
        *,
        n: int,
        count: int,
        metric: Metric,
        seed: int,
        on_bad: OnBad,
        dead: Dead | None = None,
    ) -> Witnesses:
        """``count`` of the first ``n`` rows of the store, by the seed; fewer where some hold NaN or infinity.

        Dead rows are none of them; in their place about as many others are.

        Raises
        ------
        DataError
            A row holds NaN or infinity, and ``on_bad`` says to stop there.
        """
        gone = 0 if dead is None else dead.count
        rows = draw_witnesses(n, min(n, -(-count * n // max(n - gone, 1))), seed)
        if dead is not None:
            rows = rows[~dead.contains(rows)]
        deep = round(DEEP_SHARE * len(rows))
        order = np.argsort(rows)
        store.will_take(rows[order])
        taken = store.gather(rows[order])
        prepared = prepare(taken[np.argsort(order)], metric)
        if len(prepared.bad) and on_bad == "stop":
            raise bad_rows_error(store, int(rows[prepared.bad[0]]), len(prepared.bad), "of those drawn")
        good = prepared.comparable(metric)
        x = np.ascontiguousarray(prepared.x[good], dtype=np.float32)
        return cls(own=rows[good], x=x, deep=int(good[:deep].sum()), count=len(x))

    @classmethod
    def of(cls, x: FloatArray, seed: int, most: int) -> Witnesses:
        """Queries ``(q, d)`` of the caller's, as ``ooc.build.given.read_queries`` gives them.

        They make ``most`` witnesses at most: where they are fewer, they tell of ten rows and of a hundred.
        """
        deep, near = witnesses_of(len(x), most)
        # Those of either part are spread over all.
        order = np.random.default_rng([seed, len(x), 2]).permutation(len(x))
        x, count = np.concatenate((x[order[len(x) - deep :]], x[order[:near]])), len(x)
        own = np.full(len(x), -1, np.int64)
        return cls(own=own, x=np.ascontiguousarray(x), deep=deep, count=count)

    @classmethod
    def no_rows(cls, x: FloatArray) -> Witnesses:
        """Queries ``(q, d)``, prepared, that are no rows of the store."""
        own = np.full(len(x), -1, np.int64)
        return cls(own=own, x=x, deep=round(DEEP_SHARE * len(x)), count=len(x))

    @classmethod
    def load(cls, build: BuildLayout) -> Witnesses | None:
        """What ``save`` wrote; None where it did not."""
        if not build.witnesses.exists():
            return None
        own, x, deep, count = _unpacked(build.witnesses, ("own", "x", "deep", "count"))
        return cls(own=own, x=x, deep=int(deep), count=int(count))

    def save(self, build: BuildLayout) -> None:
        """Keep them with the build, durably."""
        write_bytes(
            build.witnesses,
            _packed(own=self.own, x=self.x, deep=np.array(self.deep), count=np.array(self.count)),
        )


class Neighbours:
    """The nearest rows so far of each witness, of all the shards that are on disk and the rows seen here.

    ``look`` is safe from several threads; the rest is for one.
    """

    def __init__(
        self, witnesses: Witnesses, metric: Metric, shards: list[Shard], basis: FloatArray | None
    ) -> None:
        # Of prepared rows those of cosine are of unit length.
        products: Metric = "ip" if metric == "cosine" else metric
        self._depth = witnesses.depth
        self._parts = [
            _Part(who, Sweep(witnesses.x[who], group.depth, products, witnesses.own[who], basis=basis))
            for group, who in witnesses.parts
            if who
        ]
        for shard in shards:
            near = _read(shard)
            for part in self._parts:
                mine = np.isin(near.query, part.who)
                query = (near.query[mine] - part.who.start) // part.every
                part.sweep.add(query, near.row[mine], near.key[mine])

    def look(self, start: int, prepared: Prepared, low: FloatArray | None) -> Looked:
        """What may be among the nearest, of prepared rows from number ``start`` on, ``low`` in the basis."""
        if not self._parts:
            return []
        short = self._parts[0].sweep.short(prepared.x, low)
        # A block begins at a multiple of any ``every``.
        return [
            part.sweep.look_at(start, prepared.x, prepared.bad, short, every=part.every, rest=part.rest)
            if len(prepared.x) > part.rest
            else None
            for part in self._parts
        ]

    def take(self, found: Looked) -> None:
        """Add what ``look`` found."""
        for part, one in zip(self._parts, found, strict=True):
            if one is not None:
                part.sweep.take(one)

    def nearest(self, lists_of: Callable[[IntArray], AnyArray]) -> Nearest:
        """The nearest of all rows that were seen.

        ``lists_of`` knows the lists ``(m, lists)`` of rows ``(m,)``.
        """
        found = []
        for part in self._parts:
            keys, ids = part.sweep.so_far()
            query, rank = np.nonzero(ids >= 0)
            row = ids[query, rank]
            lists = lists_of(row)
            found.append(_Near(query=part.numbers[query], row=row, key=keys[query, rank], lists=lists))
        return _nearest(found, self._depth)

    def of_rows(self, start: int, list_nos: AnyArray) -> bytes:
        """A file of those of the rows from ``start`` on that are among the nearest, with their lists.

        Parameters
        ----------
        list_nos : (m, lists) int
            The lists of the rows.
        """
        queries, rows, near = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for part in self._parts:
            keys, ids = part.sweep.so_far()
            here = np.nonzero((ids >= start) & (ids < start + len(list_nos)))
            queries.append(part.numbers[here[0]])
            rows.append(ids[here])
            near.append(keys[here])
        row = np.concatenate(rows)
        return _packed(
            query=np.concatenate(queries).astype(np.int32),
            row=row,
            key=np.concatenate(near),
            lists=list_nos[row - start].astype(np.int32),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Witnesses ``who`` that know of the same rows: those whose numbers leave ``rest`` of ``every``."""

    who: range
    sweep: Sweep

    @property
    def every(self) -> int:
        return self.who.step

    @property
    def rest(self) -> int:
        return self.who.start % self.who.step

    @property
    def numbers(self) -> IntArray:
        return np.arange(self.who.start, self.who.stop, self.who.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Near:
    query: IntArray
    row: IntArray
    key: FloatArray
    lists: AnyArray


def _read(shard: Shard) -> _Near:
    names = ("query", "row", "key", "lists")
    return _Near(**dict(zip(names, _unpacked(shard.neighbours, names), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearest:
    """The true neighbours of witnesses, the nearest first.

    Attributes
    ----------
    rows : (q, k) int64
        -1 where there are fewer, or fewer are known.
    keys : (q, k) float32
        Distances, negated for similarities; infinity where there is no row.
    lists : (q, k, lists) int32
        The lists that each is in.
    """

    rows: IntArray
    keys: FloatArray
    lists: AnyArray


def neighbours_found(shards: list[Shard], depth: IntArray) -> Nearest:
    """The nearest of all that the shards kept: as many of each witness as ``depth`` ``(q,)`` says."""
    return _nearest([_read(shard) for shard in shards], depth)


def _nearest(parts: list[_Near], depth: IntArray) -> Nearest:
    count = len(depth)
    query = np.concatenate([part.query for part in parts])
    row, key = np.concatenate([part.row for part in parts]), np.concatenate([part.key for part in parts])
    lists = np.concatenate([part.lists for part in parts])
    order = ordered(query, key, row)
    query = query[order]
    rank = place_of_each(query)
    order, query, rank = (a[rank < depth[query]] for a in (order, query, rank))
    most = max(DEEP.depth, NEAR.depth)
    rows = np.full((count, most), -1, np.int64)
    keys = np.full((count, most), np.inf, np.float32)
    in_lists: AnyArray = np.zeros((count, most, lists.shape[1]), np.int32)
    rows[query, rank], keys[query, rank], in_lists[query, rank] = row[order], key[order], lists[order]
    return Nearest(rows=rows, keys=keys, lists=in_lists)


def _packed(**arrays: AnyArray) -> bytes:
    """Arrays as the bytes of an ``.npz``; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    kept: dict[str, Any] = arrays
    np.savez(buffer, **kept)
    return buffer.getvalue()


def _unpacked(path: Path, names: Sequence[str]) -> list[AnyArray]:
    """The arrays of these names that ``_packed`` wrote."""
    try:
        # Opened here: numpy leaves the file of an archive open that is none.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, EOFError, MemoryError, BadZipFile) as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        raise IndexDirError(
            f"{path} cannot be read: {error}",
            kind="shard-damaged",
            hint="Remove it and run the build again, which makes it anew.",
        ) from error
