"""What the system refuses: a clear error, the index as it was, and the same command goes on afterwards."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from ooc.disk import CHANGES
from ooc.errors import OocError
from ooc.testing.faults import Refuse
from tests.faults.case import Case
from tests.faults.operations import OPERATIONS, REPAIRS

#: Places at which each kind of failure is tried where not all are asked for.
_SOME = 3

_SPACE = ("write", "allocate", "truncate", "create", "make-directory")

#: With --trust every so many-th place is tried: 1 for all of them, which takes an hour or two.
EVERY = int(os.environ.get("OOC_TRUST_EVERY", "1"))

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
QUICK = ("build-copies", "append-array", "compact", "convert-y.zarr", "repair")


def _fail(case: Case, failure: str, at: int) -> bool:
    """Let it fail at a place, see that it recovers; whether there was such a place."""
    make, kinds = FAILURES[failure]
    case.begin()
    outcome = case.server.call("tests.faults.child:refused", case.name, case.place, make(at))
    where = f"{case.name}, {failure} at {at}"
    assert outcome.status == 0, f"{where}: status {outcome.status}\n{outcome.trace}"
    count, refused, error, left_open = outcome.value
    # What a repair cannot read it makes anew.
    same = failure != "one-read" or case.name not in REPAIRS
    _see(case, where, refused, error, left_open, kinds, same=same)
    return bool(count > at)


def _see(
    case: Case,
    where: str,
    refused: list[str],
    error: OocError | None,
    left_open: list[str],
    kinds: set[str],
    *,
    same: bool = True,
) -> None:
    where = f"{where} ({refused[:1]})"
    if error is not None:
        assert refused, f"{where}: {error!r}"
        assert error.kind in kinds, f"{where}: {error.kind}: {error}"
        assert error.message, where
    assert not left_open, f"{where}: {left_open}"
    case.recover(where, 0, same=same)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_what_fails_at_some_places_is_told_and_gone_on_with(
    case: Case, failure: str, counted: Callable[[str, int], None]
) -> None:
    for at in sorted(random.Random(case.name + failure).sample(range(len(case.steps) // 3), _SOME)):
        counted(f"failures: {failure}", _fail(case, failure, at))


@pytest.mark.trust
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_what_fails_at_any_place_is_told_and_gone_on_with(
    case: Case, failure: str, counted: Callable[[str, int], None]
) -> None:
    # Which of them, where not every place is tried, differs from case to case.
    at = random.Random(case.name + failure).randrange(EVERY)
    while _fail(case, failure, at):
        counted(f"failures: {failure}", 1)
        at += EVERY


@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_a_directory_that_may_only_be_read_is_told(case: Case) -> None:
    _only_read(case)


@pytest.mark.trust
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_any_command_tells_of_a_directory_that_may_only_be_read(
    case: Case, counted: Callable[[str, int], None]
) -> None:
    _only_read(case)
    counted("failures: read-only", 1)


def _only_read(case: Case) -> None:
    case.begin()
    before = case.operation.files(case.place)
    watcher = Refuse(errno.EROFS, CHANGES)
    outcome = case.server.call("tests.faults.child:refused", case.name, case.place, watcher)
    assert outcome.status == 0, f"status {outcome.status}\n{outcome.trace}"
    _, refused, error, left_open = outcome.value
    assert refused
    assert error.kind == "not-writable", repr(error)
    assert not left_open
    after = case.operation.files(case.place)
    assert {name: after[name] for name in before} == before
    # What HDF5 makes by itself is refused by no step, and neither can it be removed then.
    assert all(name.endswith(".h5.partial") for name in after.keys() - before)
    case.recover(f"{case.name} where all may only be read", 0)


@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_short_reads_and_writes_change_nothing(case: Case) -> None:
    assert _short(case) > 10


@pytest.mark.trust
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_short_reads_and_writes_change_nothing_anywhere(
    case: Case, counted: Callable[[str, int], None]
) -> None:
    counted("short reads and writes", _short(case))


def _short(case: Case) -> int:
    case.begin()
    count: int = case.server.call("tests.faults.child:shortened", case.name, case.place).result()
    if not case.over:
        case.recover(f"{case.name} with short writes", 0)
    return count


@pytest.mark.trust
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_where_memory_is_refused_it_is_told_and_gone_on_with(
    case: Case, counted: Callable[[str, int], None]
) -> None:
    at = random.Random(case.name).randrange(EVERY)
    while _without_memory(case, at):
        counted("failures: an array refused", 1)
        at += EVERY


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
def test_where_a_process_has_little_room_for_memory(case: Case) -> None:
    for mib in (1, 12):
        _little_memory(case, mib)


@pytest.mark.trust
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_where_a_process_has_any_room_for_memory(case: Case, counted: Callable[[str, int], None]) -> None:
    # With less Python itself waits for ever for a thread that found no memory to begin.
    for mib in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 64, 80, 96):
        counted(f"address spaces too small: {_little_memory(case, mib)}", 1)


def _little_memory(case: Case, mib: int) -> str:
    """Run it with so much more address space than the process has; how it ended."""
    case.begin()
    outcome = case.server.call("tests.faults.child:little_memory", case.name, case.place, mib << 20)
    where = f"{case.name} with {mib} MiB"
    if outcome.status:
        # BLAS and OpenMP end the process where they get no memory for a thread: as a kill does.
        assert outcome.error is None, f"{where}: status {outcome.status}\n{outcome.trace}"
        assert outcome.status in (1, -11), where
        ended = "ended by BLAS or OpenMP"
    elif outcome.value is None:
        return "was enough"
    else:
        assert outcome.value.kind in {"memory-refused", "store-unreadable"}, f"{where}: {outcome.value!r}"
        ended = "told"
    case.recover(where, 0)
    return ended


@pytest.mark.parametrize("case", QUICK, indirect=True)
def test_where_few_files_can_be_open_it_is_told_and_gone_on_with(case: Case) -> None:
    _few_files(case)


@pytest.mark.trust
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_where_few_files_can_be_open_any_command_tells(
    case: Case, counted: Callable[[str, int], None]
) -> None:
    counted("failures: few files open", _few_files(case))


def _few_files(case: Case) -> int:
    """How many limits were too low."""
    kinds = {"io", "store-unreadable"}
    failed = 0
    for more in (0, 1, 2, 3, 5, 8, 12):
        case.begin()
        outcome = case.server.call("tests.faults.child:few_files", case.name, case.place, more)
        assert outcome.status == 0, f"{more} files: status {outcome.status}\n{outcome.trace}"
        error: Any = outcome.value
        if error is not None:
            assert error.kind in kinds, f"{more} files: {error.kind}: {error}"
            case.recover(f"{case.name} with {more} files", 0)
            failed += 1
    return failed
