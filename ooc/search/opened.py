"""One generation of an index, opened: everything that a search of it needs, and what follows from its record.

A reader holds the generation that it reads: as long as it is open, ``ooc gc`` leaves its files alone.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import Self

import numpy as np

from ooc.errors import ArgumentError, IndexDirError
from ooc.index.drift import measured_rows
from ooc.index.generation import Generation
from ooc.index.layout import Header, Layout
from ooc.index.live_keys import LiveKeys, no_keys
from ooc.index.lock import Hold
from ooc.index.numbering import IdFiles, Numbering
from ooc.index.order import Order
from ooc.index.segment import Segments
from ooc.search.budget import Budget
from ooc.search.filters import Filter
from ooc.search.kind import Kind
from ooc.search.promise import Choice, Promise
from ooc.search.source import Source
from ooc.search.stages import Stages
from ooc.stores.keys import open_keys
from ooc.types import AnyArray, IntArray, KeysLike, StoreLike

__all__ = ["Opened"]


class Opened:
    """A generation, its segments, its rows, and the stages of a search through them.

    Safe from several threads, until it is closed.

    Attributes
    ----------
    generation : Generation
    record : mapping
        Of the generation.
    segments : Segments
    source : Source
        Vectors, by number of row.
    numbering : Numbering
        Which row an id is, and which id a row has.
    dead : Dead
    keys : LiveKeys or None
        Where rows have some.
    choice : Choice
        Which setting a search takes.
    stages : Stages
    n : int
        Rows that a search may find.
    """

    def __init__(
        self,
        layout: Layout,
        header: Header,
        number: int,
        budget: Budget,
        moved: StoreLike | Mapping[str, StoreLike] | None = None,
    ) -> None:
        self._layout, self._hold = layout, Hold(layout.generation(number))
        try:
            self.generation = Generation.read(layout, number)
            self.record = self.generation.record
            layout = self._layout = layout.of_generation(self.record)
            order = Order.read(layout, number, self.record, header.metric)
            layouts = [layout.segment(one.name) for one in self.generation.segments]
            self.segments = Segments(layouts, header.lists_per_row, order)
            self._check(header)
            self.dead = self.generation.read_dead(layout)
            self.numbering = Numbering(self.generation, self.dead, IdFiles(layout))
            self.keys = LiveKeys(layout, self.generation, self.dead) if self.generation.keyed else None
            self.source = Source(layout, self.generation, header.d, moved)
        except BaseException:
            self._hold.close()
            raise
        self.n = self.generation.rows
        name, promise = str(layout.root), Promise.of(self.record)
        self.choice = Choice(
            promise,
            name=name,
            n=self.n,
            nlist=self.segments.nlist,
            lists_per_row=header.lists_per_row,
            measured=measured_rows(self.record, [one.record for one in self.segments.each]),
            exact=self.source.known,
        )
        kind = None
        if promise is not None and promise.far is not None:
            kind = Kind(promise.far, metric=header.metric, by=promise.by, name=name)
        self.stages = Stages(
            self.segments,
            self.source,
            header.metric,
            budget,
            numbering=self.numbering,
            dead=self.dead if self.generation.unfinished_deletions else None,
            kind=kind,
        )
        #: What filters allow in numbers of rows, by the filters.
        self._allowed: weakref.WeakKeyDictionary[Filter, Filter] = weakref.WeakKeyDictionary()

    @classmethod
    def newest(
        cls,
        layout: Layout,
        header: Header,
        budget: Budget,
        moved: StoreLike | Mapping[str, StoreLike] | None = None,
    ) -> Self:
        """The live generation. One that goes while it is opened was replaced: then the next one."""
        while True:
            number = layout.published()
            try:
                return cls(layout, header, number, budget, moved)
            except IndexDirError:
                if layout.live() == number:
                    raise

    def _check(self, header: Header) -> None:
        segments = self.segments
        if (segments.d, segments.skeleton.l2) != (header.d, header.metric == "l2"):
            raise IndexDirError(
                f"{segments.described} is of {segments.d} dimensions, or for another metric",
                kind="index-damaged",
            )
        for entry, one in zip(self.generation.segments, segments.each, strict=True):
            if entry.rows != one.rows:
                raise IndexDirError(
                    f"{one.layout.root} has {one.rows} rows and generation {self.generation.number} "
                    f"speaks of {entry.rows}",
                    kind="index-damaged",
                )

    def rows_of(self, ids: AnyArray) -> IntArray:
        """The rows of ids ``(m,)`` that somebody names.

        Raises
        ------
        ArgumentError
            An id was never given, or is of a row that was deleted.
        """
        array = np.asarray(ids)
        if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
            raise ArgumentError(
                f"ids must be a 1-d array of integers, not {array.ndim}-d {array.dtype}", kind="rows"
            )
        array = array.astype(np.int64, copy=False)
        end = self.numbering.id_end
        if array.size and (array.min() < 0 or array.max() >= end):
            bad = array[(array < 0) | (array >= end)][0]
            raise ArgumentError(f"id {bad} is not in this index: it has ids 0 to {end - 1}", kind="rows")
        rows = self.numbering.rows(array)
        if (rows < 0).any():
            never = " or never given" if self.numbering.gaps else ""
            raise ArgumentError(f"id {array[rows < 0][0]} was deleted{never}", kind="rows")
        return rows

    def named(self, rows: IntArray) -> AnyArray:
        """The keys of rows (any shape) as a caller gets them; where a row is -1, None, or -1."""
        return self._keys.of(rows)

    def rows_of_keys(self, keys: KeysLike) -> IntArray:
        """The live rows of keys ``(m,)``; -1 where none has it.

        Raises
        ------
        ArgumentError
            They are no keys, or rows have none.
        """
        held = self._keys
        found = [held.rows(block) for block in open_keys(keys, held.kind).blocks()]
        return np.concatenate([np.empty(0, np.int64), *found])

    @property
    def _keys(self) -> LiveKeys:
        if self.keys is None:
            raise no_keys(self._layout.root)
        return self.keys

    def filter(self, allowed: object) -> Filter:
        """What is allowed, by id."""
        return Filter.of(allowed, self.numbering.id_end)

    def allowed(self, filter: object | None) -> Filter | None:  # noqa: A002 - the field's word
        """What a filter allows of the live rows, by their numbers; None where it allows all."""
        if filter is None:
            return None
        named = self.filter(filter)
        if named.count == self.numbering.id_end:
            return None
        if self.numbering.plain and not self.dead.count:
            return named
        found = self._allowed.get(named)
        if found is None:
            found = self._allowed[named] = self._by_row(named)
        return found

    @functools.cached_property
    def live(self) -> Filter:
        """All live rows, as a filter."""
        return self._by_row(None)

    def _by_row(self, named: Filter | None) -> Filter:
        def within(first: int, stop: int) -> AnyArray:
            rows = np.arange(first, stop)
            live = ~self.dead.contains(rows)
            return live if named is None else live & named.contains(self.numbering.ids(rows))

        return Filter.of_windows(self.generation.row_end, within)

    def close(self) -> None:
        """Give mappings and files up; may be called twice."""
        self.segments.close()
        self.source.close()
        self._hold.close()
