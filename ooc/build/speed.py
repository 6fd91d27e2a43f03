"""How fast this machine does what a build is made of, on rows of the store that is to be indexed.

Some thousand rows are read as a build reads them, and assigned and encoded by the code that will do it, with
rows in place of centroids: what this takes hardly depends on where centroids are. Where a build takes a few
seconds it is as soon done as measured, and the usual speeds stand for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ooc.build.assign import Assigner
from ooc.build.draw import draw
from ooc.build.kmeans import KEPT
from ooc.build.plan import Plan
from ooc.build.rows import prepare
from ooc.build.sizes import BATCH_BYTES, BLOCK_ROWS
from ooc.build.train import Template
from ooc.build.workers import Pool, in_order, workers
from ooc.engine import Codec, sketched
from ooc.errors import Stopped
from ooc.stores import Store
from ooc.types import FloatArray, IntArray
from ooc.vectors import narrow

__all__ = ["Speed", "measured", "usual"]

Item = TypeVar("Item")

#: Blocks that are assigned and encoded, for each thread.
_BLOCKS = 3
#: Bytes that are read in order, in so many places.
_READ_BYTES, _PLACES = 64 << 20, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds that pass while all threads of the plan are at work.

    Attributes
    ----------
    pick, read : float
        For a row of the store, taken here and there, or in order.
    encode : float
        For a row that is assigned and encoded.
    search, compare : float
        For a row of the sample in k-means, compared with all centroids, or with the few that were near.
    sketch : float
        For a sketch of the centroids; 0 where there is none.
    measured : bool
        Whether it was, or is what is usual.
    """

    pick: float
    read: float
    encode: float
    search: float
    compare: float
    sketch: float
    measured: bool = False


def usual(plan: Plan) -> Speed:
    """What a processor of a few years ago takes, and a disk that reads 800 MB a second."""
    d, threads = plan.d, max(plan.threads, 1)
    many = sketched(plan.nlist, d)
    # A row is assigned through a sketch, or by a product with all centroids.
    place = d * (2.2e-8 if many else 2 * plan.nlist / 75e9)
    bits = 8 * plan.code_size / max(plan.d_code, 1)
    return Speed(
        pick=8e-6,
        read=plan.d * np.dtype("float16" if plan.dtype == "bfloat16" else plan.dtype).itemsize / 800e6,
        encode=(place + plan.d_code * (1e-8 if bits < 2 else 3e-8)) / threads,
        search=1.4 * place / threads,
        compare=(0.4 if many else 1) * place / threads,
        sketch=2e-7 * plan.nlist * np.sqrt(d) if many else 0.0,
    )


def measured(store: Store, plan: Plan, stop: threading.Event | None = None) -> Speed:
    """As this machine does it now, in a second or a few.

    The usual for a code that has to be trained on more rows than are read here: PQ, and what follows PCA or
    OPQ.
    """
    codec = Codec.create(plan.factory, plan.d, plan.metric, plan.seed)
    if not (codec.transforms_trained and codec.trained_soon):
        return usual(plan)
    with workers(plan.threads) as pool:
        picked, rows = _timed(lambda: _picked(store, plan, pool))
        centroids = rows[np.arange(plan.nlist) % len(rows)]
        Stopped.raise_if(stop)
        made, assigner = _timed(lambda: Assigner(centroids, plan.metric))
        codec.set_centroids(codec.transform(centroids))
        if codec.code_needs_rows:
            codec.train_code(codec.transform(rows[:BLOCK_ROWS]))
        codec_and_lists = Template(codec=codec, assigner=assigner)
        blocks = [
            rows[np.arange(first, first + BLOCK_ROWS) % len(rows)]
            for first in range(0, _BLOCKS * plan.threads * BLOCK_ROWS, BLOCK_ROWS)
        ]

        def each(work: Callable[[FloatArray], Any]) -> float:
            """Seconds a row."""
            Stopped.raise_if(stop)
            work(blocks[0][:64])  # what is made on the first call
            seconds, _ = _timed(lambda: list(in_order(pool, work, blocks, plan.threads)))
            return seconds / (len(blocks) * BLOCK_ROWS)

        near = assigner.nearest(blocks[0], KEPT)
        return Speed(
            pick=picked / len(rows),
            read=_read(store, plan),
            encode=each(lambda x: codec_and_lists.encode(prepare(x, plan.metric).x, spill=plan.spill)),
            search=each(assigner.assign if near is None else partial(assigner.nearest, count=KEPT)),
            compare=each(assigner.assign if near is None else lambda x: assigner.among(x, near[: len(x)])),
            sketch=made if near is not None else 0.0,
            measured=True,
        )


def _timed(work: Callable[[], Item]) -> tuple[float, Item]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def _picked(store: Store, plan: Plan, pool: Pool) -> FloatArray:
    """As many drawn rows as there are lists, read and prepared as those of the sample are."""
    rows = _drawn(store, plan)
    step = max(1, BATCH_BYTES // (4 * plan.d))

    def asked() -> Iterator[IntArray]:
        for first in range(0, len(rows), step):
            store.will_take(rows[first : first + step])
            yield rows[first : first + step]

    def read(some: IntArray) -> FloatArray:
        x = prepare(store.gather(some), plan.metric).x
        narrow(x)
        return x

    ahead = plan.threads if store.mapped else 0
    return np.ascontiguousarray(np.concatenate(list(in_order(pool, read, asked(), ahead))), np.float32)


def _drawn(store: Store, plan: Plan) -> IntArray:
    count = max(plan.nlist, 2 * BLOCK_ROWS)
    if store.mapped or not store.uri:
        return draw(plan.n, count, plan.seed)
    # Of a store in chunks whole ones are decoded: as many as hold that many rows.
    places = _spans(plan.n, count, int(np.diff(store.chunk_starts).max()))
    return np.concatenate([np.arange(begin, end) for begin, end in places])[:count]


def _read(store: Store, plan: Plan) -> float:
    """Seconds for a row that is read in order."""
    spans = _spans(plan.n, max(1, _READ_BYTES // store.row_bytes), BLOCK_ROWS)
    total = sum(end - begin for begin, end in spans)

    def work() -> None:
        for begin, end in spans:
            for block in store.blocks(min(plan.block_rows, end - begin), start=begin, stop=end):
                block.rows.max(axis=0)

    return _timed(work)[0] / total


def _spans(n: int, rows: int, least: int) -> Sequence[tuple[int, int]]:
    """Some spans of a store, evenly spaced, of so many rows in all."""
    each = min(n, max(least, rows // _PLACES))
    count = max(1, min(_PLACES, rows // each))
    return [(int(at), int(at) + each) for at in np.linspace(0, n - each, count)]
