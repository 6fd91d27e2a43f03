"""Counts of what tests did to an index, summed up over all of them and printed at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

__all__ = ["counted", "pytest_terminal_summary"]

_MARK = "counted: "


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """``counted("kills", 3)``: so many more of these."""

    def count(what: str, times: int = 1) -> None:
        record_property(_MARK + what, times)

    return count


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the sums: properties of tests come from every process that ran some."""
    sums: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, times in getattr(report, "user_properties", ()):
                if name.startswith(_MARK):
                    sums[name.removeprefix(_MARK)] += int(times)
    if sums:
        terminalreporter.section("counted")
        for name in sorted(sums):
            terminalreporter.write_line(f"{sums[name]:>9}  {name}")
