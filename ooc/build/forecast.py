"""Which stages an operation has, and what part of its time each is expected to take."""

from __future__ import annotations

from ooc.build.kmeans import rows_looked_at
from ooc.build.plan import Plan
from ooc.engine import sketched

__all__ = ["STAGES", "shares"]

#: The stages of each operation, in order.
STAGES = {
    "build": ("plan", "sample", "train", "fill", "merge", "calibrate", "publish"),
    "train": ("plan", "sample", "train"),
    "fill": ("fill",),
    "merge": ("merge", "calibrate", "publish"),
}


def shares(plan: Plan, operation: str) -> dict[str, float]:
    """What part of the time each stage is expected to take, from operations and bytes."""
    stages = STAGES[operation]
    byte = 1 / 800e6
    pick = 8e-6  # a row here and there
    values = plan.n * plan.d
    lists = plan.n * (plan.code_size + 8)
    # A row is assigned through a sketch, or by a product with all centroids.
    place = plan.d * (1e-8 if sketched(plan.nlist, plan.d) else 2 * plan.nlist / 150e9)
    seconds = {
        "plan": 0.1,
        "sample": plan.sample_rows * pick / (8 if plan.overlapped else 1),
        # Of many centroids most passes compare a row with few.
        "train": (0.55 if sketched(plan.nlist, plan.d) else 1)
        * rows_looked_at(plan.sample_rows, plan.nlist)
        * place,
        "fill": plan.n * (place + 3e-9 * plan.witnesses) + values * 1e-8,
        "merge": 2 * lists * byte + 0.1,
        "calibrate": 0.3 + lists * byte + plan.n * 1e-6,
        "publish": 0.1,
    }
    whole = sum(seconds[stage] for stage in stages)
    return {stage: seconds[stage] / whole for stage in stages}
