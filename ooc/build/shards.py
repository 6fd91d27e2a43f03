"""Shards as they lie on disk: their records, their numbers, and which rows are in none yet.

The plan that a build began with cuts the rows into numbered shards. Several processes fill them, and
a process with a smaller budget cuts a numbered shard into pieces, each a shard of its own on disk;
what counts is that the rows are all there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ooc.durable import read_json
from ooc.errors import ArgumentError, IndexDirError
from ooc.index.layout import BuildLayout
from ooc.types import IntArray

__all__ = ["Numbered", "Shard", "format_numbers", "parse_numbers", "shards_done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What a shard's record says.

    ``row_checksums`` has one XXH3-128 for each 1024 rows that were copied, in order; ``scale_checksums``
    the same of their scales, where they have any; ``copy_loss`` the sums of their squared errors and of
    their squares, where the copy is not exact; ``fit`` for each block of rows the sum of squared distances
    of some of them to their centroids, and of how many. ``neighbours`` is the file of those of its rows that
    may be among the nearest of a witness.
    """

    path: Path
    start: int
    stop: int
    sizes: IntArray
    skipped: int
    first_skipped: int
    zeros: int
    checksums: list[str]
    row_checksums: list[str]
    scale_checksums: list[str]
    copy_loss: list[tuple[float, float]]
    fit: list[tuple[float, int]]

    @property
    def neighbours(self) -> Path:
        return self.path.with_suffix(".npz")

    @property
    def rows(self) -> int:
        """Rows in its lists, each counted once."""
        return self.stop - self.start - self.skipped

    @property
    def entries(self) -> int:
        """Entries of its lists: a row has one in each list that it is in."""
        return int(self.sizes.sum())


def shards_done(build: BuildLayout) -> list[Shard]:
    """The shards whose records are on disk, by their first row.

    A record whose file of lists is missing or of another size, or whose neighbours are missing, is taken
    for one that is not there.
    """
    found = []
    for path in sorted(build.shards.glob("*.json")):
        shard = _read(path)
        if shard is not None:
            found.append(shard)
    found.sort(key=lambda shard: shard.start)
    for one, next_ in itertools.pairwise(found):
        if next_.start < one.stop:
            raise IndexDirError(
                f"the shards {one.path} and {next_.path} overlap",
                kind="shards-overlap",
                hint=f"Remove {build.root} and run the build again.",
            )
    return found


def _read(path: Path) -> Shard | None:
    record = read_json(path, what="a shard's record")
    try:
        return _shard(path, record)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise IndexDirError(
            f"{path} is damaged: {error!r}",
            kind="shard-damaged",
            hint="Remove it and run the build again, which makes it anew.",
        ) from error


def _shard(path: Path, record: Mapping[str, Any]) -> Shard | None:
    lists = path.with_suffix(".ivfdata")
    if not lists.is_file() or lists.stat().st_size != record["bytes"]:
        return None
    if not lists.with_suffix(".npz").is_file():
        return None
    numbers = [record[name] for name in ("start", "stop", "skipped", "first_skipped", "zeros")]
    sizes = np.array(record["sizes"], np.int64)
    if any(type(one) is not int for one in numbers) or sizes.ndim != 1 or (sizes < 0).any():
        raise ValueError("its numbers")
    start, stop, skipped, first_skipped, zeros = numbers
    if not 0 <= start < stop or not 0 <= skipped <= stop - start:
        raise ValueError("its rows")
    return Shard(
        path=lists,
        start=start,
        stop=stop,
        sizes=sizes,
        skipped=skipped,
        first_skipped=first_skipped,
        zeros=zeros,
        checksums=record["checksums"],
        row_checksums=record["row_checksums"],
        # Shards that an earlier version filled have no copy that would need these.
        scale_checksums=record.get("scale_checksums", []),
        copy_loss=[(error, square) for error, square in record.get("copy_loss", [])],
        fit=[(total, count) for total, count in record.get("fit", [])],
    )


class Numbered:
    """The numbered shards of a build, and how much of each is on disk.

    Parameters
    ----------
    build : BuildLayout
        Where the records are.
    n, shard_rows : int
        Shard ``k`` is of the rows from ``k * shard_rows`` on; the last one ends at ``n``.
    """

    def __init__(self, build: BuildLayout, n: int, shard_rows: int) -> None:
        self._build = build
        self._n = n
        self._rows = shard_rows
        self._known: dict[str, tuple[int, int]] = {}
        self._spans: list[tuple[int, int]] = []
        self.count = -(-n // shard_rows)
        self.look()

    def look(self) -> None:
        """Look again at what is on disk. A record is read once: it never changes, it only goes."""
        names = {path.name: path for path in self._build.shards.glob("*.json")}
        known = {name: span for name, span in self._known.items() if name in names}
        for name in names.keys() - known.keys():
            shard = _read(names[name])
            if shard is not None:
                known[name] = (shard.start, shard.stop)
        self._known, self._spans = known, sorted(known.values())

    def range(self, number: int) -> tuple[int, int]:
        """First row of a numbered shard, and the one after its last."""
        return number * self._rows, min((number + 1) * self._rows, self._n)

    def gaps(self, number: int) -> list[tuple[int, int]]:
        """The rows of a numbered shard that are in no shard on disk yet, as ranges."""
        at, end = self.range(number)
        gaps = []
        for start, stop in self._spans:
            if stop <= at or start >= end:
                continue
            if start > at:
                gaps.append((at, start))
            at = stop
        return [*gaps, (at, end)] if at < end else gaps

    def missing(self, numbers: Iterable[int] | None = None) -> list[int]:
        """Those of the numbered shards (default: all) that are not whole on disk."""
        return [number for number in (range(self.count) if numbers is None else numbers) if self.gaps(number)]

    def rows_done(self, numbers: Iterable[int]) -> int:
        """Rows of these shards that are on disk."""
        return sum(
            stop - start - sum(last - first for first, last in self.gaps(number))
            for number in numbers
            for start, stop in [self.range(number)]
        )

    def chosen(self, numbers: Iterable[int] | None) -> list[int]:
        """The numbers, ascending, each once; all where there are none.

        Raises
        ------
        ArgumentError
            A number is of no shard.
        """
        if numbers is None:
            return list(range(self.count))
        chosen = sorted(set(numbers))
        for number in chosen:
            if not 0 <= number < self.count:
                raise ArgumentError(
                    f"there is no shard {number}: this build has {self.count}, numbered from 0",
                    kind="shards",
                )
        return chosen


def parse_numbers(text: str) -> list[int]:
    """Numbers from ``"3-7,9"``, ascending.

    Raises
    ------
    ArgumentError
        When the text is not understood.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise ArgumentError(
                f"{part!r} in {text!r} is no range of shards", kind="shards", hint="Write it as in 3-7,9."
            )
        numbers.update(range(first, last + 1))
    return sorted(numbers)


def format_numbers(numbers: Iterable[int]) -> str:
    """``"3-7,9"`` for ascending numbers."""
    return ",".join(f"{a}-{b}" if b > a else f"{a}" for a, b in _runs(numbers))


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ((first, last) for first, last in runs)
