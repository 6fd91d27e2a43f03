"""int8 rows with a scale each: what the codes promise, and the contract of the store that decodes them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import ooc
from ooc.stores.npy import open_npy
from ooc.stores.scaled import ScaledStore, to_int8
from ooc.testing.store_contract import StoreContract
from ooc.types import AnyArray, FloatArray, StoreLike


def stored(directory: Path, values: AnyArray, scales: AnyArray) -> ScaledStore:
    np.save(directory / "vectors.npy", values)
    np.save(directory / "scales.npy", scales)
    return ScaledStore(open_npy(directory / "vectors.npy"), open_npy(directory / "scales.npy"))


class TestScaledStore(StoreContract):
    mapped: ClassVar[bool | None] = True

    def make(self, directory: Path, x: AnyArray) -> StoreLike:
        return stored(directory, *to_int8(x))

    def vectors(self, n: int | None = None, *, seed: int = 7) -> AnyArray:
        """Rows that int8 and a power of two say exactly."""
        n = self.shape[0] if n is None else n
        rng = np.random.default_rng(seed)
        steps = rng.integers(-127, 128, (n, self.shape[1]))
        steps[:, 3] = rng.choice([-127, 127], n)
        return (steps * 2.0 ** rng.integers(-9, 9, (n, 1))).astype(np.float32)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays.arrays(np.float32, (4, 6), elements=finite))
def test_every_finite_row_is_decoded_to_within_half_a_step(x: FloatArray) -> None:
    before = x.copy()
    values, scales = to_int8(x)
    np.testing.assert_array_equal(x, before)
    assert (values.dtype, values.shape) == (np.dtype(np.int8), (4, 6))
    assert (scales.dtype, scales.shape) == (np.dtype(np.float32), (4, 1))
    assert int(values.min()) >= -127
    decoded = values.astype(np.float64) * scales
    largest = np.abs(x.astype(np.float64)).max(axis=1, keepdims=True)
    # Below the smallest numbers a scale has hardly any digits.
    assert (np.abs(decoded - x) <= largest / 127 * 0.5001 + 64 * 1.5e-45).all()


def test_rows_of_zeros_of_extremes_and_of_what_is_no_number() -> None:
    largest, tiny = np.finfo(np.float32).max, np.float32(1e-44)
    x = np.array(
        [[0, 0, -0.0], [largest, -largest, 1], [tiny, -tiny, 0], [1, np.nan, 2], [np.inf, 1, 2], [-3, 1, 0]],
        np.float32,
    )
    values, scales = to_int8(x)
    assert scales[0] == 0
    assert np.isnan(scales[3:5]).all()
    np.testing.assert_array_equal(values[[0, 3, 4]], 0)
    np.testing.assert_array_equal(values[1], [127, -127, 0])
    np.testing.assert_array_equal(values[5], [-127, 42, 0])
    assert np.isfinite(np.multiply(values, scales, dtype=np.float32)[[0, 1, 2, 5]]).all()


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    values, scales = to_int8(np.ones((5, 3), np.float32))
    for kind, pair in {
        "store-shape": [(values, scales[:4]), (values, np.ones((5, 2), np.float32))],
        "store-dtype": [(values.astype(np.float32), scales), (values, scales.astype(np.float16))],
    }.items():
        for one, other in pair:
            with pytest.raises(ooc.StoreError) as error:
                stored(tmp_path, one, other)
            assert error.value.kind == kind


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = stored(tmp_path, *to_int8(np.ones((5, 3), np.float32)))
    store.close()
    with pytest.raises(ooc.StoreError) as error:
        store.take(np.array([1]))
    assert error.value.kind == "store-closed"
    assert "vectors.npy with its scales (5 x 3 float32" in repr(store)
