"""A terminal good enough to see what a person would: the screen that escape codes leave."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

from .process import command, environment

_CODE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


class Screen:
    """Follows text, ``\\r``, ``\\n``, cursor up, clear below, and whether the cursor shows.

    Lines that are too wide are an error: the display must not make them.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0
        self.cursor = True

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            code = _CODE.match(text, at)
            if code is not None:
                self._control(code[1], code[2], code[3])
                at = code.end()
                continue
            self._put(text[at])
            at += 1

    def _control(self, private: str, numbers: str, letter: str) -> None:
        if private:
            if numbers == "25":
                self.cursor = letter == "h"
        elif letter == "A":
            assert int(numbers) <= self.row, "moved above the first line"
            self.row -= int(numbers)
        elif letter == "J":
            del self.lines[self.row + 1 :]
            self.lines[self.row] = self.lines[self.row][: self.column]
        else:
            assert letter == "m", f"unknown code {letter}"

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
            while len(self.lines) <= self.row:
                self.lines.append("")
        else:
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1
            assert self.column <= self.columns, f"wider than the terminal: {self.lines[self.row]!r}"

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip()


class Terminal:
    """A process whose stderr (and stdin) is a terminal; its stdout goes to a file."""

    def __init__(self, *args: str, cwd: Path, columns: int = 80, rows: int = 24, **more: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._out = (cwd / "stdout").open("w+")
        self.screen = Screen(columns)
        self.raw = ""
        self._held = b""
        self.process = subprocess.Popen(
            command(*args), cwd=cwd, env={**environment(), **more},
            stdin=slave, stdout=self._out, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)

    def read_until(self, enough: Callable[[Screen], bool], *, seconds: float = 60) -> None:
        """Follow the screen until it shows something, or fail."""
        end = time.monotonic() + seconds
        while not enough(self.screen):
            assert time.monotonic() < end, f"never seen; the screen is\n{self.screen.text}"
            assert self._step(), f"the process ended; the screen is\n{self.screen.text}"

    def finish(self, *, seconds: float = 60) -> int:
        """Follow the screen to the end; the exit status."""
        end = time.monotonic() + seconds
        while self._step():
            assert time.monotonic() < end, f"never ended; the screen is\n{self.screen.text}"
        return self.process.wait(10)

    @property
    def stdout(self) -> str:
        self._out.seek(0)
        return self._out.read()

    def _step(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 0.5)
        if not ready:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # the other side is closed
            return False
        if not data:
            return False
        whole = self._held + data
        text = whole.decode(errors="ignore") if self._held else whole.decode("utf-8", "ignore")
        # A character may be cut between two reads.
        cut = len(whole) - len(text.encode())
        self._held = whole[len(whole) - cut :] if cut else b""
        self.raw += text
        self.screen.feed(text)
        return True

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        self._out.close()
