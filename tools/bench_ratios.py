"""What the figures of a build benchmark say side by side: ratios, the cost per row, the bars."""

from __future__ import annotations

import statistics
from typing import Any

from bench_recall import at_equal_bytes

#: Figures of a run of which medians and ratios are taken.
FIGURES = (
    "wall_seconds",
    "cpu_seconds",
    "peak_private_bytes",
    "peak_resident_bytes",
    "peak_cgroup_bytes",
    "read_bytes",
    "written_bytes",
)


def ratios(sides: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each of ours against each of the others; of the two of faiss the quicker counts."""
    done = {name: side for name, side in sides.items() if "median" in side}
    others = {name: side for name, side in done.items() if not name.startswith("ooc-")}
    faisses = [name for name in ("faiss", "faiss-haswell") if name in others]
    if faisses:
        quicker = min(faisses, key=lambda name: others[name]["median"]["wall_seconds"])
        chosen = others[quicker] | {"counted": quicker}
        others = {"faiss": chosen} | {k: v for k, v in others.items() if not k.startswith("faiss")}
    result: dict[str, dict[str, Any]] = {}
    for name, ours in done.items():
        if not name.startswith("ooc-"):
            continue
        result[name] = {}
        for other, theirs in others.items():
            against: dict[str, Any] = {"counted": theirs.get("counted", other)}
            for figure in FIGURES:
                a, b = ours["median"][figure], theirs["median"][figure]
                against[figure] = a / b if a is not None and b else None
            if ours.get("recall") and theirs.get("recall"):
                against["recall_at_equal_bytes"] = at_equal_bytes(ours["recall"], theirs["recall"])
            result[name][other] = against
    return result


def cost_per_row(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """Microseconds a row for each side and number of rows, and what they grow by from first to last."""
    result: dict[str, Any] = {}
    for size in sizes:
        for name, side in size["sides"].items():
            if "median" in side:
                cost = side["median"]["wall_seconds"] / size["rows"] * 1e6
                result.setdefault(name, {"microseconds": {}})["microseconds"][str(size["rows"])] = cost
    for record in result.values():
        costs = list(record["microseconds"].values())
        record["growth"] = costs[-1] / costs[0] if len(costs) > 1 else None
    return result


def judged(
    name: str, value: float, *, most: float | None = None, least: float | None = None
) -> dict[str, Any]:
    """A bar: its name, the value, its bounds, and whether it is met."""
    met = (most is None or value <= most) and (least is None or value >= least)
    return {"name": name, "value": value, "most": most, "least": least, "met": met}


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the project asks of itself, at the largest number of rows, from the contiguous HDF5."""
    size = result["sizes"][-1]
    against = size["ratios"].get("ooc-hdf5", {})
    found: list[dict[str, Any]] = []

    def bar(name: str, value: float | None, most: float | None = None, least: float | None = None) -> None:
        if value is not None:
            found.append(judged(name, value, most=most, least=least))

    if "faiss" in against:
        bar("wall, of faiss's", against["faiss"]["wall_seconds"], most=0.5)
        compared = against["faiss"].get("recall_at_equal_bytes")
        if compared:
            worst = min(point["difference"] for point in compared)
            bar("recall@10 at equal bytes, less faiss's, at the worst setting", worst, least=-0.005)
    if "lancedb" in against:
        bar("wall, of LanceDB's", against["lancedb"]["wall_seconds"], most=0.5)
        bar("peak private memory, of LanceDB's", against["lancedb"]["peak_private_bytes"], most=0.1)
    bar("merge, of cp + fsync", size.get("merge", {}).get("ratio"), least=0.5)
    side = size["sides"].get("ooc-hdf5", {})
    if "median" in side:
        private = side["median"]["peak_private_bytes"] / result["settings"]["memory_bytes"]
        bar("peak private memory, of the budget", private, most=1.0)
        busy = [one["stages"]["fill"].get("cores") for one in side["runs"] if "fill" in (one["stages"] or {})]
        if busy and None not in busy:
            share = statistics.median(busy) / result["machine"]["cores"]
            bar("cores busy in the fill, of all", share, least=0.8)
    bar(
        "cost per row, of that at the fewest rows",
        result["cost_per_row"].get("ooc-hdf5", {}).get("growth"),
        most=2,
    )
    return found
