"""Power lost at any step: what was not synced is gone or torn, and every operation recovers all the same."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from ooc.testing.lost_writes import Image
from tests.faults.case import Case
from tests.faults.operations import OPERATIONS, REPAIRS

#: Crashes of each operation that are recovered from where not all are asked for.
_SOME = 1


def _images(case: Case, every: int) -> list[tuple[Image, int]]:
    case.begin()
    images: list[tuple[Image, int]]
    images = case.server.call("tests.faults.child:crashed", case.name, case.place, every, 0).result()
    return images


def _recover(case: Case, image: Image, filled: int) -> None:
    image.restore(case.place)
    where = (
        f"{case.name}, power lost before step {image.at}, {image.name}, {image.variant} of the unsynced there"
    )
    case.recover(where, filled)


@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_after_some_lost_writes_it_recovers(case: Case, counted: Callable[[str, int], None]) -> None:
    images = _images(case, 4)
    for image, filled in random.Random(case.name).sample(images, min(_SOME, len(images))):
        _recover(case, image, filled)
        counted("losses of power", 1)


@pytest.mark.trust
@pytest.mark.parametrize("case", [*OPERATIONS, *REPAIRS], indirect=True)
def test_after_any_lost_writes_it_recovers(case: Case, counted: Callable[[str, int], None]) -> None:
    for image, filled in _images(case, 4):
        _recover(case, image, filled)
        counted("losses of power", 1)
