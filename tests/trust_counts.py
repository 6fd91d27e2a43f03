"""How many faults, flips and kills the suites injected: what ``tools/test --trust`` prints at its end.

``tools/test`` names a directory in ``OOC_TRUST_COUNTS``; every process of every suite adds lines to a file of
its own there. Without the variable nothing is kept.

    python -m tests.trust_counts DIRECTORY     prints the sums
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

__all__ = ["add", "sums"]

_VARIABLE = "OOC_TRUST_COUNTS"


def add(what: str, times: int = 1) -> None:
    """So many more of something were injected or seen, as in ``add("bytes flipped", 512)``."""
    directory = os.environ.get(_VARIABLE)
    if directory:
        with (Path(directory) / f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{times}\t{what}\n")


def sums(directory: Path) -> Counter[str]:
    """What all processes added, by what it was of."""
    found: Counter[str] = Counter()
    for path in sorted(directory.glob("*.txt")):
        for line in path.read_text().splitlines():
            times, _, what = line.partition("\t")
            found[what] += int(times)
    return found


def main() -> None:
    for what, times in sorted(sums(Path(sys.argv[1])).items()):
        print(f"{times:>12,}  {what}".replace(",", " "))


if __name__ == "__main__":
    main()
