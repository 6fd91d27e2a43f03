"""Filling: rows to shards, block by block.

A shard is an IVF sub-index over a range of rows, on disk as a file of lists and a record. Its codes
are collected in memory up to the size that the plan gives, put in list order and written once: data
first, record last. What a crash costs is the shard in the making. Rows that the index keeps for
re-ranking are written on the same pass, and the true neighbours of the witnesses are found. A shard is
filled under a lease, so that several processes share the work and none does it twice.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ooc.build.copies import Copied, Copies, copy_record
from ooc.build.fit import fit
from ooc.build.plan import Plan
from ooc.build.rows import prepare
from ooc.build.sample import bad_rows_error
from ooc.build.shards import Numbered, Shard, format_numbers, shards_done
from ooc.build.sizes import BLOCK_ROWS, COPY_BYTES
from ooc.build.train import Template
from ooc.build.witness import Looked, Neighbours, Witnesses
from ooc.build.workers import Pool, in_order, workers
from ooc.durable import DurableFile, make_directory, write_bytes, write_sealed
from ooc.errors import DataError, IndexDirError, Stopped
from ooc.events import Observer, Stage, ignore, stage
from ooc.index.layout import BuildLayout
from ooc.index.lists import write_sorted
from ooc.index.lock import holder, lease
from ooc.mapping import release_free_memory
from ooc.stores.base import Block, Store
from ooc.types import BytesArray, IntArray

__all__ = ["Encoded", "Shard", "encode", "fill", "report", "shards_done"]

#: How often a process looks whether a shard that another one holds is there.
_LOOK_SECONDS = 0.5


def fill(
    store: Store,
    plan: Plan,
    template: Template,
    build: BuildLayout,
    *,
    shards: Iterable[int] | None = None,
    grid_rows: int | None = None,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> list[Shard]:
    """Fill every shard that is not there yet; all that are on disk then.

    Several processes may do so at once. One that comes upon a shard that another one holds passes it
    over, and waits at the end until it is there or was given up.

    Parameters
    ----------
    store : Store
        The rows of ``plan``.
    template : Template
        What ``train`` made.
    build : BuildLayout
        The directory of this build, where shards are kept.
    shards : iterable of int, optional
        Only these, by number.
    grid_rows : int, optional
        Rows of a numbered shard, the same for all processes; default: those of the plan. Where the
        plan has fewer, a shard is filled in pieces.
    observer : callable
        Is told events. The rows counted are those of ``shards`` that this process fills, and those
        that were there before.
    stop : threading.Event, optional
        When set, the rows read so far become a shard of their own and ``Stopped`` is raised.

    Raises
    ------
    DataError
        At a row with NaN or infinity where the plan says to stop there, or that the copy's dtype
        cannot hold. Shards done before stay.
    ArgumentError
        One of ``shards`` does not exist.
    """
    make_directory(build.shards)
    make_directory(build.leases)
    numbered = Numbered(build, plan.n, grid_rows or plan.shard_rows)
    chosen = numbered.chosen(shards)
    total = sum(stop - start for start, stop in map(numbered.range, chosen))
    counted = numbered.rows_done(chosen)
    with stage(observer, "fill", total, done=counted, row_bytes=store.row_bytes) as at:
        if numbered.missing(chosen):
            near = _neighbours(store, plan, build, template)
            with _copy(plan, build) as copies, workers(plan.threads) as pool:
                filling = _Filling(store, plan, template, build, copies, near, pool, at, counted, stop)
                _each_in_turn(filling, numbered, chosen, build, at, stop)
        done = shards_done(build)
        at.figures.update(report(done, at, whole=not numbered.missing()))
    return done


def _each_in_turn(
    filling: _Filling,
    numbered: Numbered,
    chosen: list[int],
    build: BuildLayout,
    at: Stage,
    stop: threading.Event | None,
) -> None:
    """Fill each shard under its lease, until all are on disk."""
    told = False
    while left := numbered.missing(chosen):
        held = []
        for number in left:
            with lease(build.lease(number)) as ours:
                if not ours:
                    held.append(number)
                    continue
                numbered.look()  # whoever had the lease before may have filled it
                for begin, end in numbered.gaps(number):
                    filling.span(begin, end)
        if len(held) == len(left):  # nothing else is left to do
            if not told:
                told = True
                which = f"shard{'s' * (len(held) > 1)} {format_numbers(held)}"
                at.note(f"waiting for {which}: {holder(build.lease(held[0]))} is at work", kind="shards-held")
            time.sleep(_LOOK_SECONDS)
        Stopped.raise_if(stop)
        numbered.look()


class _Filling:
    """What filling needs besides the rows to fill."""

    def __init__(
        self,
        store: Store,
        plan: Plan,
        template: Template,
        build: BuildLayout,
        copies: Copies | None,
        near: Neighbours,
        pool: Pool,
        at: Stage,
        counted: int,
        stop: threading.Event | None,
    ) -> None:
        self._store, self._plan, self._template, self._build = store, plan, template, build
        self._copies, self._near = copies, near
        self._pool, self._at, self._stop = pool, at, stop
        self._counted = counted

    def span(self, first: int, last: int) -> None:
        """Fill the rows from ``first`` to ``last``, cut where the plan's own shards begin."""
        rows = self._plan.shard_rows
        for start in range(first // rows * rows, last, rows):
            self._piece(max(start, first), min(start + rows, last))

    def _piece(self, begin: int, end: int) -> None:
        plan = self._plan
        making = _Making(plan, begin, end, self._template.codec.code_size)
        pieces = _pieces(self._store, plan, begin, end, self._stop)
        for encoded in in_order(self._pool, self._encode, pieces, plan.threads):
            making.add(self._store, encoded)
            self._near.take(encoded.near)
            self._at.tell(self._counted + making.read)
        if making.read:
            release_free_memory()  # what blocks took is now for putting the shard in order
            making.write(self._build, self._copies, self._near)
        self._counted += making.read
        if making.read < end - begin:
            raise Stopped("stopped while filling: the rows read so far are in a shard")

    def _encode(self, block: Block) -> Encoded:
        return encode(block, self._plan, self._template, self._copies, self._near)


def report(shards: list[Shard], at: Stage, *, whole: bool) -> dict[str, int]:
    """Figures of the shards, and what is to be said of them; an error where ``whole`` and empty."""
    skipped = sum(shard.skipped for shard in shards)
    zeros = sum(shard.zeros for shard in shards)
    rows = sum(shard.rows for shard in shards)
    if skipped:
        first = next(shard.first_skipped for shard in shards if shard.skipped)
        at.note(
            f"{skipped} rows hold NaN or infinity and are left out, the first is row {first}",
            kind="rows-skipped",
            warning=True,
        )
    if zeros:
        at.note(f"{zeros} rows are zero: their cosine with anything is 0", kind="zero-rows", warning=True)
    if whole and not rows:
        raise DataError("every row holds NaN or infinity: there is nothing to index", kind="bad-rows")
    return {"rows": rows, "shards": len(shards), "skipped_rows": skipped, "zero_rows": zeros}


def _neighbours(store: Store, plan: Plan, build: BuildLayout, template: Template) -> Neighbours:
    witnesses = Witnesses.load(build)
    if witnesses is None and plan.queries:
        raise IndexDirError(
            f"{build.witnesses} is missing: it held the queries by which recall is to be measured",
            kind="index-damaged",
            hint="Run the `ooc train` or `ooc build` that began this again: it writes them anew.",
        )
    if witnesses is None:  # whoever comes first draws them, and any would draw the same
        with lease(build.witnesses_lease, wait=True):
            witnesses = Witnesses.load(build)
            if witnesses is None:
                witnesses = Witnesses.draw(
                    store,
                    n=plan.n,
                    count=plan.witnesses,
                    metric=plan.metric,
                    seed=plan.seed,
                    on_bad=plan.on_bad,
                )
                witnesses.save(build)
    return Neighbours(witnesses, plan.metric, shards_done(build), template.basis)


@contextlib.contextmanager
def _copy(plan: Plan, build: BuildLayout) -> Iterator[Copies | None]:
    """The files of the index's own rows, where it keeps any."""
    if not plan.copy_vectors:
        yield None
        return
    make_directory(build.segment.root)
    with lease(build.copy_lease, wait=True):
        copies = Copies(plan.dtype, plan.copy_dtype, (plan.n, plan.d), build.segment)
    try:
        yield copies
    finally:
        copies.close()


def _pieces(store: Store, plan: Plan, begin: int, end: int, stop: threading.Event | None) -> Iterator[Block]:
    """Blocks of at most ``BLOCK_ROWS``, cut from larger reads, on a grid that starts at row 0."""
    for block in store.blocks(plan.block_rows, start=begin, stop=end):
        if stop is not None and stop.is_set():
            return
        for i in range(0, len(block.rows), BLOCK_ROWS):
            yield Block(start=block.start + i, rows=block.rows[i : i + BLOCK_ROWS])


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    start: int
    count: int
    list_nos: IntArray
    codes: BytesArray
    bad: IntArray
    zeros: int
    copied: Copied | None
    near: Looked
    fit: tuple[float, int]


def encode(block: Block, plan: Plan, template: Template, copies: Copies | None, near: Neighbours) -> Encoded:
    """All the work on one block of rows, by one thread while the block is in its cache."""
    # The copy first: what it takes is free again before encoding takes more.
    copied = None if copies is None else copies.write(block.start, block.rows)
    prepared = prepare(block.rows, plan.metric)
    # Both look at the same few directions first.
    low = None if template.basis is None else prepared.x @ template.basis
    found = near.look(block.start, prepared, low)
    list_nos, codes = template.encode(prepared.x, low, spill=plan.spill)
    return Encoded(
        start=block.start,
        count=len(block.rows),
        list_nos=list_nos,
        codes=codes,
        bad=prepared.bad,
        zeros=prepared.zeros,
        copied=copied,
        near=found,
        fit=fit(template, prepared, list_nos[:, 0]),
    )


class _Making:
    """A shard in the making: its codes in the order of the rows, of each row one for each of its lists."""

    def __init__(self, plan: Plan, start: int, stop: int, code_size: int) -> None:
        self._plan = plan
        self._start = start
        self._codes = np.empty((stop - start, plan.lists_per_row, code_size), np.uint8)
        self._list_nos = np.empty((stop - start, plan.lists_per_row), np.int32)
        self._bad: list[IntArray] = []
        self._zeros = 0
        self._copied: list[Copied] = []
        self._fit: list[tuple[float, int]] = []
        #: Rows read so far.
        self.read = 0

    def add(self, store: Store, block: Encoded) -> None:
        at = slice(self.read, self.read + block.count)
        self._codes[at] = block.codes
        self._list_nos[at] = block.list_nos
        self.read += block.count
        self._zeros += block.zeros
        self._fit.append(block.fit)
        if block.copied is not None:
            self._copied.append(block.copied)
        if len(block.bad):
            self._bad.append(block.bad + block.start)
            if self._plan.on_bad == "stop":
                count = sum(map(len, self._bad))
                raise bad_rows_error(store, int(self._bad[0][0]), count)

    def write(self, build: BuildLayout, copies: Copies | None, near: Neighbours) -> None:
        """Make the rows read so far durable: copied rows, lists, neighbours, then the record."""
        if copies is not None:
            copies.flush()
        bad = np.concatenate(self._bad) if self._bad else np.empty(0, np.int64)
        codes, list_nos = self._codes[: self.read], self._list_nos[: self.read]
        if len(bad):
            keep = np.ones(self.read, bool)
            keep[bad - self._start] = False
            codes, list_nos = codes[keep], list_nos[keep]
            rows = np.flatnonzero(keep)
        else:
            rows = np.arange(self.read)
        ids = np.repeat(rows + self._start, self._plan.lists_per_row)
        codes, list_nos = codes.reshape(len(ids), -1), list_nos.reshape(-1)
        path = build.shards / f"{self._start:012d}.ivfdata"
        with DurableFile(path) as file:
            sizes = write_sorted(file, codes, list_nos, ids, self._plan.nlist, COPY_BYTES)
            checksums, written = file.checksums(), file.written
        write_bytes(path.with_suffix(".npz"), near.of_rows(self._start, self._list_nos[: self.read]))
        record: dict[str, Any] = {
            "start": self._start,
            "stop": self._start + self.read,
            "bytes": written,
            "sizes": sizes.tolist(),
            "skipped": len(bad),
            "first_skipped": int(bad[0]) if len(bad) else -1,
            "zeros": self._zeros,
            "checksums": checksums,
            "fit": [list(block) for block in self._fit],
            **copy_record(self._copied),
        }
        write_sealed(path.with_suffix(".json"), record)
