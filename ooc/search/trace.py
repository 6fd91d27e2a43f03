"""What a search did: counts and times by stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ooc.errors import Stopped

if TYPE_CHECKING:
    import threading

__all__ = ["NOTHING", "Explanation", "Trace", "Until"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a search did. Reads are those asked of the disk ahead: none for what lay in memory anyway.

    Attributes
    ----------
    queries, k, nprobe, rerank : int
        What was searched, with the defaults filled in.
    lists : int
        Lists looked into, those of several queries counted for each.
    entries : int
        Entries in them.
    list_bytes : int
        Bytes of the lists looked into; lists that queries share count once.
    list_reads : int
        Reads asked for to bring them in, each of at most 128 KiB.
    candidates : int
        What the codes proposed, of all queries.
    rows : int
        Rows compared exactly; rows that queries share count once.
    row_bytes : int
        Their bytes.
    row_reads : int
        Reads asked for to bring them in.
    seconds : dict of str to float
        Time of each stage, in the order in which they began, and ``total``.
    """

    queries: int
    k: int
    nprobe: int
    rerank: int
    lists: int
    entries: int
    list_bytes: int
    list_reads: int
    candidates: int
    rows: int
    row_bytes: int
    row_reads: int
    seconds: dict[str, float]


class Trace:
    """Adds up counts and seconds of one search, and ends it where ``stop`` is set.

    Attributes
    ----------
    counts : dict of str to int
        By name of a field of ``Explanation``.
    seconds : dict of str to float
        By stage, in the order in which stages first began.
    """

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop
        self.counts = dict.fromkeys(
            ("lists", "entries", "list_bytes", "list_reads", "candidates", "rows", "row_bytes", "row_reads"),
            0,
        )
        self.seconds: dict[str, float] = {}

    def add(self, **counts: int) -> None:
        """Add to counts."""
        for name, count in counts.items():
            self.counts[name] += count

    def time(self, stage: str) -> contextlib.AbstractContextManager[None]:
        """Add the time of the block to a stage."""
        return self._time(stage)

    @property
    def stops(self) -> bool:
        """Whether it may end the search: then what takes long is done in pieces."""
        return self._stop is not None

    def pause(self) -> None:
        """A point at which the search may end: raises ``Stopped`` where it shall."""
        Stopped.raise_if(self._stop)

    @contextlib.contextmanager
    def _time(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


class _Nothing(Trace):
    """Keeps nothing: what a search that nobody asks about is given."""

    def __init__(self) -> None:
        self._stop = None

    def add(self, **counts: int) -> None:
        pass

    def time(self, stage: str) -> contextlib.AbstractContextManager[None]:
        return _NO_TIME


class Until(_Nothing):
    """Keeps nothing, and ends a search where ``stop`` is set."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop


_NO_TIME = contextlib.nullcontext()

#: For searches that nobody asks about.
NOTHING = _Nothing()
