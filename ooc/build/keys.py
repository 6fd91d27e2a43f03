"""The keys of the rows: written into the segment in the making, before anything that takes long."""

from __future__ import annotations

import threading
from typing import Any

from ooc.build.plan import Plan
from ooc.durable import read_json, write_sealed
from ooc.errors import ArgumentError
from ooc.index.keys import write_keys
from ooc.index.layout import BuildLayout
from ooc.stores.keys import KeySource

__all__ = ["keep_keys", "kept_keys"]


def keep_keys(
    source: KeySource, plan: Plan, build: BuildLayout, *, stop: threading.Event | None = None
) -> None:
    """Write keys where the segment grows, if that was not done yet.

    Parameters
    ----------
    source : KeySource
        As many as the plan has rows, in their order.
    plan : Plan
        Has their fingerprint.
    build : BuildLayout
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.

    Raises
    ------
    DataError
        A key is there twice.
    ArgumentError
        They are not those of the plan, or no keys.
    """
    if kept_keys(plan, build) is not None:
        return
    made = write_keys(source, build.segment, stop=stop)
    if made["fingerprint"] != plan.keys:
        raise ArgumentError(
            f"{source.where} was changed while it was read",
            kind="keys",
            hint="Call again.",
        )
    write_sealed(build.keys, made)


def kept_keys(plan: Plan, build: BuildLayout) -> dict[str, Any] | None:
    """What ``write_keys`` said of the keys that are there; None where there are none, or not all."""
    if not plan.keys or not build.keys.exists():
        return None
    made = read_json(build.keys, what="the record of the keys")
    # A change that ended between giving the segment its place and publishing begins with a new one.
    there = all((build.segment.root / name).exists() for name in made["checksums"])
    return made if there and made["fingerprint"] == plan.keys else None
