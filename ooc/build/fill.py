"""Filling: rows to shards, block by block.

A shard is an IVF sub-index over a range of rows, on disk as a file of lists and a record. Its codes
are collected in memory up to the size that the plan gives, put in list order and written once: data
first, record last. What a crash costs is the shard in the making. Rows that the index keeps for
re-ranking are written on the same pass.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ooc.build.plan import BLOCK_ROWS, COPY_BYTES, Plan
from ooc.build.rows import prepare
from ooc.build.sample import bad_rows_error, npy_header
from ooc.build.train import Template
from ooc.build.workers import in_order, workers
from ooc.durable import DurableFile, RowsFile, as_bytes, make_directory, read_json, write_json
from ooc.errors import DataError, IndexDirError, Stopped
from ooc.events import Observer, Stage, ignore, stage
from ooc.index.layout import BuildLayout
from ooc.index.lists import write_sorted
from ooc.stores.base import Block, Store, as_float32
from ooc.types import AnyArray, BytesArray, FloatArray, IntArray

__all__ = ["Shard", "copy_dtype", "fill", "shards_done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What a shard's record says.

    ``row_checksums`` has one XXH3-128 for each 1024 rows that were copied, in order.
    """

    path: Path
    start: int
    stop: int
    sizes: IntArray
    skipped: int
    first_skipped: int
    zeros: int
    checksums: list[str]
    row_checksums: list[str]

    @property
    def rows(self) -> int:
        """Rows in its lists."""
        return int(self.sizes.sum())


def shards_done(build: BuildLayout) -> list[Shard]:
    """The shards whose records are on disk, by their first row.

    A record whose file of lists is missing or of another size is taken for one that is not there.
    """
    found = []
    for path in sorted(build.shards.glob("*.json")):
        record = read_json(path, what="a shard's record")
        lists = path.with_suffix(".ivfdata")
        if not lists.is_file() or lists.stat().st_size != record["bytes"]:
            continue
        found.append(
            Shard(
                path=lists,
                start=record["start"],
                stop=record["stop"],
                sizes=np.array(record["sizes"], np.int64),
                skipped=record["skipped"],
                first_skipped=record["first_skipped"],
                zeros=record["zeros"],
                checksums=record["checksums"],
                row_checksums=record["row_checksums"],
            )
        )
    found.sort(key=lambda shard: shard.start)
    for one, next_ in itertools.pairwise(found):
        if next_.start < one.stop:
            raise IndexDirError(
                f"the shards {one.path} and {next_.path} overlap",
                kind="shards-overlap",
                hint=f"Remove {build.root} and run the build again.",
            )
    return found


def _missing(done: list[Shard], n: int) -> Iterator[tuple[int, int]]:
    at = 0
    for shard in done:
        if shard.start > at:
            yield at, shard.start
        at = shard.stop
    if at < n:
        yield at, n


def copy_dtype(plan: Plan) -> np.dtype[np.generic]:
    """The dtype of the index's own rows: the store's, or float32 where an ``.npy`` has no such dtype."""
    exact = plan.dtype in ("float32", "float16", "int8", "uint8")
    return np.dtype(plan.dtype if exact else "float32")


def fill(
    store: Store,
    plan: Plan,
    template: Template,
    build: BuildLayout,
    *,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> list[Shard]:
    """Fill every shard that is not there yet; all shards.

    Parameters
    ----------
    store : Store
        The rows of ``plan``.
    template : Template
        What ``train`` made.
    build : BuildLayout
        The directory of this build, where shards are kept.
    observer : callable
        Is told events.
    stop : threading.Event, optional
        When set, the rows read so far become a shard of their own and ``Stopped`` is raised.

    Raises
    ------
    DataError
        At a row with NaN or infinity where the plan says to stop there. Shards done before stay.
    """
    make_directory(build.shards)
    done = shards_done(build)
    counted = sum(shard.stop - shard.start for shard in done)
    with (
        stage(observer, "fill", plan.n, done=counted, row_bytes=store.row_bytes) as at,
        _copy(plan, build) as copies,
        workers(plan.threads) as pool,
    ):

        def work(block: Block) -> _Encoded:
            return _encode(block, plan, template, copies)

        for begin, end in _spans(done, plan):
            making = _Making(plan, begin, end, template.codec.code_size)
            for encoded in in_order(pool, work, _pieces(store, plan, begin, end, stop), plan.threads):
                making.add(store, encoded)
                at.tell(counted + making.read)
            if making.read:
                making.write(build, copies)
            counted += making.read
            if making.read < end - begin:
                raise Stopped("stopped while filling: the rows read so far are in a shard")
        shards = shards_done(build)
        at.figures.update(_report(shards, at))
    return shards


def _spans(done: list[Shard], plan: Plan) -> Iterator[tuple[int, int]]:
    """What is missing, cut on a fixed grid: a resumed build cuts the rest as a whole one would."""
    for first, last in _missing(done, plan.n):
        for start in range(first // plan.shard_rows * plan.shard_rows, last, plan.shard_rows):
            yield max(start, first), min(start + plan.shard_rows, last)


def _report(shards: list[Shard], at: Stage) -> dict[str, int]:
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
    if not rows:
        raise DataError("every row holds NaN or infinity: there is nothing to index", kind="bad-rows")
    return {"rows": rows, "shards": len(shards), "skipped_rows": skipped, "zero_rows": zeros}


@contextlib.contextmanager
def _copy(plan: Plan, build: BuildLayout) -> Iterator[RowsFile | None]:
    """The file of the index's own rows, where it keeps any."""
    if not plan.copy_vectors:
        yield None
        return
    dtype = copy_dtype(plan)
    make_directory(build.segment.root)
    header = npy_header((plan.n, plan.d), dtype)
    file = RowsFile(build.segment.vectors, header, plan.n * plan.d * dtype.itemsize)
    try:
        yield file
    finally:
        file.close()


def _pieces(store: Store, plan: Plan, begin: int, end: int, stop: threading.Event | None) -> Iterator[Block]:
    """Blocks of at most ``BLOCK_ROWS``, cut from larger reads, on a grid that starts at row 0."""
    for block in store.blocks(plan.block_rows, start=begin, stop=end):
        if stop is not None and stop.is_set():
            return
        for i in range(0, len(block.rows), BLOCK_ROWS):
            yield Block(start=block.start + i, rows=block.rows[i : i + BLOCK_ROWS])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    start: int
    count: int
    list_nos: IntArray
    codes: BytesArray
    bad: IntArray
    zeros: int
    checksum: str | None


def _encode(block: Block, plan: Plan, template: Template, copies: RowsFile | None) -> _Encoded:
    """All the work on one block of rows, by one thread while the block is in its cache."""
    prepared = prepare(block.rows, plan.metric)
    list_nos, y = template.place(prepared.x)
    codes = template.codec.encode(y, list_nos)
    checksum = None
    if copies is not None:
        rows = _copied(block.rows, plan)
        copies.write(block.start * rows.shape[1] * rows.dtype.itemsize, rows)
        checksum = xxhash.xxh3_128_hexdigest(as_bytes(rows))
    return _Encoded(
        start=block.start,
        count=len(block.rows),
        list_nos=list_nos,
        codes=codes,
        bad=prepared.bad,
        zeros=prepared.zeros,
        checksum=checksum,
    )


def _copied(rows: AnyArray, plan: Plan) -> FloatArray | AnyArray:
    dtype = copy_dtype(plan)
    return as_float32(rows) if dtype.name == "float32" else np.ascontiguousarray(rows, dtype=dtype)


class _Making:
    """A shard in the making: its codes in the order of the rows."""

    def __init__(self, plan: Plan, start: int, stop: int, code_size: int) -> None:
        self._plan = plan
        self._start = start
        self._codes = np.empty((stop - start, code_size), np.uint8)
        self._list_nos = np.empty(stop - start, np.int32)
        self._bad: list[IntArray] = []
        self._zeros = 0
        self._checksums: list[str] = []
        #: Rows read so far.
        self.read = 0

    def add(self, store: Store, block: _Encoded) -> None:
        at = slice(self.read, self.read + block.count)
        self._codes[at] = block.codes
        self._list_nos[at] = block.list_nos
        self.read += block.count
        self._zeros += block.zeros
        if block.checksum is not None:
            self._checksums.append(block.checksum)
        if len(block.bad):
            self._bad.append(block.bad + block.start)
            if self._plan.on_bad == "stop":
                count = sum(map(len, self._bad))
                raise bad_rows_error(store, int(self._bad[0][0]), count)

    def write(self, build: BuildLayout, copies: RowsFile | None) -> None:
        """Make the rows read so far durable: copied rows, lists, then the record."""
        if copies is not None:
            copies.flush()
        bad = np.concatenate(self._bad) if self._bad else np.empty(0, np.int64)
        codes, list_nos = self._codes[: self.read], self._list_nos[: self.read]
        ids = np.arange(self._start, self._start + self.read, dtype=np.int64)
        if len(bad):
            keep = np.ones(self.read, bool)
            keep[bad - self._start] = False
            codes, list_nos, ids = codes[keep], list_nos[keep], ids[keep]
        path = build.shards / f"{self._start:012d}.ivfdata"
        with DurableFile(path) as file:
            sizes = write_sorted(file, codes, list_nos, ids, self._plan.nlist, COPY_BYTES)
            checksums, written = file.checksums(), file.written
        record: dict[str, Any] = {
            "start": self._start,
            "stop": self._start + self.read,
            "bytes": written,
            "sizes": sizes.tolist(),
            "skipped": len(bad),
            "first_skipped": int(bad[0]) if len(bad) else -1,
            "zeros": self._zeros,
            "checksums": checksums,
            "row_checksums": self._checksums,
        }
        write_json(path.with_suffix(".json"), record)
