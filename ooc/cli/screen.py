"""A block of lines at the bottom of a terminal that is painted again in its place.

Unlike rich's Live it counts how many rows the old lines take at the terminal's present width, so
that making the window narrower leaves no torn lines behind; and what others write to the stream
meanwhile goes above the block.
"""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

__all__ = ["SHOW_CURSOR", "Screen"]

_HIDE_CURSOR = "\x1b[?25l"
SHOW_CURSOR = "\x1b[?25h"
_CLEAR_BELOW = "\x1b[J"
#: Terminals that know these show a frame whole; the others pass them over.
_FRAME, _FRAME_END = "\x1b[?2026h", "\x1b[?2026l"


class Screen:
    """A repainted block on a terminal. Safe from several threads."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, force_terminal=True, highlight=False, soft_wrap=True)
        self._lock = threading.RLock()
        self._widths: list[int] = []

    @property
    def unicode(self) -> bool:
        """Whether the stream can show more than ASCII."""
        return (self._stream.encoding or "").lower().startswith("utf")

    def size(self) -> tuple[int, int]:
        """Columns and rows of the terminal at this moment."""
        size = self._console.size
        return size.width, size.height

    def paint(self, lines: Sequence[Text]) -> None:
        """Show these lines in place of those of last time; what does not fit the height is left out."""
        with self._lock:
            _, height = self.size()
            shown = list(lines) if len(lines) < height else list(lines)[: max(height - 1, 1)]
            text = self._back() + self._rendered(shown)
            self._widths = [line.cell_len for line in shown]
            self._write(f"{_FRAME}{text}{_FRAME_END}")

    def clear(self) -> None:
        """Take the block away."""
        with self._lock:
            self._write(self._back())
            self._widths = []

    def _rendered(self, lines: Sequence[Text]) -> str:
        with self._console.capture() as capture:
            for line in lines:
                self._console.print(line, no_wrap=True, crop=False)
        return capture.get()

    def _back(self) -> str:
        """To the block's first column and row, with all below cleared."""
        if not self._widths:
            return ""
        columns = max(self.size()[0], 1)
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        return f"\r\x1b[{rows}A{_CLEAR_BELOW}"

    def _write(self, text: str) -> None:
        # A terminal that went away (a closed window) must not end the work.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The cursor hidden, and ``sys.stderr`` led above the block where it is this stream."""
        before, above = sys.stderr, _Above(self)
        if before is self._stream:
            sys.stderr = above
        self._write(_HIDE_CURSOR)
        try:
            yield
        finally:
            self._write(SHOW_CURSOR + above.rest())
            sys.stderr = before

    def above(self, text: str) -> None:
        """Write whole lines above the block; it comes back with the next ``paint``."""
        with self._lock:
            self._write(self._back() + text)
            self._widths = []


class _Above(io.TextIOBase):
    """What stands in for ``sys.stderr`` while a block is shown: keeps a line until it is whole."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._held = ""

    def write(self, text: str) -> int:
        whole, newline, self._held = (self._held + text).rpartition("\n")
        if newline:
            self._screen.above(whole + newline)
        return len(text)

    def rest(self) -> str:
        """What was written without an end of line."""
        held, self._held = self._held, ""
        return held

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._screen._stream.fileno()
