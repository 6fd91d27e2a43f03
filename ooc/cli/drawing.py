"""A snapshot of an operation as lines: coloured ones for a terminal, plain ones for a log."""

from __future__ import annotations

import time

from rich.text import Text

from ooc.cli.tracker import Snapshot, StageView
from ooc.units import format_bytes, format_count, format_seconds

__all__ = ["clock", "draw", "ended_line", "log_line", "started_line"]

_GLYPHS = {"waiting": "·", "running": "▸", "done": "✓", "stopped": "■"}
_ASCII_GLYPHS = {"waiting": ".", "running": ">", "done": "+", "stopped": "x"}
_STYLES = {"waiting": "dim", "running": "bold", "done": "", "stopped": "yellow"}
_GLYPH_STYLES = {"waiting": "dim", "running": "cyan", "done": "green", "stopped": "yellow"}

_BAR_MOST = 48
_WIDTH_MOST = 96

#: The figures of a stage that are shown when it is done, and what they count.
_FIGURES = {
    "rows": "rows",
    "queries": "queries",
    "nlist": "lists",
    "shards": "shards",
    "skipped_rows": "left out",
    "zero_rows": "zero rows",
}

#: From this part of the budget on the memory bar warns, and alarms.
_NEAR = 0.9


def draw(snapshot: Snapshot, width: int, *, unicode: bool = True) -> list[Text]:
    """Lines of at most ``width`` columns: title, a line a stage, memory, notes."""
    width = min(width, _WIDTH_MOST)
    lines = [_title(snapshot, width)]
    name_width = max(len(name) for name in ("memory", *(stage.name for stage in snapshot.stages)))
    for stage in snapshot.stages:
        lines += _stage(stage, name_width, width, unicode=unicode)
    if snapshot.private_bytes:
        lines.append(_memory(snapshot, name_width, width, unicode=unicode))
    for note in snapshot.notes[-6:]:
        style = "yellow" if note.level == "warning" else "dim"
        line = Text("  ! " if note.level == "warning" else "    ", style=style)
        lines += [
            Text(" " * (4 if i else 0)).append_text(part)
            for i, part in enumerate(_wrapped(line.append(note.message), width))
        ]
    return [_cut(line, width) for line in lines]


def log_line(snapshot: Snapshot) -> str:
    """One line about the running stage, for a log."""
    stage = snapshot.running
    if stage is None:
        return f"{snapshot.title} {format_seconds(snapshot.seconds)}"
    parts = [f"{stage.name:<7} {stage.fraction:4.0%} {amount(stage)}"]
    if speed := _speed(stage):
        parts.append(" ".join(speed))
    if stage.left_seconds is not None:
        whole = snapshot.left_seconds
        parts.append(f"ETA {_clockwise(stage.left_seconds)}")
        parts[-1] += f", of all {_clockwise(whole)}" if whole is not None else ""
    if snapshot.private_bytes:
        parts.append(f"memory {_memory_text(snapshot)}, peak {format_bytes(snapshot.peak_bytes)}")
    return "  ".join(parts)


def started_line(stage: StageView) -> str:
    """One line about a stage that begins, for a log."""
    if stage.total <= 1:
        return f"{stage.name:<7} started"
    before = f" ({stage.fraction:.0%} done before)" if stage.done else ""
    total = (
        format_bytes(stage.total) if stage.unit == "bytes" else f"{format_count(stage.total)} {stage.unit}"
    )
    return f"{stage.name:<7} started  {total}{before}"


def ended_line(stage: StageView) -> str:
    """One line about a stage that is over, for a log."""
    parts = [f"{stage.name:<7} done in {format_seconds(stage.seconds)}"]
    if text := figures(stage):
        parts.append(text)
    return "  ".join(parts)


def clock() -> str:
    """The time of day, as log lines begin."""
    return time.strftime("%H:%M:%S")


def amount(stage: StageView) -> str:
    """``"4 100 000/10 000 000 rows"``."""
    if stage.unit == "bytes":
        return f"{format_bytes(stage.done)}/{format_bytes(stage.total)}"
    return f"{format_count(stage.done)}/{format_count(stage.total)} {stage.unit}"


def figures(stage: StageView) -> str:
    """What a finished stage has to tell: the counts among its figures, else its amount."""
    told = [
        f"{format_count(count)} {what.removesuffix('s') if count == 1 else what}"
        for key, what in _FIGURES.items()
        if isinstance(count := stage.figures.get(key), int) and count
    ]
    if told:
        return ", ".join(told)
    if stage.unit == "bytes":
        return format_bytes(stage.total) if stage.total else ""
    return f"{format_count(stage.total)} {stage.unit}" if stage.total > 1 else ""


def _title(snapshot: Snapshot, width: int) -> Text:
    if snapshot.state == "running":
        left_text = f"about {_clockwise(snapshot.left_seconds or 0)} left"
        right = f"{_clockwise(snapshot.seconds)} gone"
        if snapshot.left_seconds is not None:
            right = f"{right}, {left_text}" if width >= 60 else left_text
    else:
        word = "done in" if snapshot.state == "finished" else f"{snapshot.state} after"
        right = f"{word} {format_seconds(snapshot.seconds)}"
    left = Text(snapshot.title, style="bold")
    left.truncate(max(width - len(right) - 2, 8), overflow="ellipsis")
    return _spread(left, Text(right, style="dim" if snapshot.state == "running" else ""), width)


def _stage(stage: StageView, name_width: int, width: int, *, unicode: bool) -> list[Text]:
    glyph = (_GLYPHS if unicode else _ASCII_GLYPHS)[stage.state]
    left = Text("  ").append(glyph, _GLYPH_STYLES[stage.state])
    left.append(f" {stage.name:<{name_width}}", _STYLES[stage.state])
    if stage.state == "waiting" or (stage.state != "done" and stage.total <= 1):
        return [left]
    if stage.state == "done":
        left.append("  ").append(figures(stage), "dim")
        right = Text(format_seconds(stage.seconds) if stage.seconds else "")
        left.truncate(max(width - len(right) - 2, 0), overflow="ellipsis")
        return [_spread(left, right, width)]
    right = Text(f"{stage.fraction:4.0%}")
    if stage.state == "running" and width >= 48:
        left_text = "" if stage.left_seconds is None else f"{_clockwise(stage.left_seconds)} left"
        right.append(f"{left_text:>14}", "dim")
    room = min(width - len(left) - len(right) - 4, _BAR_MOST)
    if room >= 8:
        left.append("  ").append_text(bar(stage.fraction, room, "cyan", unicode=unicode))
    speed = _speed(stage) if stage.state == "running" else []
    detail = Text(" " * (name_width + 6), style="dim")
    detail.append(amount(stage))
    for part in speed:
        if len(detail) + len(part) + 3 <= width:
            detail.append(f"  {part}")
    return [_spread(left, right, min(width, len(left) + len(right) + 2)), detail]


def _memory(snapshot: Snapshot, name_width: int, width: int, *, unicode: bool) -> Text:
    line = Text(f"    {'memory':<{name_width}}  ")
    text = _memory_text(snapshot)
    peak = f", peak {format_bytes(snapshot.peak_bytes)}"
    if snapshot.peak_bytes and len(line) + len(text) + len(peak) <= width:
        text += peak
    if not snapshot.memory_bytes:
        return line.append(text, "dim")
    part = snapshot.private_bytes / snapshot.memory_bytes
    style = "red" if part > 1 else "yellow" if part > _NEAR else "green"
    room = min(width - len(line) - len(text) - 2, 20)
    if room >= 6:
        line.append_text(bar(min(part, 1.0), room, style, unicode=unicode)).append("  ")
    return line.append(text, style if part > _NEAR else "dim")


def _memory_text(snapshot: Snapshot) -> str:
    text = format_bytes(snapshot.private_bytes)
    return f"{text} of {format_bytes(snapshot.memory_bytes)}" if snapshot.memory_bytes else text


def bar(fraction: float, width: int, style: str, *, unicode: bool = True) -> Text:
    """A bar that can be read without colour too."""
    full, rest = ("━", "─") if unicode else ("#", "-")
    cells = round(fraction * width)
    return Text(full * cells, style).append(rest * (width - cells), "dim")


def _speed(stage: StageView) -> list[str]:
    parts = []
    if stage.rate is not None and stage.unit != "bytes":
        parts.append(f"{format_count(_three_figures(stage.rate))} {stage.unit}/s")
    if stage.bytes_rate:
        megabytes = _three_figures(stage.bytes_rate / 1e6)
        parts.append(f"{format_count(megabytes) if megabytes >= 100 else f'{megabytes:.3g}'} MB/s")
    return parts


def _three_figures(value: float) -> float:
    """Rounded, so that the last digits of a rate do not flicker."""
    return float(f"{value:.3g}")


def _clockwise(seconds: float) -> str:
    """Whole seconds, as on a clock: what changes four times a second is not calm."""
    whole = round(seconds)
    return format_seconds(whole) if whole >= 60 else f"{whole} s"


def _spread(left: Text, right: Text, width: int) -> Text:
    return left.append(" " * max(width - left.cell_len - right.cell_len, 1)).append_text(right)


def _wrapped(text: Text, width: int) -> list[Text]:
    from rich.console import Console

    return list(text.wrap(Console(width=max(width - 4, 16)), max(width - 4, 16)))[:4]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line
