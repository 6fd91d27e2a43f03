"""Aligned text for results: plain everywhere, headings bold on a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence

__all__ = ["aligned", "bars", "heading", "pairs", "print_lines", "terminal_width"]

_INDENT = "  "


def terminal_width() -> int:
    """Columns of stdout; 100 where it is no terminal."""
    return shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100


def heading(text: str) -> str:
    """A heading line."""
    styled = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[1m{text}\x1b[0m" if styled else text


def pairs(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Names and values in two columns."""
    return aligned([(name, value) for name, value in rows], right=())


def aligned(rows: Sequence[Sequence[str]], *, right: Iterable[int]) -> list[str]:
    """Rows of equal length as columns, two blanks apart; ``right`` are aligned at their ends."""
    if not rows:
        return []
    to_right = set(right)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        (
            _INDENT
            + "  ".join(
                cell.rjust(width) if i in to_right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        ).rstrip()
        for row in rows
    ]


def bars(rows: Sequence[tuple[str, float, str]], *, width: int) -> list[str]:
    """``(label, value, text)`` as horizontal bars within ``width`` columns."""
    most = max((value for _, value, _ in rows), default=0) or 1
    label_width = max(len(label) for label, _, _ in rows)
    text_width = max(len(text) for _, _, text in rows)
    room = max(min(width - label_width - text_width - 6, 50), 5)
    block = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    return [
        f"{_INDENT}{label:>{label_width}}  {text:>{text_width}}  "
        f"{block * (max(round(value / most * room), 1) if value else 0)}".rstrip()
        for label, value, text in rows
    ]


def print_lines(lines: Iterable[str]) -> None:
    """To stdout. What its encoding lacks is replaced, not an error."""
    encoding = sys.stdout.encoding or "utf-8"
    for line in lines:
        print(line.encode(encoding, "replace").decode(encoding))
