"""An operation that something happens to, and how it is seen to recover."""

from __future__ import annotations

import hashlib
import shutil
import signal
from pathlib import Path

from ooc.testing.faults import Step
from ooc.testing.forked import Server
from tests.faults.operations import Operation, known


class Case:
    """An operation, what it begins with, and what it leaves where nothing happens to it."""

    def __init__(self, name: str, place: Path, server: Server) -> None:
        self.name, self.place, self.server = name, place, server
        self.operation: Operation = known(name)
        self._begin = place.with_name("begin")
        server.call("tests.faults.child:prepare", name, place).result()
        shutil.copytree(place, self._begin, symlinks=True)
        self.steps: list[Step]
        self.steps, self.expected = server.call("tests.faults.child:record", name, place).result()

    @property
    def over(self) -> bool:
        """Whether it has come to its end, and would do its work once more if it were run again.

        What is left then is to remove what it needed no more.
        """
        index = self.place / "i.ooc"
        if not self.operation.once or any((index / "build").glob("*/plan.json")):
            return False
        live = hashlib.sha256((index / "CURRENT").read_bytes()).hexdigest()
        return live == self.expected["i.ooc/CURRENT"]

    def begin(self) -> None:
        """Make the place as it was before the operation."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self._begin, self.place, symlinks=True)

    def kill(self, at: int) -> Step:
        """Kill the operation at a step, see that it recovers; the step."""
        self.begin()
        killed = self.server.call("tests.faults.child:killed", self.name, self.place, at)
        assert killed.status == -signal.SIGKILL, killed
        told = dict(killed.told)
        step: Step = told["step"]
        self.recover(f"{self.name} killed at step {at}, {step.name}", told.get("filled", 0))
        return step

    def recover(self, where: str, filled: int, *, same: bool = True) -> None:
        """See that what is published is right, run the operation again, see that it leaves what it must.

        That is the same bytes, or else what answers the same.
        """
        after = self.server.call("tests.faults.child:recovered", self.name, self.place, not self.over)
        assert after.status == 0, f"{where}: status {after.status}\n{after.trace}"
        done, files = after.value
        if not same:
            again = self.server.call("tests.faults.child:looked", self.name, self.place)
            assert again.status == 0, f"{where}: status {again.status}\n{again.trace}"
            return
        assert set(files) == set(self.expected), f"{where}: {sorted(set(files) ^ set(self.expected))}"
        differing = [file for file in files if files[file] != self.expected[file]]
        assert not differing, f"{where}: {differing}"
        if done is not None:
            twice = filled - done
            assert twice <= self.operation.shard_rows, f"{where}: {twice} rows were filled again"
