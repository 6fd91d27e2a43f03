import numpy as np
import pytest

from ooc.vectors import distinct


@pytest.mark.parametrize("count", [0, 3, 5000])
def test_distinct_is_what_unique_finds_without_what_is_not_there(count: int) -> None:
    numbers = np.random.default_rng(count).integers(-1, 700, (count, 2))
    found = distinct(numbers, 700)
    assert found.tolist() == [n for n in np.unique(numbers).tolist() if n >= 0]
