"""The curve of recall against time as PNG, drawn by matplotlib: an extra of its own."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from typing import Any

from ooc.errors import MissingExtraError
from ooc.evaluation.svg import log_ticks, recall_axis
from ooc.units import format_count

__all__ = ["check_png", "png"]

#: Light to strong, as in the drawings of ``ooc.evaluation.svg``.
_COLOURS = ("#a9cbf5", "#72a9ec", "#3f86dc", "#2467b8", "#123f7a")
_INK, _SOFT, _LINE = "#16181d", "#565b66", "#e3e5e9"
_INCHES, _DOTS = (8.6, 4.8), 160
#: Recall is placed by an axis of so many parts.
_PARTS = 400.0


def check_png() -> None:
    """See that matplotlib is there.

    Raises
    ------
    MissingExtraError
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            "a curve as .png needs the package matplotlib, which is not installed",
            hint="pip install 'ooc[plot]', or name an .svg.",
        )


def png(figures: Mapping[str, Any]) -> bytes:
    """Recall against the median latency: a line for each number of candidates, a point for each nprobe.

    Parameters
    ----------
    figures : mapping
        What ``ooc.evaluate`` returns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = figures["points"]
    place = recall_axis([p["recall"] for p in points], 0.0, _PARTS)
    # Neither pyplot nor its settings: what the caller draws is the caller's.
    figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    counts = sorted({p["candidates"] for p in points})
    for i, count in enumerate(counts):
        strength = round(i * (len(_COLOURS) - 1) / (len(counts) - 1)) if len(counts) > 1 else 3
        colour = _COLOURS[strength]
        line = sorted((p for p in points if p["candidates"] == count), key=lambda p: p["nprobe"])
        x = [1e3 * p["latency_seconds"]["p50"] for p in line]
        y = [place(p["recall"]) for p in line]
        below = [at - place(p["recall_low"]) for at, p in zip(y, line, strict=True)]
        above = [place(p["recall_high"]) - at for at, p in zip(y, line, strict=True)]
        axes.errorbar(
            x, y, yerr=[below, above], color=colour, ecolor=(colour, 0.5), elinewidth=1, linewidth=1.8,
            marker="o", markersize=5, label=f"{format_count(count)} candidates",
        )  # fmt: skip
    best = [p for p in points if p["best"]]
    axes.plot(
        [1e3 * p["latency_seconds"]["p50"] for p in best], [place(p["recall"]) for p in best], "o",
        markersize=9, markerfacecolor="none", markeredgecolor=_INK, markeredgewidth=1.2,
        label="nothing else reads as little and recalls as much",
    )  # fmt: skip
    taken = [1e3 * p["latency_seconds"]["p50"] for p in points]
    low, high = min(taken) / 1.15, max(taken) * 1.15
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_xticks(log_ticks(low, high), [f"{tick:g}" for tick in log_ticks(low, high)])
    axes.set_xticks([], minor=True)
    axes.set_yticks([place(recall) for recall, _ in place.ticks], [words for _, words in place.ticks])
    axes.set_ylim(0, 1.02 * _PARTS)
    axes.set_xlabel("median time of a query, ms", color=_SOFT)
    axes.set_ylabel(f"recall@{figures['k']}", color=_SOFT)
    axes.grid(color=_LINE)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(loc="outside upper left", frameon=False, ncols=3, fontsize=9, labelcolor=_SOFT)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
