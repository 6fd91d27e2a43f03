"""The result of a benchmark as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ooc.units import format_bytes, format_count, format_seconds

_COLUMNS = ("side", "wall", "CPU", "private", "resident", "cgroup", "read", "written", "index", "runs")


def tables(result: dict[str, Any]) -> Iterator[str]:
    """Lines: for each number of rows the sides, their recall and the ratios; then the bars."""
    yield f"{machine_line(result['machine'])}; our budget {format_bytes(result['settings']['memory_bytes'])}"
    for size in result["sizes"]:
        yield ""
        yield f"{format_count(size['rows'])} x {size['dim']}, {size['factory']}, medians"
        yield from aligned([_COLUMNS, *(_row(name, side) for name, side in size["sides"].items())])
        yield ""
        yield "recall@10 (shifted queries) by lists probed, and kB of lists read a query"
        yield from _recall(size["sides"])
        for ours, against in size["ratios"].items():
            for other, ratio in against.items():
                yield _ratio(ours, other, ratio)
        merge = size.get("merge", {})
        if merge.get("status") == "done":
            yield (
                f"merge of {merge['shards']} shards: {format_bytes(merge['merge_bytes_per_second'])}/s, "
                f"cp + fsync {format_bytes(merge['cp_fsync_bytes_per_second'])}/s: {merge['ratio']:.2f} of it"
            )
    for name, record in result["cost_per_row"].items():
        if record["growth"] is not None:
            costs = ", ".join(
                f"{cost:.0f} at {format_count(int(rows))}" for rows, cost in record["microseconds"].items()
            )
            yield f"{name}: microseconds a row {costs}: grows {record['growth']:.2f} times"
    yield ""
    yield from bar_lines(result["bars"])


def machine_line(machine: dict[str, Any]) -> str:
    """What the figures were taken on."""
    system = f"{format_bytes(machine['memory_bytes'])}, Linux {machine['kernel']}, {machine['disk']}"
    return f"{machine['cpu']}, {machine['cores']} cores, {system}"


def bar_lines(bars: list[dict[str, Any]]) -> Iterator[str]:
    """Each bar: whether it is met, its value, its bound."""
    for bar in bars:
        bound = f"at most {bar['most']:g}" if bar["most"] is not None else f"at least {bar['least']:g}"
        yield f"{'met    ' if bar['met'] else 'NOT MET'}  {bar['name']}: {bar['value']:.4g} ({bound})"


def _row(name: str, side: dict[str, Any]) -> tuple[str, ...]:
    if "median" not in side:
        return (name, side["status"], side.get("why", ""))
    median = side["median"]
    sizes = ("peak_private_bytes", "peak_resident_bytes", "peak_cgroup_bytes", "read_bytes", "written_bytes")
    return (
        name,
        format_seconds(median["wall_seconds"]),
        format_seconds(median["cpu_seconds"]),
        *("-" if median[key] is None else format_bytes(median[key]) for key in sizes),
        format_bytes(side.get("result_bytes", 0)),
        str(len(side["runs"])),
    )


def _recall(sides: dict[str, Any]) -> Iterator[str]:
    judged = {name: side for name, side in sides.items() if side.get("recall")}
    probes = sorted({p["nprobe"] for side in judged.values() for p in side["recall"] if p["nprobe"]})
    rows = [("side", *(str(p) for p in probes if p >= 8 or p == probes[-1]))]
    for name, side in judged.items():
        points = {point["nprobe"]: point for point in side["recall"]}
        if None in points:
            rows.append((name, f"{points[None]['recall']:.3f}, no lists"))
            continue
        cells = [points.get(p) for p in probes if p >= 8 or p == probes[-1]]
        rows.append((name, *(_cell(point) for point in cells)))
    yield from aligned(rows)


def _cell(point: dict[str, Any] | None) -> str:
    if point is None:
        return "-"
    shifted = f" ({point['recall_shifted']:.3f})" if "recall_shifted" in point else ""
    return f"{point['recall']:.3f}{shifted} {point['list_bytes_per_query'] / 1000:.0f}"


def _ratio(ours: str, other: str, ratio: dict[str, Any]) -> str:
    parts = []
    for name, key in (
        ("wall", "wall_seconds"),
        ("CPU", "cpu_seconds"),
        ("private memory", "peak_private_bytes"),
        ("cgroup", "peak_cgroup_bytes"),
    ):
        if ratio[key] is not None:
            parts.append(f"{name} {ratio[key]:.3f}")
    compared = ratio.get("recall_at_equal_bytes") or []
    if compared:
        differences = [point["difference"] for point in compared]
        parts.append(f"recall at equal bytes {min(differences):+.4f} to {max(differences):+.4f}")
    return f"{ours} / {ratio['counted'] if other == 'faiss' else other}: {', '.join(parts)}"


def aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns of equal width; a row that is shorter says in words why it has no figures."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    for row in rows:
        if len(row) < len(rows[0]):
            yield "  ".join([row[0].ljust(widths[0]), *row[1:]])
        else:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))]
            yield "  ".join(cells).rstrip()
