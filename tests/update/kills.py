"""Changes of an index as data: one can be run in a process that is killed, run again, and told to a model."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ooc
from ooc.testing.faults import Kill, Step, injected
from tests.update.model import Model

#: Some more steps than a change of some dozens of rows is.
MOST_STEPS = {
    "append": 190,
    "upsert": 200,
    "delete": 36,
    "compact": 240,
    "gc": 60,
    "rollback": 10,
    "retrain": 440,
}

#: The modules that the process loads from which those that are killed are forked.
PRELOAD = ("tests.update.kills",)


def loaded() -> None:
    """What a change would load when it is run first."""
    for name in ("numpy.ma", "numpy.random"):
        importlib.import_module(name)


@dataclass(frozen=True, slots=True)
class Change:
    """A call that changes an index.

    Attributes
    ----------
    verb : {"append", "delete", "upsert", "compact", "gc", "rollback"}
    given : mapping
        What it is called with beside the index, by name.
    adds_again : bool
        Run again after it came to its end, it would add the same rows once more, or be refused.
    """

    verb: str
    given: Mapping[str, Any] = field(default_factory=dict)
    adds_again: bool = False

    def run(self, path: Path) -> dict[str, Any]:
        """Change the index."""
        threads = {"threads": 1} if self.verb in ("append", "upsert", "compact") else {}
        figures: dict[str, Any] = getattr(ooc, self.verb)(path, **threads, **self.given)
        return figures

    def of(self, model: Model, past: Mapping[int, Model]) -> Model:
        """What the index answers after it: a model of its own."""
        if self.verb == "rollback":
            return copy.deepcopy(past[self.given["generation"]])
        after, given = copy.deepcopy(model), self.given
        keys = given.get("keys")
        if self.verb == "append":
            with ooc.open_store(given["store"]) as store:
                after.append(store.read(0, store.n), keys or ())
        elif self.verb == "delete" and keys is not None:
            after.delete_keys(keys)
        elif self.verb == "delete":
            after.delete(given["ids"])
        elif self.verb == "upsert" and keys is not None:
            after.upsert_keys(keys, given["vectors"])
        elif self.verb == "upsert":
            after.upsert(given["ids"], given["vectors"])
        return after


def run(path: Path, change: Change) -> dict[str, Any]:
    """Run a change; what it returns."""
    return change.run(path)


def killed(path: Path, change: Change, at: int, tell: Callable[[Step], None]) -> None:
    """Run a change until its step ``at``, where the process is killed; tells the step."""
    with injected(Kill(at, tell)):
        change.run(path)
