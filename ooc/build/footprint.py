"""How much private memory each stage of a build comes to, as against the bound that it is planned by.

A bound adds up all that may be there at once, each part at its largest. What is there in fact follows as well
from the sizes of the plan, and is less. Only what the process holds before the build is measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from ooc.build.assign import scores_bytes
from ooc.build.kmeans import MORE, kept_bytes
from ooc.build.plan import Plan
from ooc.build.sizes import (
    BATCH_BYTES,
    BLOCK_ROWS,
    COPY_BYTES,
    DECODED_BATCH_BYTES,
    ORDER_BYTES,
    code_training_rows,
)
from ooc.engine import Codec, sketch_bytes, sketched
from ooc.stores import Store
from ooc.units import MIB

__all__ = ["footprint"]

#: What the C library keeps of what a thread worked with before; the largest gap that freed memory leaves, as
#: larger pieces go back to the system at once (glibc's limit); and what else there is: events, stacks.
_THREAD_BYTES, _GAP_BYTES, _OTHER_BYTES = 10 * MIB, 32 * MIB, 4 * MIB


def footprint(plan: Plan, store: Store, held: int) -> dict[str, int]:
    """Private bytes that each stage of the plan comes to, in a process that held so many before."""
    parts = _Parts(plan, store)
    stages = {
        "sample": parts.sampling(),
        "train": parts.training(),
        "fill": parts.filling(),
        "merge": parts.merging(),
        "calibrate": parts.calibrating(),
    }
    return {stage: held + stages[stage] for stage in plan.memory_by_stage}


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is held beside what was there before."""

    plan: Plan
    store: Store

    @property
    def centroids(self) -> int:
        """Centroids where rows are assigned."""
        return 4 * self.plan.nlist * self.plan.d

    @property
    def template(self) -> int:
        """Centroids where rows are assigned, and in the code's space."""
        return self.centroids + 4 * self.plan.nlist * self.plan.d_code

    @property
    def block(self) -> int:
        """A block of rows as float32."""
        return 4 * BLOCK_ROWS * self.plan.d

    @property
    def scores(self) -> int:
        """What assigning a row takes besides."""
        return scores_bytes(self.plan.nlist, self.plan.d, spill=self.plan.spill)

    def decoded(self, rows: int) -> int:
        """Rows on their way from chunks that are decoded."""
        if self.plan.mapped:
            return 0
        return 2 * rows * self.store.row_bytes + self.store.chunk_bytes

    def sampling(self) -> int:
        threads = self.plan.threads
        # As read, prepared and narrowed; and narrow ones that wait. What is decoded is read by one.
        working = 3 * DECODED_BATCH_BYTES
        if self.plan.mapped:
            working = threads * 3 * BATCH_BYTES + (2 * threads + 1) * BATCH_BYTES // 2
        working = min(working, 6 * 4 * self.plan.d * self.plan.sample_rows)
        return 16 * self.plan.sample_rows + working + self.decoded(0)

    def training(self) -> int:
        plan = self.plan
        # The sums of the rows, what comes of them, and the copy that rows are compared with; more at first.
        # What was there before may leave a gap.
        one = int((1 + MORE) * self.centroids)
        centroids = 3 * one + min(one, _GAP_BYTES)
        # Blocks that are compared, and those that wait to be added.
        blocks = (3 * plan.threads + 2) * self.block + plan.threads * BLOCK_ROWS * self.scores
        passing = centroids + blocks + kept_bytes(plan.sample_rows, plan.nlist) + plan.threads * _THREAD_BYTES
        passing += 5 * BATCH_BYTES if plan.overlapped else 0  # the rest of the sample is read by one thread
        codec = Codec.create(plan.factory, plan.d, plan.metric, plan.seed)
        ending = self.template + self.centroids
        if codec.code_needs_rows or not codec.transforms_trained:
            rows = code_training_rows(plan.sample_rows, plan.d)
            # As they are read, padded, rotated, and what the code learns from.
            padded = 4 * plan.d_code if plan.d_code > plan.d else 0
            ending += rows * (4 * plan.d + 3 * 4 * plan.d_code + padded)
        return max(passing, ending + plan.threads * _THREAD_BYTES)

    def filling(self) -> int:
        plan = self.plan
        entry = plan.lists_per_row
        kept = plan.shard_rows * entry * (plan.code_size + 4)
        asked = plan.witnesses * (2 * 4 * plan.d + 4 * 160)
        row = 4 * plan.d + 2 * 4 * plan.d_code + 2 * plan.code_size + self.scores
        working = plan.threads * (BLOCK_ROWS * row + 3 * MIB) + self.decoded(plan.block_rows)
        # Numbers of rows in the order of the lists, and what is written.
        lists = plan.shard_rows * entry * (plan.code_size + 8)
        writing = plan.shard_rows * entry * 36 + 3 * min(COPY_BYTES, lists)
        # What threads worked with stays with them.
        return self.template + asked + kept + working + writing + _OTHER_BYTES

    def merging(self) -> int:
        lists = self.plan.n * self.plan.lists_per_row * (self.plan.code_size + 8)
        return self.template + 3 * min(COPY_BYTES, lists) + self.plan.threads * _THREAD_BYTES

    def calibrating(self) -> int:
        plan = self.plan
        sketch = 12 * sketch_bytes(plan.nlist, plan.d_code) if sketched(plan.nlist, plan.d_code) else 0
        # Orders of all lists, for some witnesses at a time.
        ordering = plan.threads * min(64 * 40 * plan.nlist, 2 * ORDER_BYTES)
        asked = 4 * plan.witnesses * (plan.d + plan.d_code)
        return self.template + asked + sketch + ordering + plan.threads * _THREAD_BYTES
