"""Killed at any step, every operation leaves what was published, goes on, and ends with the same bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.faults.case import Case
from tests.faults.operations import OPERATIONS, REPAIRS

#: Steps at which each operation is killed where not all are asked for.
_SOME = 2


@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_killed_at_some_steps_it_recovers(case: Case, counted: Callable[[str, int], None]) -> None:
    every = range(len(case.steps))
    for at in sorted(random.Random(case.name).sample(every, min(_SOME, len(every)))):
        case.kill(at)
        counted("kills at a step", 1)


@pytest.mark.parametrize("case", REPAIRS, indirect=True)
def test_a_repair_killed_in_its_second_segment_goes_on(case: Case) -> None:
    plans = [at for at, step in enumerate(case.steps) if step.name == "rename:D/plan.json"]
    assert len(plans) == 2
    case.kill(plans[1] + 3)


@pytest.mark.trust
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_killed_at_every_step_it_recovers(case: Case, counted: Callable[[str, int], None]) -> None:
    for at in range(len(case.steps)):
        case.kill(at)
    counted("kills at a step", len(case.steps))
