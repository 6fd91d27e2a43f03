"""The little drawing that the pages need: scales, axes, lines and bars as SVG.

Colours are classes, which the page's style gives their values in light and in dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from ooc.units import format_bytes

__all__ = [
    "COLOURS",
    "STYLE",
    "Axis",
    "bars",
    "bytes_axis",
    "columns",
    "document",
    "log_ticks",
    "recall_axis",
    "text",
    "time_axis",
]

#: Of everything that is drawn; ``--ink`` and the others are the page's.
STYLE = """\
svg{display:block;max-width:100%;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--soft)}
svg .strong{fill:var(--ink)}
svg .grid{stroke:var(--line);stroke-width:1}
svg .bar{fill:var(--s3)}
svg .ci{stroke-width:1;opacity:.45}
svg .curve{fill:none;stroke-width:2;stroke-linejoin:round}
svg .best{fill:none;stroke:var(--ink);stroke-width:1.5}
svg .s0{--c:var(--s0)} svg .s1{--c:var(--s1)} svg .s2{--c:var(--s2)} svg .s3{--c:var(--s3)}
svg .s4{--c:var(--s4)}
svg .stroke{stroke:var(--c)} svg .fill{fill:var(--c)}
svg .hit{fill:transparent}
"""

#: The values of the colours: for light, and for dark.
LIGHT = (
    "--paper:#fcfcfb;--card:#fff;--ink:#16181d;--soft:#565b66;--line:#e3e5e9;"
    "--s0:#a9cbf5;--s1:#72a9ec;--s2:#3f86dc;--s3:#2467b8;--s4:#123f7a"
)
DARK = (
    "--paper:#14161a;--card:#1b1e23;--ink:#f1f2f4;--soft:#a7acb7;--line:#31353d;"
    "--s0:#2b5c9c;--s1:#3d7fcf;--s2:#68a3e8;--s3:#9cc4f3;--s4:#d3e5fb"
)
COLOURS = f":root{{color-scheme:light dark;{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From values to places between ``begin`` and ``end``, in pixels; ``at`` makes values even."""

    at: Callable[[float], float]
    low: float
    high: float
    begin: float
    end: float
    ticks: Sequence[tuple[float, str]]

    def __call__(self, value: float) -> float:
        low, high = self.at(self.low), self.at(self.high)
        part = (self.at(value) - low) / (high - low) if high > low else 0.5
        return self.begin + min(max(part, 0.0), 1.0) * (self.end - self.begin)


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two numbers; where that is few, more, and of many, fewer."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps]
        ticks = [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) > 3:
            break
    return ticks


def time_axis(seconds: Sequence[float], begin: float, end: float) -> Axis:
    """Milliseconds, by their logarithm."""
    low, high = 1e3 * min(seconds) / 1.15, 1e3 * max(seconds) * 1.15
    ticks = [(tick, f"{tick:g}") for tick in log_ticks(low, high)]
    return Axis(at=math.log10, low=low, high=high, begin=begin, end=end, ticks=ticks)


def bytes_axis(sizes: Sequence[float], begin: float, end: float) -> Axis:
    """Bytes, by their logarithm; powers of two."""
    low, high = max(min(sizes), 1) / 1.15, max(*sizes, 1) * 1.15
    powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    ticks = [(2.0**i, _short(2.0**i)) for i in powers if i % (1 if len(powers) < 9 else 2) == 0]
    return Axis(at=math.log10, low=low, high=high, begin=begin, end=end, ticks=ticks)


def _short(size: float) -> str:
    """``"64 KiB"``, without the digits of ``"64.0 KiB"``."""
    number, unit = format_bytes(size).split()
    return f"{float(number):g} {unit}"


def recall_axis(recalls: Sequence[float], begin: float, end: float) -> Axis:
    """Recall by the logarithm of what is missed: .9, .99 and .999 are equally far apart."""
    missed = [1 - r for r in recalls if r < 1]
    least = min(missed, default=0.1) / 2  # where 1 is drawn

    def at(recall: float) -> float:
        return -math.log10(max(1 - recall, least))

    low = max(0.0, 1 - 1.3 * max(missed, default=0.5))
    ticks: list[tuple[float, str]] = [(1.0, "1")]
    shape = Axis(at=at, low=low, high=1.0, begin=begin, end=end, ticks=())
    known = (0.9999, 0.9995, 0.999, 0.998, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0)
    for recall in known:
        if recall >= low and 1 - recall > least and abs(shape(recall) - shape(ticks[-1][0])) >= 22:
            ticks.append((recall, f"{recall:g}"))
    return Axis(at=at, low=low, high=1.0, begin=begin, end=end, ticks=ticks)


def text(x: float, y: float, words: str, *, anchor: str = "start", cls: str = "") -> str:
    """A line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{cls}">{escape(words)}</text>'


def document(width: float, height: float, label: str, parts: Sequence[str], *, alone: bool = False) -> str:
    """The drawing; ``alone`` as a file of its own, with its style and a ground."""
    begin = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label={quoteattr(label)}>'
    )
    ground = f'<style>{COLOURS}{STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    return "\n".join([begin, *([ground] if alone else []), *parts, "</svg>"])


def columns(edges: Sequence[float], counts: Sequence[int], *, label: str, x_label: str) -> str:
    """A histogram."""
    width, height, left, right, top, bottom = 860, 230, 48, 12, 14, 44
    most, room = max(counts, default=1) or 1, height - top - bottom
    low, high = edges[0], max(edges[-1], edges[0] + 1)

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    for tick in sorted({0, most // 2, most}):
        y = height - bottom - tick / most * room
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(left - 6, y + 4, f"{tick:,}".replace(",", " "), anchor="end"))
    for begin, end, count in zip(edges, edges[1:], counts, strict=False):
        tall = count / most * room
        parts.append(
            f'<rect class="bar" x="{x(begin) + 1:.1f}" y="{height - bottom - tall:.1f}" '
            f'width="{max(x(end) - x(begin) - 2, 1):.1f}" height="{tall:.1f}" rx="2">'
            f"<title>{begin:.0f} to {end:.0f} rows: {count} lists</title></rect>"
        )
    for i in range(5):
        value = low + i / 4 * (high - low)
        anchor = ("start", "middle", "middle", "middle", "end")[i]
        parts.append(text(x(value), height - bottom + 17, f"{value:,.0f}".replace(",", " "), anchor=anchor))
    parts.append(text((left + width - right) / 2, height - 6, x_label, anchor="middle"))
    return document(width, height, label, parts)


def bars(rows: Sequence[tuple[str, float, str]], *, label: str) -> str:
    """``(name, value, words)`` as bars that lie one below the other."""
    width, step = 430, 26
    names = 10 + 7 * max((len(name) for name, _, _ in rows), default=1)
    room = width - names - 8 - 7 * max((len(words) for _, _, words in rows), default=1)
    most = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for i, (name, value, words) in enumerate(rows):
        y, long = i * step, max(value / most * room, 1)
        parts.append(text(names - 8, y + 17, name, anchor="end"))
        parts.append(f'<rect class="bar" x="{names:.1f}" y="{y + 5}" width="{long:.1f}" height="16" rx="2"/>')
        parts.append(text(names + long + 6, y + 17, words, cls="strong"))
    return document(width, step * len(rows) + 4, label, parts)
