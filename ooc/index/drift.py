"""Whether what recall was measured still tells of the rows: those that came later may be of another kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["MEASURED", "calibrated", "measured_rows", "stale"]

#: Of so many rows of a segment one is measured.
MEASURED = 16
#: Rows that lie farther from their centroids than those before by so many times are of another kind.
_FARTHER = 1.1
#: So many times as many rows as were measured make lists longer than any setting was tried on.
_MORE = 2.0
#: So much fewer leave the k nearest so far apart that lists are chosen by more results than were measured.
_FEWER = 0.5


def calibrated(
    generation: int, names: Iterable[str], segments: Iterable[Mapping[str, Any]], live: int | None = None
) -> dict[str, Any]:
    """What the record of a generation, and of those that follow it, keeps of how recall was measured.

    Parameters
    ----------
    generation : int
        Its number: its report has the times that were measured.
    names : iterable of str
    segments : iterable of mapping
        Their records (``segment.json``).
    live : int, optional
        How many of their rows were not dead; default: all.
    """
    kept = ("rows", "assignment_error")
    by = [
        {"name": name, **{key: segment[key] for key in kept if key in segment}}
        for name, segment in zip(names, segments, strict=True)
    ]
    said: dict[str, Any] = {"generation": generation, "segments": by}
    return said if live in (None, sum(entry["rows"] for entry in by)) else {**said, "live": live}


def measured_rows(generation: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> int:
    """How many rows lived when recall was measured; parameters as for ``stale``."""
    known = _known(generation, segments)
    return int(known.get("live", sum(entry["rows"] for entry in known["segments"])))


def _known(generation: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What ``calibrated`` made, also where a record is without it."""
    names = [str(entry["name"]) for entry in generation["segments"][:1]]
    known: Mapping[str, Any] = generation.get("calibrated") or calibrated(1, names, segments[:1])
    return known


def stale(generation: Mapping[str, Any], segments: Sequence[Mapping[str, Any]]) -> str | None:
    """Why recall should be measured anew; None where nothing speaks for it.

    Parameters
    ----------
    generation : mapping
        Its record. ``calibrated`` says by which segments recall was measured; without it, by the first.
    segments : sequence of mapping
        The records of its segments, in its order.
    """
    if not generation.get("calibration"):
        return None
    names = [str(entry["name"]) for entry in generation["segments"]]
    known = _known(generation, segments)["segments"]
    before = {str(entry["name"]) for entry in known}
    later = {name: segment for name, segment in zip(names, segments, strict=True) if name not in before}
    measured = [entry for entry in known if "assignment_error" in entry]
    weights = sum(entry["rows"] for entry in measured)
    if weights:
        usual = sum(entry["rows"] * entry["assignment_error"] for entry in measured) / weights
        for name, segment in later.items():
            error = segment.get("assignment_error", 0.0)
            # Errors of rows differ by half of their mean or less: by chance that of few is twice so far off.
            if error > (_FARTHER + 1 / math.sqrt(max(segment["rows"] / MEASURED, 1))) * usual:
                times = f"{error / usual:.2f} times the usual" if usual else "and none did before"
                return f"rows of segment {name} lie far from the centroids of their lists, {times}"
    rows, now = (sum(entry["rows"] for entry in entries) for entries in (known, segments))
    if now > _MORE * rows:
        return f"recall was measured on {rows} rows, and there are {now}"
    lived = measured_rows(generation, segments)
    live = now - sum(entry.get("dead", 0) for entry in generation["segments"])
    if live < _FEWER * lived:
        return f"recall was measured on {lived} rows, and {live} are left"
    return None
