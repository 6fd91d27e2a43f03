"""What a build is expected to take: time by stage, from how fast this machine is; memory and disk."""

from __future__ import annotations

import threading

from ooc.build.kmeans import passes
from ooc.build.plan import Forecast, Plan
from ooc.build.speed import Speed, measured, usual
from ooc.stores import Store

__all__ = ["STAGES", "forecast", "seconds", "shares"]

#: The stages of each operation, in order.
STAGES = {
    "build": ("plan", "sample", "train", "fill", "merge", "calibrate", "publish"),
    "train": ("plan", "sample", "train"),
    "fill": ("fill",),
    "merge": ("merge", "calibrate", "publish"),
    "append": ("plan", "fill", "merge", "publish"),
    "upsert": ("plan", "fill", "merge", "publish"),
}

#: A byte that is copied and made durable.
_COPIED = 1 / 800e6
#: What else there is to do for a row, of the sample or the store, than to compare and to encode it: lists are
#: summed, codes put in order. By a build of a million rows.
_TRAIN_TIMES, _FILL_TIMES = 1.35, 1.12
#: A build that usually takes less is as soon done as measured.
_SOON_SECONDS = 6.0


def forecast(store: Store, plan: Plan, stop: threading.Event | None = None) -> Forecast:
    """What a build of a plan takes; speeds are measured where that is worth it."""
    speed = usual(plan)
    if sum(seconds(plan, speed).values()) > _SOON_SECONDS:
        speed = measured(store, plan, stop)
    return Forecast(
        seconds=seconds(plan, speed),
        memory_bytes=max(plan.memory_by_stage.values()),
        disk_bytes=sum(plan.index_bytes.values()),
        measured=speed.measured,
    )


def seconds(plan: Plan, speed: Speed) -> dict[str, float]:
    """Seconds that each stage of a build takes, at these speeds."""
    lists = plan.n * plan.lists_per_row * (plan.code_size + 8)
    training = 0.0
    first = -(-plan.sample_rows // (8 if plan.overlapped else 1))
    if not plan.template:
        before = None
        for anew, every in passes(plan.sample_rows, plan.nlist) if plan.sample_rows > plan.nlist else ():
            rows = -(-plan.sample_rows // every)
            new = rows if anew or before is None else max(rows - before, 0)
            training += new * speed.search + (rows - new) * speed.compare
            training += speed.sketch if anew or new else 0.0
            before = rows
    witnessed = plan.n * plan.witnesses * (3e-9 / max(plan.threads, 1))
    # What is decoded takes the same processors; what is mapped is brought in meanwhile.
    worked = _FILL_TIMES * plan.n * speed.encode + witnessed
    filled = max(worked, plan.n * speed.read) if plan.mapped else worked + plan.n * speed.read
    return {
        "plan": 0.1,
        "sample": 0.0 if plan.template else first * speed.pick,
        "train": _TRAIN_TIMES * training,
        "fill": filled,
        "merge": 2 * lists * _COPIED + 0.1,
        "calibrate": 0.3 + lists * _COPIED + plan.n * 1e-6,
        "publish": 0.1,
    }


def shares(plan: Plan, operation: str) -> dict[str, float]:
    """What part of the time of an operation each of its stages is expected to take."""
    expected = seconds(plan, usual(plan)) if plan.forecast is None else plan.forecast.seconds
    stages = STAGES[operation]
    whole = sum(expected[stage] for stage in stages)
    return {stage: expected[stage] / whole for stage in stages}
