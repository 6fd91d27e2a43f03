"""The result of a search benchmark as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench_search_curve import TARGETS, figures_at
from bench_table import aligned, bar_lines, machine_line

from ooc.units import format_bytes, format_count

_COLUMNS = (
    "side",
    "recall",
    "shifted",
    "p50 ms",
    "p95",
    "p99",
    "1 client/s",
    "threads/s",
    "batch/s",
    "private",
    "cgroup",
    "read/query",
)


def tables(result: dict[str, Any]) -> Iterator[str]:
    """Lines: the sides with each memory and read-ahead, at each recall; then the bars."""
    settings = result["settings"]
    yield machine_line(result["machine"])
    yield (
        f"{format_count(settings['rows'])} x {settings['dim']}, {settings['factory']}, k = 10, "
        f"{settings['threads']} threads, batches of {settings['batch']}"
    )
    for name, side in result["sides"].items():
        if side["status"] != "done":
            yield f"{name}: {side['status']}: {side['why']}"
        elif side["rows"] != settings["rows"]:
            yield f"{name}: on {format_count(side['rows'])} rows alone"
    runs = [run for side in result["sides"].values() for run in side["runs"]]
    for memory, kb in dict.fromkeys((run["memory"], run["read_ahead"]) for run in runs):
        yield ""
        yield _heading(settings, memory, kb)
        rows: list[tuple[str, ...]] = [_COLUMNS]
        for name, side in result["sides"].items():
            rows += _rows(name, side, memory, kb)
        yield from aligned(rows)
    yield ""
    yield from bar_lines(result["bars"])


def _heading(settings: dict[str, Any], memory: str, kb: str) -> str:
    limit = settings["memory_bytes"][memory]
    if limit is None:
        where = f"memory free, {memory}"
    else:
        where = f"cgroup of {memory} ({format_bytes(limit)}), cold"
    machine_kb = settings["machine_read_ahead_kb"]
    if kb == "machine":
        kb = f"as it is, {machine_kb}" if machine_kb is not None else "as it is, unknown"
    return f"{where}; read-ahead {kb} KiB"


def _rows(name: str, side: dict[str, Any], memory: str, kb: str) -> list[tuple[str, ...]]:
    """One side: a row for each recall that it reaches, and one for what did not end well."""
    found = [run for run in side["runs"] if (run["memory"], run["read_ahead"]) == (memory, kb)]
    rows: list[tuple[str, ...]] = []
    for target in TARGETS:
        at = {run["mode"]: figures_at(side, run["mode"], memory, kb, target) for run in found}
        if any(at.values()):
            rows.append((name if not rows else "", f"{target:.2f}", *_cells(at)))
    if found and not rows and all(run["status"] == "done" for run in found):
        best = max(point["recall"] for run in found for point in run["points"])
        rows.append((name, f"reaches {best:.3f}"))
    for run in found:
        if run["status"] != "done":
            rows.append((name if not rows else "", f"{run['mode']}: {run['status']}: {run['why']}"))
    return rows


def _cells(at: dict[str, dict[str, Any] | None]) -> Iterator[str]:
    """At one recall: the figures of each mode; sizes are those of one client where it was run."""
    modes = [figures for figures in at.values() if figures]
    single = at.get("single") or {}
    yield _number(modes[0].get("recall_shifted"), "{:.3f}")
    for name in ("p50_seconds", "p95_seconds", "p99_seconds"):
        yield _number(single.get(name), _form(single, "{:.2f}"), 1000)
    for mode in ("single", "threads", "batch"):
        figures = at.get(mode) or {}
        yield _number(figures.get("queries_per_second"), _form(figures, "{:.0f}"))
    for name in ("private_bytes", "peak_cgroup_bytes", "read_bytes_per_query"):
        value = modes[0].get(name)
        yield "-" if value is None else format_bytes(value)


def _form(figures: dict[str, Any], form: str) -> str:
    """How numbers are written: marked where they are of a setting that reaches more."""
    return f">{form}" if figures.get("beyond") else form


def _number(value: float | None, form: str, times: float = 1) -> str:
    return "-" if value is None else form.format(value * times)
