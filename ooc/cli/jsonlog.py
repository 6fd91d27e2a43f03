"""Events as JSON lines, for programs that watch: one object a line."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any, TextIO

from ooc import events

__all__ = ["JsonLog"]


class JsonLog:
    """An observer that writes each event as a line of JSON, flushed at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: events.Event) -> None:
        self.write(events.as_record(event))

    def stopping(self, message: str) -> None:
        """A note that the operation was asked to stop."""
        self(events.Note(message=message, kind="stopping", level="warning"))

    def error(self, record: dict[str, Any]) -> None:
        """The last line of an operation that did not finish."""
        self.write({"event": "error", "time": time.time(), **record})

    def write(self, record: dict[str, Any]) -> None:
        """One line."""
        # A reader that went away must not end the work.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(json.dumps(record, default=str) + "\n")
            self._stream.flush()
