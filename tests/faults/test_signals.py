"""SIGINT and SIGTERM: the first stops a command at a safe point within 2 s, the second at once."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.stopping import COMMANDS, Stopping, make_place

#: What is promised of a machine that has nothing else to do; where it is late, it is tried again.
_SECONDS, _TRIES = 2.0, 4

#: Stopped on its way; over before the signal came; ended by it before it listened, or when all was done.
_STOPPED, _DONE, _OUTSIDE = 130, 0, (-signal.SIGTERM, -signal.SIGINT)

#: Behind --trust: how often each command is stopped, and the rows of the store.
_TIMES = int(os.environ.get("OOC_TRUST_TIMES", "10"))
_MANY = (200_000, 256)

_NEVER = float("inf")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("signals")
    make_place(place, 20_000, 32)
    return place


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("signals-large")
    make_place(place, *_MANY)
    return place


def stop_often(command: Stopping, times: int, rng: random.Random) -> tuple[float, int]:
    """Stop it at moments drawn from its run; how long it took at most, and how often it stopped on its way.

    Gone on with it gives the same as a run that no signal came to; nothing else is left.
    """
    command.reset()
    ended, whole = command.run()
    assert ended.status == _DONE, (command.name, ended)
    expected, longest, stops = command.finish(ended), 0.0, 0
    for i in range(times):
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        moment, seconds = rng.uniform(0.3, 1.0) * whole, _NEVER
        for _ in range(_TRIES):
            if seconds <= _SECONDS:
                break
            command.reset()
            ended, _ = command.run([moment], number)
            seconds = min(seconds, ended.seconds)
            assert ended.status in (_STOPPED, _DONE, *_OUTSIDE), (command.name, moment, ended)
            stops += ended.status == _STOPPED
        assert seconds <= _SECONDS, (command.name, moment, ended.late)
        longest = max(longest, seconds)
        # What a conversion goes on from lies beside its result.
        assert command.name.startswith("convert") or not command.left(), (command.name, moment)
        if i % 4 == 0 or i == times - 1:
            assert command.finish(ended) == expected, (command.name, moment, ended)
            assert not command.left(), (command.name, moment)
    return longest, stops


@pytest.mark.parametrize("name", ["build", "append", "convert zarr", "exact", "search"])
def test_a_signal_stops_at_a_safe_point_and_the_command_goes_on(
    name: str, small: Path, counted: Callable[[str, int], None]
) -> None:
    with Stopping(small, name) as command:
        _, stops = stop_often(command, 2, random.Random(name))
    counted("signals", 2)
    counted("signals that stopped a command on its way", stops)


@pytest.mark.trust
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_signal_at_any_moment_stops_within_two_seconds(
    name: str, large: Path, counted: Callable[[str, int], None]
) -> None:
    with Stopping(large, name) as command:
        longest, stops = stop_often(command, _TIMES, random.Random(name))
    counted("signals", _TIMES)
    counted("signals that stopped a command on its way", stops)
    print(f"{name}: {longest:.2f} s at most, {stops} of {_TIMES} on its way")


@pytest.mark.parametrize("name", ["build", "exact"])
def test_the_second_signal_ends_at_once(name: str, small: Path, counted: Callable[[str, int], None]) -> None:
    with Stopping(small, name) as command:
        command.reset()
        ended, whole = command.run()
        expected = command.finish(ended)
        for share in (0.5, 0.8):
            command.reset()
            ended, _ = command.run([share * whole, 0.0, 0.0], signal.SIGTERM)
            assert ended.status in (_STOPPED, _DONE, *_OUTSIDE), ended
            counted("second signals", 1)
            assert command.finish(ended) == expected
            assert not command.left()
