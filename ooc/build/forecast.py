"""What a build is expected to take: time by stage, from how fast this machine is; memory and disk."""

from __future__ import annotations

import threading
import time

from ooc.build.footprint import footprint
from ooc.build.glance import Glance
from ooc.build.kmeans import passes
from ooc.build.plan import Forecast, Plan
from ooc.build.speed import Speed, measured, usual
from ooc.mapping import private_bytes, release_free_memory
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

#: A byte that is copied and made durable: plans write nothing, so this is what is usual.
_COPIED = 1 / 800e6
#: A build that usually takes less is as soon done as measured.
_SOON_SECONDS = 2.0


def forecast(
    store: Store, plan: Plan, glance: Glance, began: float, stop: threading.Event | None = None
) -> Forecast:
    """What a build of a plan takes; speeds are measured where that is worth it.

    Parameters
    ----------
    store : Store
        Of the plan.
    glance : Glance
        Rows of it.
    began : float
        When planning began, by ``time.monotonic``: what it took so far is part of the build.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.
    """
    release_free_memory()
    # Before anything is measured: what threads leave behind by that, they will need again.
    memory = footprint(plan, store, private_bytes())
    speed = usual(plan)
    if sum(seconds(plan, speed).values()) > _SOON_SECONDS:
        speed = measured(store, plan, glance, stop)
    return Forecast(
        seconds={**seconds(plan, speed), "plan": time.monotonic() - began},
        memory_bytes=max(memory.values()),
        disk_bytes=sum(plan.index_bytes.values()),
        measured=speed.measured,
        memory_by_stage=memory,
    )


def seconds(plan: Plan, speed: Speed) -> dict[str, float]:
    """Seconds that each stage of a build takes, at these speeds."""
    lists = plan.n * plan.lists_per_row * (plan.code_size + 8)
    # A sketch is made before the first pass, and when all is done.
    training = 2 * speed.begin + 0.05
    for one in passes(plan.sample_rows, plan.nlist):
        training += one.searched * speed.search + (one.rows - one.searched) * speed.compare
        training += speed.move + (speed.sketch if one.searched else 0.0)
    # Of a store that is mapped the sample's first eighth is read by itself; else all chunks are decoded.
    first = -(-plan.sample_rows // (8 if plan.overlapped else 1))
    # What is decoded takes the same processors; what is mapped is brought in meanwhile.
    worked, read = plan.n * speed.encode, plan.n * speed.read
    return {
        "plan": 0.1,
        "sample": 0.0 if plan.template else first * speed.pick if plan.mapped else read,
        "train": 0.0 if plan.template else training,
        "fill": max(worked, read) if plan.mapped else worked + read,
        "merge": 2 * lists * _COPIED + 0.02,
        "calibrate": 0.3 + lists * _COPIED + plan.n * 7e-7,
        "publish": 0.02,
    }


def shares(plan: Plan, operation: str) -> dict[str, float]:
    """What part of the time of an operation each of its stages is expected to take."""
    expected = seconds(plan, usual(plan)) if plan.forecast is None else plan.forecast.seconds
    stages = STAGES[operation]
    whole = sum(expected[stage] for stage in stages)
    return {stage: expected[stage] / whole for stage in stages}
