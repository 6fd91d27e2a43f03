"""Sizes, counts and durations: from what people write to numbers, and back."""

from __future__ import annotations

import math
import re

from ooc.errors import ArgumentError

__all__ = [
    "DEFAULT_MEMORY",
    "GIB",
    "KIB",
    "MIB",
    "format_bytes",
    "format_count",
    "format_seconds",
    "parse_bytes",
]

#: The budget where none is named.
DEFAULT_MEMORY = "1GiB"

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*$", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(size: int | str) -> int:
    """Bytes from ``"512MiB"``, ``"1GB"``, ``"1g"`` or a number.

    ``MiB`` and the bare letter (``M``) are powers of 1024; ``MB`` is a power of 1000.

    Raises
    ------
    ArgumentError
        When the size is not understood or not positive.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise ArgumentError(
            f"a size must be a number of bytes or a string such as '512MiB', not {type(size).__name__}",
            kind="size",
        )
    if isinstance(size, int):
        value = float(size)
    else:
        match = _SIZE.match(size)
        if match is None:
            raise ArgumentError(
                f"{size!r} is not a size", kind="size", hint="Write it as in 512MiB, 1GiB or 2.5GB."
            )
        number, letter, binary, byte = match.groups()
        base = 1000 if byte and not binary else 1024
        value = float(number) * base ** _POWER[letter.lower()]
    if value < 1:
        raise ArgumentError(f"a size must be positive, not {size!r}", kind="size")
    return int(value)


def format_bytes(n: float) -> str:
    """``1536`` → ``"1.5 KiB"``: powers of 1024, three figures."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    value, power = float(n), 0
    while abs(value) >= 1000 and power < len(units) - 1:
        value, power = value / 1024, power + 1
    unit = units[power]
    if unit == "B" or abs(value) >= 100:
        return f"{value:.0f} {unit}"
    return f"{value:.1f} {unit}" if abs(value) >= 10 else f"{value:.2f} {unit}"


def format_count(n: float) -> str:
    """``1234567`` → ``"1 234 567"``: thin groups of three, as rows are counted."""
    return f"{n:,.0f}".replace(",", " ")


def format_seconds(seconds: float) -> str:
    """``75`` → ``"1:15"``; below a minute ``"12.3 s"``; unknown (inf, nan) → ``"-"``."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
