"""What the system refuses: a clear error, the index as it was, and the same command goes on afterwards."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest

from ooc.disk import CHANGES
from ooc.errors import OocError
from ooc.testing.faults import Refuse
from tests.faults.case import Case
from tests.faults.operations import OPERATIONS

#: Places at which each kind of failure is tried where not all are asked for.
_SOME = 3

_SPACE = ("write", "allocate", "truncate", "create", "make-directory")

#: Of each kind what fails, and how an error of ours is then called.
FAILURES: dict[str, tuple[Callable[[int], Refuse], set[str]]] = {
    "disk-full": (lambda at: Refuse(errno.ENOSPC, _SPACE, at), {"disk-full"}),
    "one-write": (lambda at: Refuse(errno.EIO, CHANGES, at, times=1), {"io"}),
    "one-read": (
        lambda at: Refuse(errno.EIO, ("read", "open"), at, times=1),
        {"io", "index-unreadable", "index-damaged", "store-unreadable", "store-format", "store-damaged"},
    ),
    "too-many-files": (lambda at: Refuse(errno.EMFILE, ("create", "open"), at, times=1), {"io"}),
}

#: Operations that are tried where not all are asked for.
QUICK = ("build-copies", "append-array", "compact", "convert-y.zarr")


def _fail(case: Case, failure: str, at: int) -> bool:
    """Let it fail at a place, see that it recovers; whether there was such a place."""
    make, kinds = FAILURES[failure]
    case.begin()
    outcome = case.server.call("tests.faults.child:refused", case.name, case.place, make(at))
    where = f"{case.name}, {failure} at {at}"
    assert outcome.status == 0, f"{where}: status {outcome.status}\n{outcome.trace}"
    count, refused, error, left_open = outcome.value
    _see(case, where, refused, error, left_open, kinds)
    return bool(count > at)


def _see(
    case: Case, where: str, refused: list[str], error: OocError | None, left_open: list[str], kinds: set[str]
) -> None:
    where = f"{where} ({refused[:1]})"
    if error is not None:
        assert refused, f"{where}: {error!r}"
        assert error.kind in kinds, f"{where}: {error.kind}: {error}"
        assert error.message, where
    assert not left_open, f"{where}: {left_open}"
    case.recover(where, 0)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_what_fails_at_some_places_is_told_and_gone_on_with(case: Case, failure: str) -> None:
    for at in sorted(random.Random(case.name + failure).sample(range(len(case.steps) // 3), _SOME)):
        _fail(case, failure, at)


@pytest.mark.trust
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("case", OPERATIONS, indirect=True)
def test_what_fails_at_any_place_is_told_and_gone_on_with(case: Case, failure: str) -> None:
    at = 0
    while _fail(case, failure, at):
        at += 1


@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_short_reads_and_writes_change_nothing(case: Case) -> None:
    case.begin()
    count = case.server.call("tests.faults.child:shortened", case.name, case.place).result()
    assert count > 10
    case.recover(f"{case.name} with short writes", 0)


@pytest.mark.trust
@pytest.mark.parametrize("case", OPERATIONS, indirect=True)
def test_where_memory_is_refused_it_is_told_and_gone_on_with(case: Case) -> None:
    at = 0
    while _without_memory(case, at):
        at += 1


@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_where_memory_is_refused_at_some_places(case: Case) -> None:
    for at in (0, 3):
        _without_memory(case, at)


def _without_memory(case: Case, at: int) -> bool:
    case.begin()
    outcome = case.server.call("tests.faults.child:without_memory", case.name, case.place, at)
    where = f"{case.name}, array {at} refused"
    assert outcome.status == 0, f"{where}: status {outcome.status}\n{outcome.trace}"
    count, refused, error, left_open = outcome.value
    _see(case, where, refused, error, left_open, {"memory-refused"})
    return bool(count > at)


@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_where_few_files_can_be_open_it_is_told_and_gone_on_with(case: Case) -> None:
    kinds = {"io", "index-unreadable", "index-damaged", "store-unreadable", "store-format"}
    for more in (0, 1, 2, 3, 5, 8, 12):
        case.begin()
        outcome = case.server.call("tests.faults.child:few_files", case.name, case.place, more)
        assert outcome.status == 0, f"{more} files: status {outcome.status}\n{outcome.trace}"
        error: Any = outcome.value
        if error is not None:
            assert error.kind in kinds, f"{more} files: {error.kind}: {error}"
            case.recover(f"{case.name} with {more} files", 0)
