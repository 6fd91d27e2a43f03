"""Many readers and one writer on one index, for a time: what readers find is held against exact search.

    python -m tests.faults.load [--minutes N] [--readers N] [--seed S]

The writer says in a file what each generation is to be before it makes it; a reader makes the same of the
vectors in its memory and compares. Prints counts as JSON; the exit status is 0 where all was right.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import ooc
from ooc.mapping import private_bytes
from ooc.types import FloatArray
from tests.faults.operations import on_memory_disk
from tests.update.model import Model

N, D = 1500, 8

#: How much more a process may have in the second half of its time than in the first.
MOST_RISES = {"private_bytes": 8 << 20, "files": 1, "mappings": 8}

#: Queries of one search.
XQ = np.random.default_rng(3).integers(-9, 10, (3, D)).astype(np.float32) + np.float32(0.25)


def vectors(seed: int, n: int) -> FloatArray:
    return np.random.default_rng([seed, n]).integers(-9, 10, (n, D)).astype(np.float32)


class History:
    """What each generation holds, read from the file in which the writer says it."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self._model = Model(vectors(0, N), "l2")
        self._number = 1
        self._said: dict[int, dict[str, Any]] = {}

    def of(self, number: int) -> Model:
        """The model of a generation; no earlier one is asked for after it."""
        while self._number < number:
            if self._number + 1 not in self._said:
                self._read()
                if self._number + 1 not in self._said:
                    time.sleep(0.01)
                    continue
            self._number += 1
            change(self._model, self._said.pop(self._number))
        assert self._number == number, (self._number, number)
        return self._model

    def _read(self) -> None:
        with self._path.open() as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith("\n"):
                    break
                self._at += len(line)
                said = json.loads(line)
                self._said[said["generation"]] = said


def change(model: Model, said: dict[str, Any]) -> None:
    """Make of the model what the next generation is."""
    if said["operation"] == "append":
        model.append(vectors(said["seed"], said["n"]))
    elif said["operation"] == "delete":
        model.delete(np.array(said["ids"]))
    elif said["operation"] == "upsert":
        model.upsert(np.array(said["ids"]), vectors(said["seed"], len(said["ids"])))


class Levels:
    """Private memory, open files and mappings of this process, from time to time."""

    NAMES = ("private_bytes", "files", "mappings")

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, int]] = []

    def look(self) -> None:
        gc.collect()
        maps = len(Path("/proc/self/maps").read_text().splitlines())
        self._seen.append((private_bytes(), len(list(Path("/proc/self/fd").iterdir())), maps))

    def rises(self) -> dict[str, int]:
        """How much higher the highest of the second half is than that of the first, without a warming up."""
        seen, middle = self._seen, len(self._seen) // 2
        early, late = seen[min(middle // 2, middle - 1) : middle] or seen, seen[middle:]
        return {
            f"rise of {name}": max(one[i] for one in late) - max(one[i] for one in early)
            for i, name in enumerate(self.NAMES)
        }


def write(place: Path, seconds: float, seed: int) -> dict[str, int]:
    """Change the index until the time is over."""
    rng = np.random.default_rng(seed)
    index, log = place / "i.ooc", place / "log"
    model, levels = Model(vectors(0, N), "l2"), Levels()
    counts: Counter[str] = Counter()
    generation, end, turn, burst = 1, time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        turn += 1
        operation = _next(rng, len(model.vectors), turn, burst)
        if burst:
            burst -= 1
        elif turn % 60 == 59:
            burst = 30  # small changes one upon the other, and nothing is collected between
        said: dict[str, Any] = {"generation": generation + 1, "operation": operation, "seed": turn}
        if operation == "append":
            said["n"] = int(rng.integers(1, 80))
        elif operation in ("delete", "upsert"):
            most = 2 if burst else 120 if operation == "delete" else 30
            said["ids"] = np.sort(rng.choice(model.ids, int(rng.integers(1, most)), replace=False)).tolist()
        with log.open("a") as file:
            file.write(json.dumps(said) + "\n")
        if operation == "append":
            figures = ooc.append(index, vectors(turn, said["n"]), memory="512MiB")
        elif operation == "delete":
            figures = ooc.delete(index, np.array(said["ids"]))
        elif operation == "upsert":
            rows = vectors(turn, len(said["ids"]))
            figures = ooc.upsert(index, np.array(said["ids"]), rows, memory="512MiB")
        else:
            figures = ooc.compact(index)
        change(model, said)
        generation += 1
        assert figures["generation"] == generation, (figures, generation)
        counts[f"{operation}s" if operation != "compact" else "compactions"] += 1
        if turn % 4 == 0 and not burst:
            counts["generations removed"] += len(ooc.gc(index)["removed"])
            counts["gcs"] += 1
        levels.look()
    return {**counts, "publishes": generation - 1, **levels.rises()}


def _next(rng: np.random.Generator, n: int, turn: int, burst: int) -> str:
    if burst:
        return "delete"
    if turn % 9 == 0:
        return "compact"
    more = ["append", "append", "delete", "upsert"]
    return str(rng.choice(["append", "delete", "delete", "upsert"] if n > 1.3 * N else more))


def read(place: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Search until the time is over, and hold each answer against exact search.

    Every other reader opens the index again and again; the others keep it open for longer and refresh it.
    """
    rng = np.random.default_rng(seed)
    path, history, levels = place / "i.ooc", History(place / "log"), Levels()
    end, counts = time.monotonic() + seconds, Counter[str]()
    generations: set[int] = set()
    while time.monotonic() < end:
        with ooc.open_index(path) as index:
            counts["openings"] += 1
            for hold in rng.choice([0, 0.1, 0.5, 2.0], 1 if seed % 2 else 6).tolist():
                counts["refreshes"] += index.refresh()
                expected = history.of(index.generation)
                generations.add(index.generation)
                until = time.monotonic() + hold
                while True:  # others publish and collect meanwhile
                    expected.check(index, XQ, 5)
                    ids = rng.choice(expected.ids, 5, replace=False)
                    np.testing.assert_array_equal(
                        index.reconstruct(ids), np.stack([expected.vectors[i] for i in ids.tolist()])
                    )
                    counts["answers"] += 2 * len(XQ)
                    if time.monotonic() >= min(until, end):
                        break
        levels.look()  # when nothing is open: an index has the more files open the more segments it has
    return {**counts, "generations read": len(generations), **levels.rises()}


def run(seconds: float, readers: int, seed: int) -> tuple[dict[str, int], bool]:
    """Fork the readers and the writer; their counts, and whether all ended well and nothing leaked."""
    place = Path(tempfile.mkdtemp(prefix="ooc-load-", dir=on_memory_disk()))
    try:
        np.save(place / "x.npy", vectors(0, N))
        made = os.fork()
        if not made:
            ooc.build(
                place / "x.npy", place / "i.ooc", factory="IVF16,SQ8", memory="512MiB", copy_vectors="always"
            )
            os._exit(0)
        os.waitpid(made, 0)
        (place / "log").touch()
        children = {}
        for number in range(readers + 1):
            pid = os.fork()
            if not pid:
                _child(place, number, seconds, seed)
            children[pid] = number
        well, said = True, []
        for pid, number in children.items():
            _, status = os.waitpid(pid, 0)
            if status:
                print(
                    f"process {number} ended with {os.waitstatus_to_exitcode(status)}",
                    file=sys.stderr,
                )
                well = False
            else:
                said.append(json.loads((place / f"said{number}").read_text()))
        counts: dict[str, int] = {"readers": readers}
        for one in said:
            for name, count in one.items():
                rise = name.startswith("rise")
                counts[name] = max(counts.get(name, count), count) if rise else counts.get(name, 0) + count
        flat = all(counts.get(f"rise of {name}", 0) <= most for name, most in MOST_RISES.items())
        return counts, well and flat
    finally:
        shutil.rmtree(place)


def _child(place: Path, number: int, seconds: float, seed: int) -> None:
    try:
        said = (read if number else write)(place, seconds, seed + number)
        (place / f"said{number}").write_text(json.dumps(said))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts, well = run(60 * args.minutes, args.readers, args.seed)
    print(json.dumps(counts, indent=2))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
