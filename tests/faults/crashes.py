"""Kills at random moments of random commands, on stores of all kinds, for as long as one likes.

    tools/crash_loop [--minutes N] [--seed S]

Each command runs in a process that is killed after a random time, or at a random step by which it changes a
file. Then the index must answer as before the command or as after it; the command is run again and must
come to its end; now and then what is left is collected, and nothing may be left over.
Prints counts as JSON; the exit status is 0 where all was right. The same seed draws the same commands; when
a kill comes depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import ooc
from ooc.testing.faults import Kill, injected
from ooc.testing.forked import Outcome, Server
from ooc.types import FloatArray
from tests.faults.operations import on_memory_disk
from tests.update.model import Model

D = 8
STORES = ("npy", "fvecs", "h5", "zarr", "zstd", "array")
FACTORIES = ("IVF8,SQ8", "HR,IVF16,RaBitQ", "IVF8,Flat")
XQ = np.random.default_rng(3).integers(-9, 10, (3, D)).astype(np.float32) + np.float32(0.25)


def loaded() -> None:
    """See ``tests.faults.operations.loaded``."""
    from tests.faults import operations

    operations.loaded()


def vectors(seed: int, n: int) -> FloatArray:
    """Whole numbers, whose distances are exact."""
    return np.random.default_rng([seed, n]).integers(-9, 10, (n, D)).astype(np.float32)


def store(place: Path, kind: str, seed: int, n: int) -> Any:
    """A store of so many rows."""
    if kind == "array":
        return vectors(seed, n)
    name = place / f"{seed}.{'zarr' if kind == 'zstd' else kind}"
    if not name.exists():
        options: dict[str, Any] = {"compression": "zstd", "chunk_rows": 300} if kind == "zstd" else {}
        ooc.convert(vectors(seed, n), name, **options)
    return name


def run(place: Path, said: dict[str, Any]) -> dict[str, Any]:
    """One command."""
    index, options = place / "i.ooc", {"memory": "512MiB", "threads": said["threads"]}
    x = store(place, said["store"], said["seed"], said["n"]) if "store" in said else None
    match said["command"]:
        case "build":
            return ooc.build(x, index, **said["options"], **options)
        case "append":
            return ooc.append(index, x, **options)
        case "upsert":
            return ooc.upsert(index, np.array(said["ids"]), x, **options)
        case "delete":
            return ooc.delete(index, np.array(said["ids"]))
        case "compact":
            return ooc.compact(index)
        case "gc":
            return ooc.gc(index)
        case "rollback":
            return ooc.rollback(index, said["generation"])
        case "convert":
            target = place / f"to.{said['to']}"
            return ooc.convert(x, target, overwrite=True)
        case _:
            with ooc.open_index(index) as opened:
                return opened.search_to(
                    XQ.repeat(50, 0), place / f"hits.{said['to']}", k=5, batch=40, overwrite=True
                )


def killed(place: Path, said: dict[str, Any], at: int, tell: Callable[[Any], None]) -> None:
    """The same, until a step or its end."""
    with injected(Kill(at, tell)):
        run(place, said)


def look(place: Path) -> tuple[int | None, Any]:
    """Which generation is the live one, and what it answers; None where there is none."""
    if not (place / "i.ooc/CURRENT").exists():
        return None, None
    with ooc.open_index(place / "i.ooc") as index:
        exact = index.search(XQ, 5, recall=1.0)
        through = index.search(XQ, 5, nprobe=index.nlist, rerank=max(index.n - 1, 5))
        np.testing.assert_array_equal(exact[1], through[1])
        return index.generation, (index.n, *exact)


def answers(model: Model) -> Any:
    return len(model.vectors), *model.search(XQ, 5)


def same(found: Any, expected: Any) -> bool:
    """Whether answers are the same."""
    if found is None or expected is None:
        return found is expected
    return (
        found[0] == expected[0]
        and np.array_equal(found[2], expected[2])
        and np.allclose(found[1], expected[1], rtol=2e-4, atol=2e-4)
    )


class Loop:
    """One index after another, and what each must answer."""

    def __init__(self, place: Path, server: Server, seed: int) -> None:
        self.place, self.server, self.chance = place, server, random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.seed = 0
        self.seconds: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        """An empty place."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self.model: Model | None = None
        self.past: dict[int, Model] = {}
        self.changes = 0

    def draw(self) -> dict[str, Any]:
        """A command."""
        chance, self.seed = self.chance, self.seed + 1
        said: dict[str, Any] = {"seed": self.seed, "threads": chance.choice((1, 2))}
        if self.model is None:
            options = {
                "factory": chance.choice(FACTORIES),
                "copy_vectors": chance.choice(("auto", "always")),
                "spill": chance.choice(("off", "on")),
                "shard_rows": 1024,
            }
            kind = chance.choice(STORES[:-1])
            return {
                **said,
                "command": "build",
                "store": kind,
                "n": chance.randint(900, 3000),
                "options": options,
            }
        command = chance.choice(
            (
                "append",
                "append",
                "upsert",
                "delete",
                "delete",
                "compact",
                "gc",
                "rollback",
                "convert",
                "search",
            )
        )
        said["command"] = command
        if command in ("append", "convert"):
            said.update(
                store=chance.choice(STORES[: -1 if command == "convert" else None]), n=chance.randint(1, 600)
            )
        if command in ("delete", "upsert"):
            ids = self.model.ids.tolist()
            said["ids"] = sorted(chance.sample(ids, min(len(ids), chance.randint(1, 90))))
        if command == "upsert":
            said.update(store="array", n=len(said["ids"]))
        if command == "rollback":
            said["generation"] = chance.choice(sorted(self.past))
        if command == "convert":
            said["to"] = chance.choice(("npy", "h5", "zarr", "fbin", "parquet"))
        if command == "search":
            said["to"] = chance.choice(("npz", "h5", "zarr", "parquet"))
        return said

    def after(self, said: dict[str, Any]) -> Model | None:
        """What the index is after a command."""
        if said["command"] == "build":
            return Model(vectors(said["seed"], said["n"]), "l2")
        if said["command"] == "rollback":
            return copy.deepcopy(self.past[said["generation"]])
        model = copy.deepcopy(self.model)
        assert model is not None
        if said["command"] == "append":
            model.append(vectors(said["seed"], said["n"]))
        elif said["command"] == "upsert":
            model.upsert(np.array(said["ids"]), vectors(said["seed"], said["n"]))
        elif said["command"] == "delete":
            model.delete(np.array(said["ids"]))
        return model

    def turn(self) -> None:
        """One command: killed, looked at, run to its end, looked at."""
        said = self.draw()
        before, after = self.model, self.after(said)
        old = None if before is None else answers(before)
        new = None if after is None else answers(after)
        kills = self.chance.choice((0, 1, 1, 1, 2))
        for _ in range(kills):
            outcome = self.kill(said)
            if outcome.status == 0:
                self.seen(after)
                break
            assert outcome.status == -signal.SIGKILL, f"{said}: {outcome.status}\n{outcome.trace}"
            self.counts["kills"] += 1
            self.counts[f"kills of {said['command']}"] += 1
            found = self.seen(after)
            assert same(found, old) or same(found, new), (
                f"{said} was killed: {found} is neither {old} nor {new}"
            )
            self.counts["openings after a kill"] += found is not None
            if self.over(said, found, new):
                break
        began = time.monotonic()
        if not (kills and self.over(said, self.call("look")[1], new)):
            self.call("run", said)
        self.seconds[said["command"]] = time.monotonic() - began
        generation, found = self.call("look")
        assert same(found, new), f"{said}: {found} is not {new}"
        self.counts["commands"] += 1
        self.counts["answers compared"] += len(XQ)
        self.model = after
        if generation is not None and after is not None:
            self.past[generation] = copy.deepcopy(after)
        if said["command"] == "gc":
            self.past = {number: model for number, model in self.past.items() if number == generation}
            self.see_nothing_left()
        self.past = {one["generation"]: self.past[one["generation"]] for one in self.call("generations")}

    def seen(self, after: Model | None) -> Any:
        """What the index answers; a generation that was not there before is what the command makes."""
        generation, found = self.call("look")
        if generation is not None and generation not in self.past and after is not None:
            self.past[generation] = copy.deepcopy(after)
        return found

    def over(self, said: dict[str, Any], found: Any, new: Any) -> bool:
        """Whether an append came to its end: the same again would be other rows."""
        left = any((self.place / "i.ooc/build").glob("*/plan.json"))
        return said["command"] == "append" and not left and same(found, new)

    def kill(self, said: dict[str, Any]) -> Outcome:
        """Run it in a process that is killed at a random moment or step."""
        args = (self.place, said)
        if self.chance.random() < 0.5:
            return self.server.call("tests.faults.crashes:killed", *args, self.chance.randint(0, 250))
        most = 1.2 * self.seconds.get(said["command"], 0.5)
        return self.server.call("tests.faults.crashes:run", *args, kill_after=self.chance.uniform(0.01, most))

    def see_nothing_left(self) -> None:
        """After gc: no file that no generation needs."""
        index = self.place / "i.ooc"
        left = [path for path in index.rglob("*") if path.name.startswith(".")]
        assert not left, left
        assert not (index / "build").exists(), list((index / "build").rglob("*"))
        assert len(list((index / "generations").glob("[0-9]*.json"))) >= 1
        self.counts["collections that left nothing over"] += 1

    def call(self, name: str, *args: Any) -> Any:
        return self.server.call(f"tests.faults.crashes:{name}", self.place, *args).result()


def generations(place: Path) -> list[dict[str, Any]]:
    """Those that are there."""
    return ooc.generations(place / "i.ooc")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/crash_loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the commands that are drawn (default: 0)")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="ooc-crashes-", dir=on_memory_disk()))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(Server(["tests.faults.crashes"]))
        loop = Loop(root / "place", server, args.seed)
        end = time.monotonic() + 60 * args.minutes
        try:
            while time.monotonic() < end:
                loop.turn()
                loop.changes += 1
                if loop.changes >= 25:
                    loop.begin()
                    loop.counts["indexes"] += 1
        except AssertionError as error:
            print(f"{error}\nleft as it is in {root}", file=sys.stderr)
            return 1
        finally:
            print(json.dumps(dict(sorted(loop.counts.items())), indent=2))
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
