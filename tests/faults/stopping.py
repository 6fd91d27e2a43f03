"""Commands that are sent signals at any moment: how long each takes to end, and what it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

import ooc
from tests.cli.process import environment
from tests.helpers import embeddings

__all__ = ["COMMANDS", "Command", "Ended", "Stopping", "make_place"]

#: `ooc`; SIGUSR2 makes it tell where its threads are, which says why an end is late.
_OOC = """
import faulthandler, signal, sys
faulthandler.register(signal.SIGUSR2, all_threads=True)
from ooc.cli.main import main
sys.exit(main())
"""

#: When a process that was sent a signal is asked where it is, and when it is given up.
_LATE_SECONDS, _NEVER_SECONDS = 0.8, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command, the directory that it changes or makes, its beginning, and what comes after it."""

    args: tuple[str, ...]
    makes: str = ""
    begins: str = ""
    then: tuple[str, ...] = ()
    #: When it has made it, to run it again is refused.
    once: bool = False


#: All that may take long.
COMMANDS = {
    "plan": Command(args=("plan", "x.npy")),
    "build": Command(args=("build", "x.npy", "new"), makes="new"),
    "build keyed copies": Command(
        args=("build", "x.npy", "new", "--keys", "keys.npy", "--copy-dtype", "int8", "--spill", "on"),
        makes="new",
    ),
    "build workers": Command(
        args=("build", "x.npy", "new", "--workers", "2", "--shard-rows", "32768"), makes="new"
    ),
    "train": Command(args=("train", "x.npy", "new"), makes="new"),
    "train quantizers": Command(
        args=("train", "x.npy", "new", "--factory", "IVF256_HNSW32,PQ32"), makes="new"
    ),
    "fill": Command(
        args=("fill", "x.npy", "new"), makes="new", begins="trained", then=("merge", "x.npy", "new")
    ),
    "merge": Command(args=("merge", "x.npy", "new"), makes="new", begins="filled"),
    "append": Command(args=("append", "new", "more.npy"), makes="new", begins="one"),
    "upsert": Command(args=("upsert", "new", "ids.npy", "more.npy"), makes="new", begins="one"),
    "compact": Command(args=("compact", "new"), makes="new", begins="two"),
    "compact retrain": Command(args=("compact", "new", "--retrain"), makes="new", begins="two"),
    "convert zarr": Command(
        args=("convert", "x.npy", "new.zarr", "--compression", "zstd", "--chunk-rows", "2000"),
        makes="new.zarr",
    ),
    "convert hdf5": Command(args=("convert", "x.npy", "new.h5", "--compression", "gzip"), makes="new.h5"),
    "convert parquet": Command(args=("convert", "x.npy", "new.parquet"), makes="new.parquet"),
    "convert npy": Command(args=("convert", "x.npy", "new.npy", "--dtype", "float16"), makes="new.npy"),
    "exact": Command(args=("exact", "x.npy", "q.npy", "--out", "new.h5"), makes="new.h5"),
    "eval": Command(args=("eval", "one", "--html", "new.html"), makes="new.html"),
    "eval update": Command(args=("eval", "new", "--update"), makes="new", begins="one"),
    "search": Command(
        args=("search", "one", "more.npy", "--out", "new.npz", "--nprobe", "40"), makes="new.npz"
    ),
    "search all rows": Command(
        args=("search", "one", "q.npy", "--out", "new.h5", "--recall", "1", "--first", "1000"), makes="new.h5"
    ),
    "search printed": Command(args=("search", "one", "q.npy", "--nprobe", "40", "--first", "4000", "--json")),
    "search explained": Command(args=("search", "one", "more.npy", "--nprobe", "40", "--explain")),
    "export": Command(args=("export", "faiss", "new.faiss"), makes="new.faiss"),
    "import": Command(args=("import", "given.faiss", "new", "--store", "x.npy"), makes="new", once=True),
}


def make_place(place: Path, n: int, d: int) -> None:
    """Stores of ``n`` rows and indexes, as the commands want them."""
    place.mkdir(exist_ok=True)
    few = n // 5
    x = embeddings(n + few, d)
    np.save(place / "x.npy", x[:n])
    np.save(place / "more.npy", x[n:])
    np.save(place / "q.npy", x[n // 2 : n // 2 + n // 10] + np.float32(0.01))
    np.save(place / "ids.npy", np.arange(few))
    np.save(place / "keys.npy", np.random.default_rng(0).permutation(n) * 7)
    ooc.build(place / "x.npy", place / "one")
    for name in ("two", "trained", "filled"):
        if name == "two":
            shutil.copytree(place / "one", place / name)
        else:
            ooc.train(place / "x.npy", place / name)
    ooc.append(place / "two", place / "more.npy")
    ooc.delete(place / "two", np.arange(0, n, 7))
    ooc.fill(place / "x.npy", place / "filled")
    ooc.build(place / "x.npy", place / "faiss", factory="IVF512,SQ8")
    ooc.export(place / "faiss", place / "given.faiss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended: seconds after the signal, its status, what it said, and where it was when late."""

    seconds: float
    status: int
    said: str
    late: str = ""


class Stopping:
    """Runs one command in a place, again and again."""

    def __init__(self, place: Path, name: str) -> None:
        self._place, self.name, self._command = place, name, COMMANDS[name]
        self._there = self._names()

    def _names(self) -> set[str]:
        return {path.name for path in self._place.iterdir()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove what the command left."""
        for name in self._names() - self._there:
            path = self._place / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def reset(self) -> None:
        """As it was before the command first ran."""
        self.clear()
        if self._command.begins:
            shutil.copytree(self._place / self._command.begins, self._place / self._command.makes)

    def left(self) -> set[str]:
        """Names in the place that were not there before the command, nor are what it makes."""
        return self._names() - self._there - {self._command.makes}

    def made(self) -> dict[str, str]:
        """What the command made, by file: what is promised to be the same bytes."""
        root = self._place / self._command.makes
        files = [root] if root.is_file() else sorted(root.rglob("*"))
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            if path.suffix != ".html"  # what was measured
            else ""
            for path in files
            if self._command.makes
            and path.is_file()
            # These tell of times.
            and path.name not in ("lock", "plan.json", "status.json")
            and not path.name.endswith(".report.json")
        }

    def finish(self, ended: Ended) -> dict[str, str]:
        """Run it again after it ended like that, unless it had come to its end; what it made."""
        if ended.status != 0 and not self._done():
            again, _ = self.run()
            assert again.status == 0, (self.name, ended, again)
        if self._command.then:  # shards are cut where a signal came; what is merged of them is the same
            args = [sys.executable, "-m", "ooc", *self._command.then]
            subprocess.run(args, cwd=self._place, env=environment(), capture_output=True, check=True)
        return self.made()

    def _done(self) -> bool:
        """Whether it ended with its result there, which to do again would be another change or is refused."""
        made, begins = self._place / self._command.makes, self._place / self._command.begins
        if not self._command.makes or self._command.then or not made.exists():
            return False
        if not (made / "ooc.json").exists():
            return made.is_file() or made.suffix == ".zarr"
        if self._command.once:
            return (made / "CURRENT").exists()
        # Of a change it is that another generation is live; to build what is built does nothing.
        live = [path / "CURRENT" for path in (made, begins)]
        return all(path.exists() for path in live) and live[0].read_bytes() != live[1].read_bytes()

    def run(
        self, moments: Sequence[float] = (), number: signal.Signals = signal.SIGTERM
    ) -> tuple[Ended, float]:
        """Run it, with a signal so long after the one before; how it ended, and seconds in all.

        Without moments it runs to its end.
        """
        args = [sys.executable, "-c", _OOC, *self._command.args]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        began = sent = time.monotonic()
        with subprocess.Popen(args, cwd=self._place, env=environment(), text=True, **pipes) as process:
            for moment in moments:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
                sent = time.monotonic()
                process.send_signal(number)
            late = False
            if moments:
                try:
                    process.wait(_LATE_SECONDS)
                except subprocess.TimeoutExpired:
                    late = True
                    process.send_signal(signal.SIGUSR2)
            try:
                _, said = process.communicate(timeout=_NEVER_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
            ended = time.monotonic()
        status = process.returncode
        return Ended(seconds=ended - sent, status=status, said=said, late=said if late else ""), ended - began
