"""Damages the files of an index one at a time, and sees what comes of it.

``tried`` runs in a child that was forked (``ooc.testing.forked``), so that one that dies is seen: it tells
which damage it is about to try, and then what came of it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

import ooc
from ooc.build.train import published_template
from ooc.index.layout import Layout
from ooc.mapping import private_peak_bytes
from ooc.types import AnyArray
from tests.verify.made import D, answers

__all__ = ["Damage", "damages", "tried"]

#: More private memory than this is absurd for an index of some kB.
MOST_BYTES = 1 << 30

#: A file, and the byte that is changed or where it is cut.
Damage = tuple[Path, int]


def damages(index: Path, what: str) -> list[Damage]:
    """All damages: a bit of each byte (``flip``), a pattern (a number) over each, or ``cut`` at blocks."""
    found: list[Damage] = []
    for path in sorted(index.rglob("*")):
        if not path.is_file() or path.name == "lock" or path.name.endswith(".report.json"):
            continue
        size = path.stat().st_size
        if what == "cut":
            odd = np.random.default_rng(size).integers(0, size, min(size, 16)).tolist()
            ends = [one for one in (1, 9, 127, 129, size - 1) if 0 <= one < size]
            found += [(path, one) for one in sorted({*range(0, size, 512), *odd, *ends})]
        else:
            found += [(path, one) for one in range(size)]
    return found


def damaged(data: bytes, at: int, what: str) -> bytes:
    """The bytes of a file with the damage."""
    if what == "cut":
        return data[:at]
    pattern = 1 << (at % 8) if what == "flip" else int(what)
    return data[:at] + bytes([data[at] ^ pattern]) + data[at + 1 :]


def outcome(index: Path, expected: list[AnyArray]) -> str:
    """What comes of an index as it lies there.

    ``quick`` or ``full``: the check finds it; ``harmless``: it answers as before; else what is wrong.
    """
    found = ""
    for full in (False, True):
        try:
            sound = ooc.verify(index, full=full, memory="256MiB")["sound"]
        except ooc.OocError:
            sound = False
        if not sound:
            found = "full" if full else "quick"
            break
    try:
        same = all(map(alike, answers(index), expected))
    except ooc.OocError as error:
        if not found:  # what nobody found must not be refused
            return f"refused, and not found: {error}"
        same = False
    with contextlib.suppress(ooc.IndexDirError, ooc.DataError):
        published_template(Layout.of(index), "l2").encode(np.ones((3, D), np.float32), spill=False)
    if private_peak_bytes() > MOST_BYTES:
        return "absurd memory"
    return found or ("harmless" if same else "other answers, and not found")


def alike(a: AnyArray, b: AnyArray) -> bool:
    """Whether answers are the same, to the bit; keys are no numbers."""
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def tried(index: Path, what: str, some: list[Damage], tell: Callable[[object], None]) -> None:
    """Try damages, each by itself; tells ``(number,)`` before, and ``(number, what came of it)`` after."""
    gc.freeze()  # what the process was forked with is not gone through again and again
    faiss.omp_set_num_threads(1)  # searches this small take longer by two
    expected = answers(index)
    for number, (path, at) in enumerate(some):
        data = path.read_bytes()
        tell((number,))
        path.write_bytes(damaged(data, at, what))
        try:
            came = outcome(index, expected)
        except Exception as error:
            came = f"unforeseen {type(error).__name__}: {error}"
        path.write_bytes(data)
        tell((number, came))
