"""Plots of a search benchmark's result: run by ``tools/bench search`` in an environment with matplotlib.

    bench_search_plot.py RESULT.json        # or by hand, for a result that is there

Writes beside it ``RESULT-recall.svg``, recall against queries a second with memory free, and
``RESULT-memory.svg``, latency against the memory of the cgroup. Imports the standard library until it draws.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Recall at which latencies are compared.
_TARGET = "0.95"
_Series = dict[str, list[tuple[float, float]]]


def by_recall(result: dict[str, Any], mode: str) -> _Series:
    """Of each side recall and queries a second, the page cache warm."""
    series: _Series = {}
    for name, side in result["sides"].items():
        for run in side["runs"]:
            if (run["mode"], run["memory"]) == (mode, "warm") and run["points"]:
                series[name] = sorted((p["recall"], p["queries_per_second"]) for p in run["points"])
    return series


def by_memory(result: dict[str, Any]) -> _Series:
    """Of each side and read-ahead, bytes of the cgroup and the p50 of one client in ms."""
    series: _Series = {}
    several = len(result["settings"]["read_ahead"]) > 1
    for name, side in result["sides"].items():
        for run in side["runs"]:
            at = run["at"].get(_TARGET)
            if run["mode"] == "single" and run["limit_bytes"] is not None and at:
                label = f"{name}, read-ahead {run['read_ahead']}" if several else name
                series.setdefault(label, []).append((run["limit_bytes"] / 2**20, at["p50_seconds"] * 1000))
    return {label: sorted(points) for label, points in series.items()}


def draw(result: dict[str, Any], stem: Path) -> list[Path]:
    """Draw what there is to draw; the files."""
    import matplotlib  # type: ignore[import-not-found, unused-ignore]

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # type: ignore[import-not-found, unused-ignore]

    settings, written = result["settings"], []
    what = f"{settings['rows']:,} x {settings['dim']}".replace(",", " ")
    modes = {"single": "one client", "threads": f"{settings['threads']} threads", "batch": "batches"}
    curves = {about: by_recall(result, mode) for mode, about in modes.items() if by_recall(result, mode)}
    colours = dict(zip(result["sides"], map(plt.get_cmap("tab20"), range(20)), strict=False))
    if curves:
        figure, axes = plt.subplots(1, len(curves), figsize=(5.5 * len(curves), 4.5), squeeze=False)
        for axis, (about, series) in zip(axes[0], curves.items(), strict=True):
            _lines(axis, series, colours)
            axis.set(xlabel="recall@10", ylabel="queries/s", yscale="log", title=f"{what}, {about}, warm")
        written.append(stem.with_name(f"{stem.name}-recall.svg"))
        # Not every side is in every mode.
        lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
        shown = [name for name in colours if name in lines]
        legend = {"fontsize": "small", "loc": "center left", "bbox_to_anchor": (1, 0.5)}
        axes[0][-1].legend([lines[name] for name in shown], shown, **legend)
        figure.savefig(written[-1], bbox_inches="tight")
        plt.close(figure)
    series = by_memory(result)
    if series:
        figure, axis = plt.subplots(figsize=(6.5, 4.5))
        _lines(axis, series, colours)
        axis.set(
            xlabel="memory of the cgroup, MiB", ylabel="p50 of one client, ms", yscale="log", xscale="log"
        )
        axis.set_title(f"{what}, recall@10 {_TARGET}, cold start")
        ticks = sorted({size for points in series.values() for size, _ in points})
        axis.set_xticks(ticks, [f"{size:.0f}" for size in ticks])
        axis.minorticks_off()
        axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        written.append(stem.with_name(f"{stem.name}-memory.svg"))
        figure.savefig(written[-1], bbox_inches="tight")
        plt.close(figure)
    return written


def _lines(axis: Any, series: _Series, colours: dict[str, Any]) -> None:
    for label, points in series.items():
        x, y = zip(*points, strict=True)
        name, _, ahead = label.partition(",")
        dashed = any(map(str.isdigit, ahead))
        look = {"linewidth": 2.5 if name == "ooc" else 1.2, "linestyle": "--" if dashed else "-"}
        axis.plot(x, y, marker="o", markersize=4, color=colours[name], label=label, **look)
    axis.grid(visible=True, which="both", alpha=0.3)


def main() -> None:
    path = Path(sys.argv[1])
    written = draw(json.loads(path.read_text()), path.with_suffix(""))
    print("plots: " + (", ".join(str(one) for one in written) or "nothing to draw"))


if __name__ == "__main__":
    main()
