"""Answers of faiss and of ours, held against each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ooc.index.layout import Layout
from ooc.types import FloatArray, IntArray
from tests.helpers import rewrite


def nearest_first(index: Path) -> None:
    """Let an index look into its lists in faiss's order: nearest centroid first, all compared."""
    layout = Layout.of(index)
    rewrite(layout.generation(layout.published()), order={"handicap": 0.0, "sketch": False})


def assert_same_answers(
    ours: tuple[FloatArray, IntArray], theirs: tuple[FloatArray, IntArray], *, atol: float = 1e-4
) -> None:
    """Equal distances, and equal ids wherever no other row is as far."""
    (d0, i0), (d1, i1) = ours, theirs
    assert d0.shape == d1.shape
    there = i0 >= 0
    np.testing.assert_array_equal(there, i1 >= 0)
    np.testing.assert_allclose(d0[there], d1[there], rtol=1e-4, atol=atol)
    for line, (a, b) in enumerate(zip(i0, i1, strict=True)):
        # The last ones may be as far as some that were left out.
        sure = np.abs(d0[line] - d0[line, -1]) > 10 * atol
        assert set(a[sure].tolist()) <= set(b.tolist()), line
        assert sure.sum() >= len(a) // 2 or not there[line].all(), line
