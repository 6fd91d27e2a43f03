"""The curve of recall against time as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ooc.evaluation.svg import bytes_axis, document, recall_axis, text, time_axis
from ooc.units import format_bytes, format_count

__all__ = ["curve"]

_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 52, 52
#: Colours there are, light to strong.
_COLOURS = 5


def curve(
    figures: Mapping[str, Any], against: Literal["time", "bytes"] = "time", *, alone: bool = True
) -> str:
    """Recall against the median latency, or against the bytes of lists and rows.

    A line for each number of candidates, a point for each nprobe. Rings are settings that no other beats;
    upright strokes are confidence intervals.

    Parameters
    ----------
    figures : mapping
        What ``ooc.evaluate`` returns.
    against : {"time", "bytes"}
    alone : bool
        As a file of its own, rather than as part of a page that has the style.
    """
    points = figures["points"]
    costs = [_cost(p, against) for p in points]
    if against == "time":
        x, name = time_axis(costs, _LEFT, _WIDTH - _RIGHT), "median time of a query, ms"
    else:
        x, name = bytes_axis(costs, _LEFT, _WIDTH - _RIGHT), "lists and rows that a query reads"
    y = recall_axis([p["recall"] for p in points], _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for value, words in x.ticks:
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(text(at, _HEIGHT - _BOTTOM + 18, words, anchor="middle"))
    for value, words in y.ticks:
        at = y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(text(_LEFT - 8, at + 4, words, anchor="end"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(text(middle, _HEIGHT - 10, name, anchor="middle"))
    parts.append(text(8, 18, f"recall@{figures['k']}", cls="strong"))
    unit = 1e3 if against == "time" else 1
    counts = sorted({p["candidates"] for p in points})
    at = 120.0
    for i, count in enumerate(counts):
        colour = f"s{round(i * (_COLOURS - 1) / max(len(counts) - 1, 1)) if len(counts) > 1 else 3}"
        line = sorted((p for p in points if p["candidates"] == count), key=lambda p: p["nprobe"])
        places = [(x(_cost(p, against) * unit), y(p["recall"])) for p in line]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        parts.append(f'<g class="{colour}"><path class="curve stroke" d="{path}"/>')
        for point, (a, b) in zip(line, places, strict=True):
            low, high = y(point["recall_low"]), y(point["recall_high"])
            parts.append(
                f'<line class="ci stroke" x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
                f'<circle class="fill" cx="{a:.1f}" cy="{b:.1f}" r="3.5"/>'
            )
            if point["best"]:
                parts.append(f'<circle class="best" cx="{a:.1f}" cy="{b:.1f}" r="6"/>')
            parts.append(f'<circle class="hit" cx="{a:.1f}" cy="{b:.1f}" r="10">{_told(point)}</circle>')
        words = f"{format_count(count)} candidates"
        parts.append(f'<line class="curve stroke" x1="{at:.1f}" x2="{at + 22:.1f}" y1="14" y2="14"/></g>')
        parts.append(text(at + 28, 18, words))
        at += 28 + 7 * len(words) + 16
    parts.append(
        f'<circle class="best" cx="{_LEFT + 6}" cy="36" r="6"/>'
        + text(_LEFT + 18, 40, "nothing else measured reads as little and recalls as much")
    )
    return document(_WIDTH, _HEIGHT, f"recall@{figures['k']} against {against}", parts, alone=alone)


def _cost(point: Mapping[str, Any], against: str) -> float:
    """Seconds, or bytes."""
    return float(
        point["latency_seconds"]["p50"] if against == "time" else point["list_bytes"] + point["row_bytes"]
    )


def _told(point: Mapping[str, Any]) -> str:
    """What a point says when it is pointed at."""
    times = point["latency_seconds"]
    return (
        f"<title>nprobe {point['nprobe']}, {point['candidates']} candidates: recall {point['recall']:.4f} "
        f"({point['recall_low']:.4f} to {point['recall_high']:.4f}), median {1e3 * times['p50']:.2f} ms, "
        f"p99 {1e3 * times['p99']:.2f} ms, {format_bytes(point['list_bytes'])} of lists</title>"
    )
