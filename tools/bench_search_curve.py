"""From points to figures: settings worth measuring, what a side does at a recall, the bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench_ratios import judged

#: Recall at which sides are compared.
TARGETS = (0.90, 0.95, 0.99)
#: What faiss's best IVF in memory is sought among.
_IN_MEMORY = ("faiss-flat", "faiss-sq8", "faiss-rabitq")
#: By which figure a side's points are compared with each other in each mode, and whether less is better.
_DECIDES = {
    "single": ("p50_seconds", True),
    "threads": ("queries_per_second", False),
    "batch": ("queries_per_second", False),
}
#: Figures that go by factors; the others by differences.
_BY_FACTOR = ("p50_seconds", "p95_seconds", "p99_seconds", "queries_per_second")
_BY_DIFFERENCE = (
    "recall_shifted",
    "private_bytes",
    "peak_private_bytes",
    "peak_cgroup_bytes",
    "read_bytes_per_query",
)


def worth_measuring(points: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """The settings between which the recalls that are compared lie.

    Parameters
    ----------
    points : sequence of dict
        With ``setting`` and ``recall``; those of equal ``candidates`` in ascending order of work.

    Returns
    -------
    list of dict
        Of each number of candidates, from the last below the lowest recall to the first that reaches
        the highest.
    """
    kept: list[dict[str, int]] = []
    for candidates in dict.fromkeys(point["setting"].get("candidates") for point in points):
        group = [point for point in points if point["setting"].get("candidates") == candidates]
        below = [i for i, point in enumerate(group) if point["recall"] < TARGETS[0]]
        reached = [i for i, point in enumerate(group) if point["recall"] >= TARGETS[-1]]
        first, last = (below[-1] if below else 0), (reached[0] if reached else len(group) - 1)
        kept += [point["setting"] for point in group[min(first, last) : last + 1]]
    return kept


def at_recall(points: Sequence[dict[str, Any]], target: float, mode: str) -> dict[str, Any] | None:
    """What a side does at a recall, interpolated between two of its own points.

    A point counts only where none of at least its recall is better. Between two that count, the share
    of the way from one recall to the other is gone by factors in times and rates, by differences in
    bytes.

    Parameters
    ----------
    points : sequence of dict
        With ``recall`` and the figures of ``mode``.
    target : float
    mode : {"single", "threads", "batch"}

    Returns
    -------
    dict or None
        The figures, ``recall``, and ``beyond``: whether the least of the points reaches more than
        the target, so that the figures are its own. None where no point reaches the target.
    """
    name, less = _DECIDES[mode]
    front: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda one: (-one["recall"], one[name] if less else -one[name])):
        if not front or (point[name] < front[-1][name] if less else point[name] > front[-1][name]):
            front.append(point)
    front.reverse()  # ascending recall
    upper = next((i for i, point in enumerate(front) if point["recall"] >= target), None)
    if upper is None:
        return None
    if upper == 0:
        return {
            "recall": front[0]["recall"],
            "beyond": front[0]["recall"] > target,
            **_mixed(front[0], front[0], 0),
        }
    low, high = front[upper - 1], front[upper]
    way = (target - low["recall"]) / (high["recall"] - low["recall"])
    return {"recall": target, "beyond": False, **_mixed(low, high, way)}


def _mixed(low: dict[str, Any], high: dict[str, Any], way: float) -> dict[str, Any]:
    """Figures that both points have, part of the way from one to the other."""
    mixed: dict[str, Any] = {}
    for name in (*_BY_FACTOR, *_BY_DIFFERENCE):
        a, b = low.get(name), high.get(name)
        if a is None or b is None:
            continue
        mixed[name] = a * (b / a) ** way if name in _BY_FACTOR else a + way * (b - a)
    return mixed


def figures_at(side: dict[str, Any], mode: str, memory: str, kb: str, target: float) -> dict[str, Any] | None:
    """A side's figures at a recall, of its run in that mode and memory, with that read-ahead."""
    for run in side.get("runs", ()):
        if (run["mode"], run["memory"], run["read_ahead"]) == (mode, memory, kb):
            found: dict[str, Any] | None = run["at"].get(f"{target:.2f}")
            return found
    return None


def bars(result: dict[str, Any]) -> list[dict[str, Any]]:
    """What the project asks of itself."""
    sides, found = result["sides"], []
    usual = result["settings"]["read_ahead"][0]

    def figure(side: str, name: str, mode: str, memory: str, kb: str = usual) -> float | None:
        at = figures_at(sides.get(side, {}), mode, memory, kb, 0.95)
        value: float | None = at.get(name) if at else None
        # A side on fewer rows has less to do: it is no measure.
        return value if sides.get(side, {}).get("rows") == result["settings"]["rows"] else None

    ours = figure("ooc", "queries_per_second", "batch", "warm")
    theirs = [figure(name, "queries_per_second", "batch", "warm") for name in _IN_MEMORY]
    best = max((value for value in theirs if value), default=None)
    if ours and best:
        found.append(judged("queries/s of a batch, of faiss's best IVF in memory", ours / best, least=1))
    ours = figure("ooc", "p50_seconds", "single", "warm")
    theirs = [figure(f"lancedb-{kind}", "p50_seconds", "single", "warm") for kind in ("rq", "pq")]
    best = min((value for value in theirs if value), default=None)
    if ours and best:
        found.append(judged("p50 of one client, of a quarter of LanceDB's", ours / (best / 4), most=1))
    limits = [name for name in result["settings"]["memory"] if name not in ("warm", "cold")]
    for kb in result["settings"]["read_ahead"] if limits else ():
        where = f"in {limits[-1]}, read-ahead {kb}"
        ours = figure("ooc", "p50_seconds", "single", limits[-1], kb)
        mapped = figure("faiss-mmap", "p50_seconds", "single", limits[-1], kb)
        if ours:
            found.append(judged(f"p50 of one client in ms, {where}", ours * 1000, most=5))
        if ours and mapped:
            found.append(
                judged(f"p50 of faiss's mmap of the same lists, of ours, {where}", mapped / ours, least=10)
            )
    for run in sides.get("ooc", {}).get("runs", ()):
        if run["mode"] != "single" or run["read_ahead"] != usual or not run["points"]:
            continue
        if run["memory"] == "cold":
            answered = max(point["first_answer_seconds"] for point in run["points"])
            found.append(judged("import, open and first answer, cold, in s", answered, most=0.5))
        if run["memory"] == "warm":
            private = max(point["private_bytes"] for point in run["points"]) / 1e6
            found.append(judged("private MB after single queries", private, most=80))
    return found
