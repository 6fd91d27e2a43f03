"""Damages the files of an index one at a time, and sees what comes of it.

Run as a process, so that one that dies is seen: `python -m tests.verify.flips INDEX OUT WHAT FIRST STEP`. Of
every piece of damage a line is added to OUT before it is tried, and another with what came of it. WHAT is
``flip`` or ``cut``, or the number of a byte pattern; damage number FIRST is the first that is tried, and every
STEP-th after it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import ooc
from ooc.build.train import published_template
from ooc.index.layout import Layout
from ooc.mapping import private_peak_bytes
from tests.verify.made import answers

#: More private memory than this is absurd for an index of some kB.
MOST_BYTES = 1 << 30


def damages(index: Path, what: str) -> Iterator[tuple[Path, int]]:
    """Files, and bytes of them that are changed, or where they are cut."""
    for path in sorted(index.rglob("*")):
        if not path.is_file() or path.name == "lock" or path.name.endswith(".report.json"):
            continue
        size = path.stat().st_size
        if what == "cut":
            odd = np.random.default_rng(size).integers(0, size, min(size, 16)).tolist()
            at = sorted(
                {*range(0, size, 512), *odd, *(s for s in (1, 9, 127, 129, size - 1) if 0 <= s < size)}
            )
            yield from ((path, one) for one in at)
        else:
            yield from ((path, one) for one in range(size))


def damaged(data: bytes, at: int, what: str) -> bytes:
    """The bytes of a file with the damage."""
    if what == "cut":
        return data[:at]
    pattern = 1 << (at % 8) if what == "flip" else int(what)
    return data[:at] + bytes([data[at] ^ pattern]) + data[at + 1 :]


def outcome(index: Path, expected: list[np.ndarray]) -> str:
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
        same = all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(answers(index), expected, strict=True)
        )
    except ooc.OocError:
        same = not found  # refused: what nobody found must not be refused
        if same:
            return "refused, and not found"
    with contextlib.suppress(ooc.IndexDirError, ooc.DataError):
        published_template(Layout.of(index), "l2").encode(np.ones((3, 8), np.float32), spill=False)
    if private_peak_bytes() > MOST_BYTES:
        return "absurd memory"
    return found or ("harmless" if same else "other answers, and not found")


def main() -> None:
    index, out, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    first, step = int(sys.argv[4]), int(sys.argv[5])
    warnings.simplefilter("ignore")
    expected = answers(index)
    with out.open("a") as file:
        for number, (path, at) in enumerate(list(damages(index, what))):
            if number < first or (number - first) % step:
                continue
            name = path.relative_to(index)
            print(f"try\t{number}\t{name}\t{at}", file=file, flush=True)
            data = path.read_bytes()
            path.write_bytes(damaged(data, at, what))
            try:
                came = outcome(index, expected)
            except Exception as error:
                came = f"unforeseen {type(error).__name__}: {error}".replace("\n", " ").replace("\t", " ")
            finally:
                path.write_bytes(data)
            print(f"came\t{number}\t{name}\t{at}\t{came}", file=file, flush=True)


if __name__ == "__main__":
    main()
