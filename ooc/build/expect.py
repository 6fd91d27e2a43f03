"""Which stages an operation has, and what part of its time each is expected to take."""

from __future__ import annotations

from ooc.build.kmeans import rows_looked_at
from ooc.build.plan import Plan

__all__ = ["STAGES", "shares"]

#: The stages of each operation, in order.
STAGES = {
    "build": ("plan", "sample", "train", "fill", "merge", "publish"),
    "train": ("plan", "sample", "train"),
    "fill": ("fill",),
    "merge": ("merge", "publish"),
}


def shares(plan: Plan, operation: str) -> dict[str, float]:
    """What part of the time each stage is expected to take, from operations and bytes."""
    stages = STAGES[operation]
    multiply = 1 / 150e9  # seconds an operation of a matrix product takes
    byte = 1 / 800e6
    pick = 8e-5  # a row here and there
    values = plan.n * plan.d
    lists = plan.n * (plan.code_size + 8)
    seconds = {
        "plan": 0.1,
        "sample": plan.sample_rows * pick,
        "train": 2 * rows_looked_at(plan.sample_rows, plan.nlist) * plan.d * plan.nlist * multiply,
        "fill": 2 * values * plan.nlist * multiply + values * 1.5e-8 + plan.n * 4e-6,
        "merge": 2 * lists * byte + 0.1,
        "publish": 0.1,
    }
    whole = sum(seconds[stage] for stage in stages)
    return {stage: seconds[stage] / whole for stage in stages}
