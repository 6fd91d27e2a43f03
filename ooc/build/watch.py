"""Private memory while a build runs: looked at by a thread of its own, and freed memory given back.

Memory rises and falls between what is told of as progress: while centroids are moved, a shard is put in
order, a sketch is made. So a thread looks, often, and knows the most that each stage took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType

from ooc.mapping import private_bytes, release_free_memory, start_thread

__all__ = ["MemoryWatch"]

#: How often private memory is looked at.
_LOOK_SECONDS = 0.02
#: And how often freed memory is given back where a stage has come to so much of its share.
_RELEASE_SECONDS, _MUCH = 0.5, 0.875


class MemoryWatch:
    """Looks at private memory while a block runs, and another one later.

    Attributes
    ----------
    peaks : dict of str to int
        The most that was seen in each stage, bytes.
    shares : mapping of str to int
        What each stage may take. What threads free may stay with the C library, in the gaps between what they
        hold: it is given back where a stage comes near to that.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self.shares: Mapping[str, int] = {}
        self._stage, self._released = "plan", 0.0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> MemoryWatch:
        self._over.clear()
        self._thread = threading.Thread(target=self._work, name="ooc-memory", daemon=True)
        start_thread(self._thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def peak(self) -> int:
        """The most that was seen in any stage."""
        return max(self.peaks.values(), default=0)

    def begins(self, stage: str) -> None:
        """From now on it is this stage that takes the memory."""
        self.look()
        self._stage = stage

    def look(self, *, others: int = 0) -> int:
        """Look now; other processes take so much besides. The most so far of the stage at work."""
        private = private_bytes() + others
        with self._lock:
            most = self.peaks[self._stage] = max(self.peaks.get(self._stage, 0), private)
        return most

    def _work(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            private = private_bytes()
            with self._lock:
                self.peaks[self._stage] = max(self.peaks.get(self._stage, 0), private)
            share = self.shares.get(self._stage, 0)
            if share and private > _MUCH * share and time.monotonic() - self._released >= _RELEASE_SECONDS:
                self._released = time.monotonic()
                release_free_memory()
