"""Any sequence of changes: a state machine against vectors in memory."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import ooc
from ooc.engine import threads_limited
from ooc.index.layout import Layout
from ooc.testing.forked import Server
from ooc.types import FloatArray, IntArray
from tests.update.kills import MOST_STEPS, PRELOAD, Change
from tests.update.model import Key, Model

N, D = 120, 6


def vectors(seed: int, n: int) -> FloatArray:
    # Whole numbers: distances are exact, and ties are many. Of another n they are others from the first on:
    # a store that begins with all rows of another one is that one, grown.
    return np.random.default_rng([seed, n]).integers(-4, 5, (n, D)).astype(np.float32)


class Changes(RuleBasedStateMachine):
    metric, factory = "l2", "IVF8,SQ8"

    #: Forks the processes that are killed, and what was done: put there by ``run``.
    server: Server
    counts: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.counts["indexes"] += 1
        # In memory where that can be: processes are killed and not the machine, so no disk is waited for.
        shared = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="ooc-machine-", dir=shared))
        self.path = self.root / "i.ooc"
        self.count = 0

    @initialize(
        seed=st.integers(0, 99),
        copies=st.sampled_from(["never", "always"]),
        keyed=st.sampled_from([None, "int64", "str"]),
    )
    def build(self, seed: int, copies: str, keyed: str | None) -> None:
        self.keyed, self.given = keyed, 0
        self.store = self.root / "base.npy"
        self.base = vectors(seed, N)
        np.save(self.store, self.base)
        keys = self.new_keys(N)
        ooc.build(
            self.store,
            self.path,
            metric=self.metric,  # type: ignore[arg-type]
            factory=self.factory,
            copy_vectors=copies,  # type: ignore[arg-type]
            keys=keys or None,
        )
        self.model = Model(self.base, self.metric, keys)
        self.past = {1: copy.deepcopy(self.model)}
        self.follower = ooc.open_index(self.path, follow=True)
        self.reader, self.read = ooc.open_index(self.path), copy.deepcopy(self.model)

    def new_keys(self, n: int) -> list[Key]:
        """Keys that no row ever had; none where rows have no keys."""
        first, self.given = self.given, self.given + n
        return [self.key(i) for i in range(first, first + n)] if self.keyed else []

    def key(self, number: int) -> Key:
        # Those of one length differ in their last letters, and some are long.
        return number * 10**12 - 7 if self.keyed == "int64" else f"{'clé ' * (number % 40)}{number}"

    def some_keys(self, data: st.DataObject) -> list[Key]:
        """Keys that a row has or had, or none yet."""
        numbers = st.integers(0, self.given + 20)
        return [self.key(i) for i in data.draw(st.lists(numbers, min_size=1, max_size=20, unique=True))]

    def changed(self, generation: int) -> None:
        self.past[generation] = copy.deepcopy(self.model)

    @rule(seed=st.integers(0, 99), n=st.integers(1, 40), stored=st.booleans())
    def append(self, seed: int, n: int, stored: bool) -> None:
        x = vectors(seed, n)
        self.count += 1
        path = self.root / f"{self.count}.npy"
        np.save(path, x)
        known = self.model.id_end
        given, keys = self.given, self.new_keys(n)
        figures = ooc.append(self.path, path if stored else x, keys=keys or None)
        if figures["added"]:  # another store of the same rows is the same store
            assert (figures["added"], figures["first_id"]) == (n, known)
            self.model.append(x, keys)
            self.changed(figures["generation"])
        else:
            self.given = given

    def some_ids(self, data: st.DataObject) -> IntArray:
        ids = st.integers(0, self.model.id_end - 1)
        return np.array(data.draw(st.lists(ids, min_size=1, max_size=30, unique=True)), np.int64)

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        ids = self.some_ids(data)
        live = np.isin(ids, self.model.ids).sum()
        figures = ooc.delete(self.path, ids)
        assert figures["deleted"] == live
        self.model.delete(ids)
        self.changed(figures["generation"])

    @precondition(lambda self: getattr(self, "keyed", None))
    @rule(data=st.data())
    def delete_by_key(self, data: st.DataObject) -> None:
        keys = self.some_keys(data)
        figures = ooc.delete(self.path, keys=keys)
        deleted = self.model.delete_keys(keys)
        assert (figures["deleted"], figures["unknown"]) == (deleted, len(keys) - deleted)
        self.changed(figures["generation"])

    @precondition(lambda self: getattr(self, "keyed", None))
    @rule(data=st.data(), seed=st.integers(0, 99))
    def upsert_by_key(self, data: st.DataObject, seed: int) -> None:
        keys = self.some_keys(data)
        x = vectors(seed, len(keys))
        figures = ooc.upsert(self.path, keys=keys, vectors=x)
        assert figures["replaced"] == (self.model.ids_of(keys) >= 0).sum()
        self.model.upsert_keys(keys, x)
        self.given += 21  # what some_keys may have drawn
        self.changed(figures["generation"])

    @precondition(lambda self: getattr(self, "keyed", None))
    @rule(data=st.data(), seed=st.integers(0, 99))
    def append_keys_that_were_given(self, data: st.DataObject, seed: int) -> None:
        keys = self.some_keys(data)
        x = vectors(seed, len(keys))
        if (self.model.ids_of(keys) >= 0).any():
            with pytest.raises(ooc.DataError, match="already"):
                ooc.append(self.path, x, keys=keys)
            return
        figures = ooc.append(self.path, x, keys=keys)
        self.model.append(x, keys)
        self.given += 21
        self.changed(figures["generation"])

    @rule(data=st.data(), seed=st.integers(0, 99))
    def upsert(self, data: st.DataObject, seed: int) -> None:
        ids = self.some_ids(data)
        if self.keyed:  # a deleted id has no key any more
            ids = ids[np.isin(ids, self.model.ids)]
            if not len(ids):
                return
        x = vectors(seed, len(ids))
        figures = ooc.upsert(self.path, ids, x)
        self.model.upsert(ids, x)
        self.changed(figures["generation"])

    @rule()
    def compact(self) -> None:
        self.changed(ooc.compact(self.path)["generation"])

    @precondition(lambda self: self.model.vectors)
    @rule()
    def train_anew(self) -> None:
        self.changed(ooc.compact(self.path, retrain=True)["generation"])

    @rule()
    def collect(self) -> None:
        ooc.gc(self.path)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        there = [one["generation"] for one in ooc.generations(self.path)]
        number = data.draw(st.sampled_from(there))
        ooc.rollback(self.path, number)
        self.model = copy.deepcopy(self.past[number])

    @rule()
    def verify(self) -> None:
        assert ooc.verify(self.path, full=True)["findings"] == []

    @rule()
    def reopen(self) -> None:
        self.follower.close()
        self.reader.close()
        self.follower = ooc.open_index(self.path, follow=True)
        self.reader, self.read = ooc.open_index(self.path), copy.deepcopy(self.model)

    def some_change(self, data: st.DataObject, verbs: list[str], seed: int) -> tuple[Change, int]:
        """One of some changes, and how many steps it is at most."""
        verb = data.draw(st.sampled_from(verbs))
        if verb == "retrain" and not self.model.vectors:  # there is nothing to train with
            verb = "compact"
        most, stored = MOST_STEPS[verb], data.draw(st.booleans())
        if verb == "retrain":
            return Change("compact", {"retrain": True}), most
        if verb == "rollback":
            there = [one["generation"] for one in ooc.generations(self.path)]
            return Change(verb, {"generation": data.draw(st.sampled_from(there))}), most
        if verb == "append":
            # As far as these tests know, no rows that a store of the index has: those are not appended.
            n, self.count = data.draw(st.integers(1, 40)), self.count + 1
            x, path = vectors(1000 + self.count, n), self.root / f"{self.count}.npy"
            np.save(path, x)
            keys = {"keys": self.new_keys(n)} if self.keyed else {}
            return Change(verb, {"store": path if stored else x, **keys}, adds_again=not stored), most
        if verb in ("compact", "gc"):
            return Change(verb), most
        if self.keyed and stored:  # by key
            named, self.given = {"keys": self.some_keys(data)}, self.given + 21
        else:
            ids = self.some_ids(data)
            live = ids[np.isin(ids, self.model.ids)]
            named = {"ids": live if self.keyed and verb == "upsert" else ids}  # others have no keys
        if verb == "upsert":
            count = len(next(iter(named.values())))
            if not count:
                return Change("compact"), MOST_STEPS["compact"]
            named["vectors"] = vectors(seed, count)
        return Change(verb, named), most

    def call(self, name: str, *args: object) -> object:
        return self.server.call(f"tests.update.kills:{name}", self.path, *args).result()

    def live(self) -> int:
        return Layout.of(self.path).published()

    @rule(data=st.data(), seed=st.integers(0, 99), share=st.integers(0, 999), again=st.booleans())
    def rows_come_or_go_and_are_killed(self, data: st.DataObject, seed: int, share: int, again: bool) -> None:
        self.killed(*self.some_change(data, ["append", "upsert", "delete"], seed), share, again)

    @rule(data=st.data(), share=st.integers(0, 999), again=st.booleans())
    def upkeep_is_killed(self, data: st.DataObject, share: int, again: bool) -> None:
        self.killed(*self.some_change(data, ["compact", "retrain", "gc", "rollback"], 0), share, again)

    def killed(self, change: Change, most: int, share: int, again: bool) -> None:
        """A change is killed before one of its steps; perhaps once more; and then it is run to its end."""
        # Numbers of generations that were collected are given again.
        there = {one["generation"] for one in ooc.generations(self.path)}
        self.past = {number: model for number, model in self.past.items() if number in there}
        before = self.live()
        for at in [share * most // 1000, share * most // 2000][: 1 + again]:
            highest = max(one["generation"] for one in ooc.generations(self.path))
            outcome = self.server.call("tests.update.kills:killed", self.path, change, at)
            if outcome.status == 0:  # it had fewer steps
                break
            assert outcome.status == -signal.SIGKILL, f"{change}: {outcome.status}\n{outcome.trace}"
            self.counts["kills"] += 1
            self.counts[f"kills of {change.verb}"] += 1
            self.see_live(change, before, highest)
            if self.is_over(change, before):
                break
        if outcome.status != 0 and not self.is_over(change, before):
            self.call("run", change)
        self.see_live(change, before, None)

    def see_live(self, change: Change, before: int, highest: int | None) -> None:
        """The index answers as the live generation must: that of before, or what the change makes.

        With ``highest``, the highest number before it, after a kill; else after its end.
        """
        live = self.live()
        if change.verb == "rollback":
            target = change.given["generation"]
            assert live == target if highest is None else live in (before, target)
        if live not in self.past:  # what made it is this change
            assert highest is None or live == highest + 1, (live, highest)
            self.past[live] = change.of(self.past[before], self.past)
        if highest is None and change.verb not in ("rollback", "compact", "gc"):
            # At its end the change is there, in this generation or, where it had nothing to do, before.
            self.past[live].same_as(change.of(self.past[before], self.past))
        self.model = copy.deepcopy(self.past[live])
        assert {one["generation"] for one in ooc.generations(self.path)} <= set(self.past)
        self.answers_are_right()

    def is_over(self, change: Change, before: int) -> bool:
        """Whether the change is published and has forgotten what it was: the same again would be another."""
        left = any((self.path / "build").glob("*/plan.json"))
        return change.adds_again and not left and self.live() != before

    @rule(data=st.data(), seed=st.integers(0, 99), k=st.integers(1, 12))
    def filtered(self, data: st.DataObject, seed: int, k: int) -> None:
        allowed = self.some_ids(data)
        xq = vectors(seed, 3) + np.float32(0.25)
        smaller = Model(np.empty((0, D), np.float32), self.metric)
        smaller.vectors = {i: v for i, v in self.model.vectors.items() if i in set(allowed.tolist())}
        _, expected = smaller.search(xq, k)
        with ooc.open_index(self.path) as index:
            _, ids = index.search(xq, k, recall=1.0, filter=allowed)
            np.testing.assert_array_equal(ids, expected)
            _, ids = index.search(xq, k, nprobe=1, filter=allowed)
            assert ((ids >= 0).sum(axis=1) == min(k, len(smaller.vectors))).all()

    @rule()
    def reconstruct(self) -> None:
        ids = self.model.ids
        if len(ids):
            with ooc.open_index(self.path) as index:
                x = np.stack([self.model.vectors[i] for i in ids.tolist()])
                np.testing.assert_array_equal(index.reconstruct(ids), x)

    @invariant()
    def a_step_was_made(self) -> None:
        self.counts["steps"] += hasattr(self, "model")

    @invariant()
    def answers_are_right(self) -> None:
        if hasattr(self, "model"):
            xq = vectors(7, 4) + np.float32(0.25)
            self.model.check_at(self.path, xq)
            self.model.check(self.follower, xq)
            self.read.check(self.reader, xq)  # what it holds stays
            self.counts["answers compared"] += 3 * len(xq)
            if self.keyed:
                self.model.check_keys(self.follower, [self.key(i) for i in range(self.given + 20)])

    def teardown(self) -> None:
        if hasattr(self, "follower"):
            self.follower.close()
            self.reader.close()
        shutil.rmtree(self.root)


def run(examples: int, steps: int, counted: Callable[[str, int], None]) -> None:
    Changes.counts = Counter()
    # Of so few rows each takes longer to share out than to compare.
    with threads_limited(1), Server(PRELOAD) as Changes.server:
        run_state_machine_as_test(
            Changes,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    for what, times in Changes.counts.items():
        counted(f"state machine: {what}", times)


def test_any_sequence_of_changes_answers_as_a_model_does(counted: Callable[[str, int], None]) -> None:
    run(10, 12, counted)


@pytest.mark.slow
def test_thousands_of_changes_answer_as_a_model_does(counted: Callable[[str, int], None]) -> None:
    run(100, 40, counted)
    assert Changes.counts["steps"] > 2000
    assert Changes.counts["kills"] > 100
