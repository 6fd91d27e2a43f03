"""One page that shows an evaluation: it holds its style and drawings, and loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ooc.evaluation.plot import curve
from ooc.evaluation.svg import COLOURS, STYLE, bars, columns
from ooc.units import format_bytes, format_count, format_seconds

__all__ = ["TARGETS", "cheapest", "page"]

#: Recalls for which the page says what it takes.
TARGETS = (0.8, 0.9, 0.95, 0.99)

_STAGES = ("plan", "sample", "train", "fill", "merge", "calibrate", "publish")

_STYLE = """\
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.5rem;margin:0;overflow-wrap:anywhere} h2{font-size:1.05rem;margin:0 0 .75rem}
p{margin:.25rem 0;color:var(--soft)} a{color:var(--s3)}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:1.1rem 1.25rem;margin-top:1.1rem}
.two{display:grid;margin-top:1.1rem;grid-template-columns:repeat(auto-fit,minmax(22rem,1fr));gap:1.1rem}
.two section{min-width:0;margin:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.85rem}
th{font-weight:500;color:var(--soft);text-align:right;vertical-align:bottom}
td,th{padding:.25rem .45rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0} tr.best td{font-weight:600}
td:first-child,th:first-child{padding-left:0} td:last-child,th:last-child{padding-right:0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.2rem;margin:0;font-size:.9rem}
dt{color:var(--soft)} dd{margin:0;overflow-wrap:anywhere}
"""


def cheapest(points: Iterable[Mapping[str, Any]], target: float) -> Mapping[str, Any] | None:
    """The setting that reads least, of those whose recall is above ``target`` but for the odds."""
    meets = [point for point in points if point["recall_low"] >= target]
    return min(meets, key=lambda p: (p["list_bytes"] + p["row_bytes"], -p["recall"]), default=None)


def page(figures: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """The page as HTML.

    Parameters
    ----------
    figures : mapping
        What ``ooc.evaluate`` returns.
    info : mapping
        What ``Index.info`` returns.
    """
    sizes = info["list_sizes"]
    queries = figures["queries"]
    which = "rows drawn from the store" if queries["drawn"] else "given queries"
    subtitle = (
        f"{format_count(info['rows'])} rows of {info['d']} dimensions, {info['metric']}, {info['factory']}; "
        f"{format_count(queries['count'])} {which}"
    )
    hist = columns(
        sizes["histogram"]["edges"],
        sizes["histogram"]["counts"],
        label="lists by size",
        x_label="rows in a list",
    )
    title = escape(Path(figures["index"]).name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}: recall and time</title>
<style>{COLOURS}
{_STYLE}{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{escape(subtitle)}</p>
<section><h2>Recall and time</h2>{curve(figures, alone=False)}
<p>Strokes are intervals of {figures["confidence"]:.0%} confidence. One query at a time, pages of the index
in the cache as a batch of the same queries left them.</p></section>
<section><h2>What a recall takes</h2><div class="scroll">{_targets(figures)}</div>
<p>The setting that reads the fewest bytes, of those whose interval is above the recall.</p></section>
<section><h2>Recall and bytes</h2>{curve(figures, "bytes", alone=False)}
<p>The same on any machine.</p></section>
<section><h2>Sizes of lists</h2>{hist}
<p>mean {sizes["mean"]:.4g}, met by a query {sizes["weighted_mean"]:.4g}, empty {sizes["empty"]}</p></section>
<div class="two">
<section><h2>Bytes by part</h2>{_bytes(info)}</section>
{_stages(info)}</div>
<section><h2>Settings</h2>{_settings(figures, info)}</section>
<section><h2>All that was measured</h2><div class="scroll">{_points(figures)}</div></section>
</main>
</body>
</html>
"""


def _table(head: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = [
        f"<tr{' class=best' if best else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row, best in rows
    ]
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _targets(figures: Mapping[str, Any]) -> str:
    head = ("recall", "nprobe", "candidates", "measured", "median ms", "p99 ms", "lists read", "rows read")
    rows: list[tuple[Sequence[str], bool]] = []
    for target in TARGETS:
        point = cheapest(figures["points"], target)
        cells = ("not reached", *[""] * 6) if point is None else _cells(point)
        rows.append(((f"{target:g}", *cells), False))
    return _table(head, rows)


def _cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    times = point["latency_seconds"]
    return (
        format_count(point["nprobe"]),
        format_count(point["candidates"]),
        f"{point['recall']:.4f}",
        f"{1e3 * times['p50']:.2f}",
        f"{1e3 * times['p99']:.2f}",
        format_bytes(point["list_bytes"]),
        format_bytes(point["row_bytes"]),
    )


def _points(figures: Mapping[str, Any]) -> str:
    head = (
        "nprobe", "candidates", f"recall@{figures['k']}", "interval", "median ms", "p95 ms", "p99 ms",
        "batch, q/s", "lists read", "rows read",
    )  # fmt: skip
    rows = []
    for point in figures["points"]:
        times = point["latency_seconds"]
        cells = (
            format_count(point["nprobe"]),
            format_count(point["candidates"]),
            f"{point['recall']:.4f}",
            f"{point['recall_low']:.4f} – {point['recall_high']:.4f}",
            *(f"{1e3 * times[name]:.2f}" for name in ("p50", "p95", "p99")),
            format_count(point["queries_per_second"]),
            format_bytes(point["list_bytes"]),
            format_bytes(point["row_bytes"]),
        )
        rows.append((cells, bool(point["best"])))
    return _table(head, rows)


def _bytes(info: Mapping[str, Any]) -> str:
    parts = {f"template/{name}": size for name, size in info["template_bytes"].items()}
    for segment in info["segments"]:
        parts |= {f"{segment['name']}/{name}": size for name, size in segment["bytes"].items()}
    most = sorted(parts.items(), key=lambda part: -part[1])
    return bars([(name, size, format_bytes(size)) for name, size in most], label="bytes by part")


def _stages(info: Mapping[str, Any]) -> str:
    report = info["report"]
    if report is None:
        return ""
    stages = report["stages"]
    rows = [
        (name, float(stages[name]["seconds"]), format_seconds(stages[name]["seconds"]))
        for name in _STAGES
        if name in stages
    ]
    return (
        f"<section><h2>Time of the build</h2>{bars(rows, label='time by stage')}"
        f"<p>{format_seconds(report['seconds'])} in all, {format_bytes(report['peak_private_bytes'])} of "
        "private memory at most</p></section>\n"
    )


def _settings(figures: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    plan, queries = info["plan"], figures["queries"]
    drawn = f"drawn with seed {queries['seed']}, each left out of its own answer"
    rows = [
        ("index", figures["index"]),
        ("generation", str(figures["generation"])),
        ("store", info["store"]["uri"] or "array in memory"),
        ("code", f"{info['factory']}, {info['code_size']} bytes a row"),
        ("lists", format_count(info["nlist"]) + (", each row in two" if info["lists_per_row"] == 2 else "")),
        ("own rows", plan.get("copy_dtype", "store") if plan["copy_vectors"] else "none"),
        ("search default", f"nprobe {info['defaults']['nprobe']}, rerank {info['defaults']['rerank']}"),
        ("queries", f"{format_count(queries['count'])}, {drawn if queries['drawn'] else queries['store']}"),
        ("true neighbours", figures["ground_truth"] or "computed"),
        (
            "ties",
            "a row as near as the last true one counts" if figures["ties"] == "distances" else "by id alone",
        ),
    ]
    versions = (info["report"] or {}).get("versions", {})
    if versions:
        rows.append(("built with", ", ".join(f"{name} {version}" for name, version in versions.items())))
    return "<dl>" + "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in rows) + "</dl>"
