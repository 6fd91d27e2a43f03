"""How many bytes each part of a build takes, in memory and on disk: the model that a plan is made by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ooc.build.assign import scores_bytes
from ooc.build.factory import Factory
from ooc.build.kmeans import kept_bytes
from ooc.engine import sketch_bytes, sketched
from ooc.errors import PlanError
from ooc.search.sweep import Sweep
from ooc.stores import Store
from ooc.types import CopyDtype
from ooc.units import MIB, format_bytes

__all__ = [
    "BATCH_BYTES",
    "BLOCK_ROWS",
    "COPY_BYTES",
    "DECODED_BATCH_BYTES",
    "DEEP_SHARE",
    "ORDER_BYTES",
    "Sizes",
    "code_training_rows",
    "copied_dtype",
    "held_out",
    "most_witnesses",
    "witnesses_of",
]

#: Rows that are assigned and encoded together. Fixed: the last bits of a matrix product change with
#: its shape, and the same rows must give the same bytes under every budget.
BLOCK_ROWS = 1024

#: Private memory of the interpreter with numpy, faiss, zarr, h5py and the display loaded, and what
#: BLAS keeps for two threads.
_BASE_BYTES = 80 * MIB

#: What the decoders of a store that cannot be mapped take besides their chunks.
_DECODER_BYTES = 32 * MIB

#: Rows of the training sample for each list, and never fewer than this many in all.
_SAMPLE_PER_LIST = 64
_SAMPLE_LEAST = 16_384

#: Most rows of a shard: what a crash can cost.
_SHARD_MOST_ROWS = 1 << 19
_SHARD_LEAST_ROWS = 16 * BLOCK_ROWS

#: Buffer through which lists are copied in a merge, and a shard is written.
COPY_BYTES = 16 * MIB

#: Rows of the sample that are read together: few enough to stay in a core's cache, and more where chunks
#: are decoded, so that few are decoded twice.
BATCH_BYTES = 4 * MIB
DECODED_BATCH_BYTES = 16 * MIB


#: Rows that are drawn to be queries, of a million rows and more: recall@10 of .95 is then known to about half
#: a percent. Of fewer rows more are drawn, as the time of a build allows, up to so many times as many.
_WITNESSES = 550
_WITNESSES_OF = 1_000_000
_WITNESSES_TIMES = 2.5
#: Where there are fewer rows all are trained on: each is worth more than what it tells of recall.
_HELD_OUT_OF = 16_384
#: The share of them that tells of the hundred nearest rows; the others tell of the ten nearest.
DEEP_SHARE = 3 / 11
#: Neighbours that are found of each, at most.
_NEIGHBOURS = 25
#: Memory in which a thread puts lists in order.
ORDER_BYTES = 16 * MIB


def code_training_rows(sample_rows: int, d: int) -> int:
    """Rows of the sample that transforms and code are trained on: enough for both, few in memory."""
    return min(sample_rows, 65_536, max(32 * MIB // (4 * d), 256 * 39))


def most_witnesses(n: int) -> int:
    """How many queries at most recall is measured by, in a collection of ``n`` rows."""
    times: float = min(np.sqrt(_WITNESSES_OF / n), _WITNESSES_TIMES)
    return round(_WITNESSES * max(times, 1))


def held_out(n: int) -> int:
    """How many of ``n`` rows are not trained on, so that recall may be measured by them; of few rows none."""
    return most_witnesses(n) if n >= _HELD_OUT_OF else 0


def witnesses_of(count: int, most: int) -> tuple[int, int]:
    """How many of ``count`` queries that are given tell of a hundred rows, and how many of ten.

    Where there are fewer than ``most``, some or all of them tell of both.
    """
    deep = round(DEEP_SHARE * most)
    return min(count, deep), min(count, most - deep)


def copied_dtype(stored: str, copy: CopyDtype) -> np.dtype[np.generic]:
    """The dtype of the index's own rows; for ``store`` float32 where an ``.npy`` has no such dtype."""
    if copy == "store":
        copied = stored if stored in ("float32", "float16", "int8", "uint8") else "float32"
        return np.dtype(copied)
    return np.dtype(copy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many bytes each part takes. One model, used to fit the budget and to report it."""

    store: Store
    n: int
    factory: Factory
    threads: int
    spill: bool
    trained: bool = False

    @property
    def sample_rows(self) -> int:
        others = self.n - held_out(self.n)
        rows = others if others >= self.factory.nlist else self.n
        return min(rows, max(_SAMPLE_PER_LIST * self.factory.nlist, _SAMPLE_LEAST))

    @property
    def _lists(self) -> int:
        """Lists that a row is in."""
        return 2 if self.spill else 1

    @property
    def _centroids(self) -> int:
        # In the space rows are assigned in, and in faiss's quantizer (with a graph's links).
        links = 4 * 2 * 32 * self.factory.nlist if self.factory.graph else 0
        return self.factory.nlist * 4 * (self.store.d + self.factory.d_code) + links

    @property
    def _worker(self) -> int:
        # A block of rows as float32, transformed, what assigning takes, its codes.
        row = 4 * (2 * self.store.d + 3 * self.factory.d_code) + 2 * self._lists * self.factory.code_size
        return BLOCK_ROWS * (row + scores_bytes(self.factory.nlist, self.store.d, spill=self.spill))

    def _blocks(self, block_rows: int) -> int:
        if self.store.mapped:
            return 0
        return 3 * block_rows * self.store.row_bytes + 2 * self.store.chunk_bytes + _DECODER_BYTES

    @property
    def sampling(self) -> int:
        """What reading the sample takes."""
        # Rows as read, as prepared and while they are narrowed; then narrow, until they are written.
        batches = (4 * self.threads + 1) * BATCH_BYTES if self.store.mapped else 3 * DECODED_BATCH_BYTES
        # Their numbers.
        return self._blocks(0) + 24 * self.sample_rows + batches

    def _shard(self, rows: int) -> int:
        # Code, list number, id, place in list order; the buffer it is written through.
        return rows * self._lists * (self.factory.code_size + 4 + 2 * 8) + COPY_BYTES

    @property
    def witnesses(self) -> int:
        return min(self.n, most_witnesses(self.n))

    def _near(self) -> int:
        # Witnesses and what is known of them; and what a thread takes for a block of rows.
        each = 4 * self.store.d + Sweep.query_bytes(self.store.d, _NEIGHBOURS)
        return self.witnesses * each + self.threads * Sweep.look_bytes(self.store.d, BLOCK_ROWS)

    def _calibrate(self) -> int:
        # Witnesses, transformed; neighbours as the shards kept them, and in order; what threads put in order.
        each = 4 * (self.store.d + self.factory.d_code) + 6 * 20 * _NEIGHBOURS
        asking = self.witnesses * each + 2 * self.threads * ORDER_BYTES
        # Meanwhile the sketch is made: centroids in few directions, and copies of these.
        shape = self.factory.nlist, self.factory.d_code
        return asking + (16 * sketch_bytes(*shape) if sketched(*shape) else 0)

    def _train(self) -> int:
        # The centroids, their sums, and copies while they change; what is kept of each row between passes;
        # then either the blocks that wait their turn, or the rows that transforms and code are trained on.
        widest = max(self.store.d, self.factory.d_code)
        waiting = 4 * self.threads * BLOCK_ROWS * 4 * widest
        code = 3 * 4 * widest * code_training_rows(self.sample_rows, self.store.d)
        kept = kept_bytes(self.sample_rows, self.factory.nlist)
        return 3 * self._centroids + self.threads * self._worker + kept + max(waiting, code)

    def memory(self, block_rows: int, shard_rows: int) -> dict[str, int]:
        """Most private memory by stage."""
        working = self._centroids + self.threads * self._worker + self._blocks(block_rows) + self._near()
        training = {
            "sample": _BASE_BYTES + self.sampling,
            "train": _BASE_BYTES + self._train(),
        }
        return ({} if self.trained else training) | {
            "fill": _BASE_BYTES + working + self._shard(shard_rows),
            "merge": _BASE_BYTES + self._centroids + 3 * COPY_BYTES,
            "calibrate": _BASE_BYTES + self._calibrate(),
        }

    def fit(self, memory_bytes: int, shard_rows: int | None) -> tuple[int, int]:
        """Rows to a block and to a shard within the budget.

        Raises
        ------
        PlanError
            When not even the smallest do, with the least memory that works.
        """
        whole = -(-self.n // BLOCK_ROWS) * BLOCK_ROWS
        least_shard = min(whole, _SHARD_LEAST_ROWS)
        if shard_rows is not None:
            shard_rows = least_shard = min(whole, -(-shard_rows // BLOCK_ROWS) * BLOCK_ROWS)
        least = max(self.memory(BLOCK_ROWS, least_shard).values())
        if least > memory_bytes:
            needed = -(-least // MIB)
            chunk = self.store.chunk_bytes
            why = f"; one chunk of the store alone is {format_bytes(chunk)}" if chunk > least // 4 else ""
            raise PlanError(
                f"{format_bytes(memory_bytes)} of memory are too little for {self.n} x {self.store.d} "
                f"rows and {self.factory.text}{why}",
                kind="memory-too-small",
                hint=f"The least that works is {needed}MiB; fewer lists or smaller shards need less.",
            )
        block_rows = BLOCK_ROWS
        for rows in (16 * BLOCK_ROWS, 8 * BLOCK_ROWS, 4 * BLOCK_ROWS, 2 * BLOCK_ROWS):
            spare = memory_bytes - max(self.memory(rows, least_shard).values())
            if spare >= 0 and self._blocks(rows) - self._blocks(BLOCK_ROWS) <= memory_bytes // 4:
                block_rows = rows
                break
        if shard_rows is None:
            spare = memory_bytes - self.memory(block_rows, 0)["fill"]
            rows = spare // (self._shard(1) - self._shard(0)) // BLOCK_ROWS * BLOCK_ROWS
            shard_rows = max(least_shard, min(rows, whole, _SHARD_MOST_ROWS))
        return block_rows, shard_rows

    def on_disk(self, copies: CopyDtype | None) -> dict[str, int]:
        """Bytes of the finished index by part; ``copies`` says how it keeps rows of its own, if any."""
        n, nlist = self.n, self.factory.nlist
        header = nlist * (4 * self.factory.d_code + 3 * 8) + (1 << 16)
        if self.factory.graph:
            header += 4 * 2 * 32 * nlist
        parts = {
            "lists": n * self._lists * (self.factory.code_size + 8),
            "header": header,
            "template": header + nlist * 4 * (self.store.d + 1),
        }
        if sketched(nlist, self.factory.d_code) and not self.factory.graph:
            parts["template"] += sketch_bytes(nlist, self.factory.d_code)
        if copies is not None:
            parts["vectors"] = n * self.store.d * copied_dtype(self.store.dtype.name, copies).itemsize
        if copies == "int8":
            parts["scales"] = n * 4
        return parts

    def scratch(self) -> int:
        """Bytes beside the index while it is built: the sample, then the shards."""
        sample = 0 if self.trained else self.sample_rows * self.store.d * 2
        return max(sample, self.n * self._lists * (self.factory.code_size + 8))
