"""Fixtures that tests of several parts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from ooc.types import AnyArray, FloatArray
from tests.helpers import embeddings
from tests.trust_counts import counted, pytest_terminal_summary

__all__ = ["counted", "pytest_terminal_summary"]

# No test asserts a time: a machine that is busy, or stopped for a while, is slow.
settings.register_profile(
    "ooc",
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("ooc")


@pytest.fixture(scope="session")
def x() -> FloatArray:
    """5 000 x 48 rows."""
    return embeddings(5040, 48)[:5000].copy()


@pytest.fixture(scope="session")
def xq() -> FloatArray:
    """40 queries of the same kind."""
    return embeddings(5040, 48, seed=0)[5000:] + np.float32(0.01)


@pytest.fixture(scope="session")
def npy(x: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``x`` in a file."""
    path = tmp_path_factory.mktemp("store") / "x.npy"
    np.save(path, x)
    return path


@pytest.fixture
def npy_of(tmp_path: Path) -> Callable[[AnyArray], Path]:
    """Writes an array to a file of its own."""

    def write(array: AnyArray) -> Path:
        path = tmp_path / f"x{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, array)
        return path

    return write
