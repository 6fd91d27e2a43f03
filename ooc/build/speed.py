"""How fast this machine does what a build is made of, on rows of the store that is to be indexed.

Some thousand rows are read as a build reads them, clustered into as many lists in a few passes, assigned,
encoded and compared with witnesses, all by the code that will do it. Where a build takes a second or two it
is as soon done as measured, and the usual speeds stand for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ooc.build.assign import Assigner
from ooc.build.fill import encode
from ooc.build.glance import Glance
from ooc.build.kmeans import Pass, kmeans
from ooc.build.plan import Plan
from ooc.build.rows import prepare
from ooc.build.sizes import BLOCK_ROWS
from ooc.build.train import Template
from ooc.build.witness import Looked, Neighbours, Witnesses
from ooc.build.workers import Pool, in_order, workers
from ooc.engine import Codec, sketched
from ooc.errors import Stopped
from ooc.stores import Block, Store
from ooc.types import FloatArray, IntArray
from ooc.vectors import narrow, widen

__all__ = ["Speed", "measured", "usual"]

#: Blocks for each thread, and more where these take less than so many seconds.
_BLOCKS, _MOST_BLOCKS, _SECONDS = 2, 8, 0.05
#: Rows for each list at least: there must be more rows than lists.
_ROWS_PER_LIST = 1.25
#: A further sketch takes one of so many parts of the time of the first.
_AGAIN = 5
#: Bytes that are read in order, and in how many places; but no more than one in so many.
_READ_BYTES, _PLACES, _ONE_OF = 64 << 20, 8, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds that pass while all threads of the plan are at work.

    Attributes
    ----------
    pick, read : float
        For a row of the store, taken here and there, or in order.
    encode : float
        For a row that is assigned, encoded and compared with the witnesses.
    search, compare : float
        For a row of the sample in k-means, compared with all centroids, or with the few that were near.
    move, sketch : float
        Between two passes, for moving the centroids, and for a sketch of them where one is made.
    begin : float
        Before the first pass: a first sketch.
    measured : bool
        Whether it was, or is what is usual.
    """

    pick: float
    read: float
    encode: float
    search: float
    compare: float
    move: float
    sketch: float
    begin: float
    measured: bool = False


def usual(plan: Plan) -> Speed:
    """What a processor of a few years ago takes, and a disk that reads 800 MB a second."""
    d, threads = plan.d, max(plan.threads, 1)
    many = sketched(plan.nlist, d)
    # A row is assigned through a sketch, or by a product with all centroids.
    place = d * (2.2e-8 if many else 2 * plan.nlist / 75e9)
    bits = 8 * plan.code_size / max(plan.d_code, 1)
    witnessed = 3e-9 * plan.witnesses
    values = plan.nlist * d
    return Speed(
        pick=8e-6,
        read=plan.d * np.dtype("float16" if plan.dtype == "bfloat16" else plan.dtype).itemsize / 800e6,
        encode=(place + plan.d_code * (1e-8 if bits < 2 else 3e-8) + witnessed) / threads,
        search=1.4 * place / threads,
        compare=(0.4 if many else 1) * place / threads,
        move=4e-9 * values,
        sketch=5e-9 * values if many else 0.0,
        begin=5e-8 * values if many else 0.0,
    )


def measured(store: Store, plan: Plan, glance: Glance, stop: threading.Event | None = None) -> Speed:
    """As this machine does it now, in a part of a second or a few seconds.

    The usual for a code that has to be trained on more rows than are read here: PQ, and what follows PCA or
    OPQ. When ``stop`` is set, ``Stopped`` is raised.
    """
    codec = Codec.create(plan.factory, plan.d, plan.metric, plan.seed)
    if not (codec.transforms_trained and codec.trained_soon):
        return usual(plan)
    rows = _Bits(_rows(plan, glance), stop)
    every = Pass(rows=rows.n, anew=True, searched=rows.n)
    again = Pass(rows=rows.n, anew=False, searched=0)
    with workers(plan.threads) as pool:
        began = time.perf_counter()
        centroids, _ = kmeans(
            rows,
            plan.nlist,
            plan.metric,
            plan.seed,
            pool,
            progress=rows.told,
            threads=plan.threads,
            over=(every, again),
        )
        codec.set_centroids(codec.transform(centroids))
        if codec.code_needs_rows:
            codec.train_code(codec.transform(rows.take(np.arange(min(BLOCK_ROWS, rows.n)))))
        Stopped.raise_if(stop)
        template = Template(codec=codec, assigner=Assigner(centroids, plan.metric))
        first, second = zip(rows.begun, rows.ended, strict=True)
        begin, move = first[0] - began, second[0] - first[1]
        return Speed(
            pick=glance.seconds,
            read=_read(store, plan, stop),
            encode=_encoding(plan, template, rows, pool),
            search=(first[1] - first[0]) / rows.n,
            compare=(second[1] - second[0]) / rows.n,
            move=move,
            sketch=begin / _AGAIN,
            begin=begin,
            measured=True,
        )


def _rows(plan: Plan, glance: Glance) -> FloatArray:
    """Rows to cluster: those that were glanced at, and more where lists are many."""
    least = min(int(_ROWS_PER_LIST * plan.nlist), plan.n)
    rows = glance.rows
    if len(rows) < least:
        rows = np.concatenate((rows, glance.read(least - len(rows), plan.seed + 1)))
    blocks = max(_BLOCKS * plan.threads, max(least, plan.nlist) // BLOCK_ROWS + 1)
    return rows[np.arange(blocks * BLOCK_ROWS) % len(rows)]


class _Bits:
    """Rows as k-means reads those of a sample; knows when each pass began and ended."""

    def __init__(self, x: FloatArray, stop: threading.Event | None) -> None:
        self._stop = stop
        self.n, self.d = x.shape
        self._bits = narrow(x)
        self.begun: list[float] = []
        self.ended: list[float] = []

    def take(self, rows: IntArray) -> FloatArray:
        return widen(self._bits[rows])

    def iterate(self, rows: int, *, first: int, backwards: bool) -> Iterator[Callable[[], FloatArray]]:
        self.begun.append(time.perf_counter())
        for start in range(0, first, rows)[:: -1 if backwards else 1]:
            yield partial(widen, self._bits[start : start + rows])

    def told(self, done: int) -> None:
        """The progress of k-means."""
        Stopped.raise_if(self._stop)
        if done % self.n == 0:
            self.ended.append(time.perf_counter())


def _encoding(plan: Plan, template: Template, rows: _Bits, pool: Pool) -> float:
    """Seconds for a row that is encoded and compared with witnesses."""

    def blocks(turn: int) -> list[Block]:
        starts = BLOCK_ROWS * (turn * plan.threads + np.arange(plan.threads))
        return [
            Block(start=start, rows=rows.take(np.arange(start, start + BLOCK_ROWS) % rows.n))
            for start in starts.tolist()
        ]

    # All the witnesses, as in a build: fewer take no less in proportion. They have seen some rows before,
    # since of the first ones all may be near.
    queries = rows.take(np.arange(plan.witnesses) % rows.n)
    near = Neighbours(Witnesses.no_rows(queries), plan.metric, [], template.basis)
    look = partial(_looked, near, plan)
    for found in in_order(pool, look, blocks(0) if plan.witnesses else (), plan.threads):
        near.take(found)
    one = partial(encode, plan=plan, template=template, copies=None, near=near)
    taken: list[float] = []
    while len(taken) < _BLOCKS or (len(taken) < _MOST_BLOCKS and sum(taken) < _SECONDS):
        some = blocks(len(taken))
        began = time.perf_counter()
        for encoded in in_order(pool, one, some, plan.threads):
            near.take(encoded.near)
        taken.append(time.perf_counter() - began)
    # The least: what else a machine does for a moment is not what a build meets.
    return min(taken) / (plan.threads * BLOCK_ROWS)


def _looked(near: Neighbours, plan: Plan, block: Block) -> Looked:
    return near.look(block.start, prepare(block.rows, plan.metric), None)


def _read(store: Store, plan: Plan, stop: threading.Event | None) -> float:
    """Seconds for a row that is read in order."""
    n = plan.n
    rows = max(1, min(_READ_BYTES // store.row_bytes, n // _ONE_OF))
    each = min(n, max(BLOCK_ROWS, rows // _PLACES))
    places = np.linspace(0, n - each, max(1, min(_PLACES, rows // each))).astype(np.int64)
    if not store.mapped and store.uri:
        # Chunks are decoded whole, and some at a time.
        each = min(n, max(plan.block_rows, each))
        starts = store.chunk_starts
        places = np.unique(starts[np.searchsorted(starts, np.minimum(places, n - each), side="right") - 1])
    began, total = time.perf_counter(), 0
    for begin in places.tolist():
        for block in store.blocks(min(plan.block_rows, each), start=begin, stop=begin + each):
            Stopped.raise_if(stop)
            np.ascontiguousarray(block.rows).view(np.uint8).max()
            total += len(block.rows)
    return (time.perf_counter() - began) / total
