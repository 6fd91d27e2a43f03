"""Rotations by matrix products are those of faiss."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from ooc.engine.rotation import Rotation
from tests.helpers import embeddings


@pytest.mark.parametrize("d", [1, 2, 3, 8, 50, 64, 200, 1024])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_rows_are_rotated_as_faiss_does(d: int, rows: int) -> None:
    step = faiss.HadamardRotation(d, 7)
    x = embeddings(max(rows, 1), d)[:rows]
    ours = Rotation(step).apply(x)
    theirs = step.apply(x) if rows else np.empty((0, step.d_out), np.float32)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_row_has_the_same_bits_in_any_block_of_the_same_place() -> None:
    x = embeddings(512, 64)
    rotation = Rotation(faiss.HadamardRotation(64, 7))
    whole = rotation.apply(x)
    np.testing.assert_array_equal(rotation.apply(x[128:256].copy()), whole[128:256])
