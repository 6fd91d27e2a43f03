"""What the tests of the command line share: a small collection, and an index of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from .process import FLAT, run


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``x.npy`` (3000 x 16), ``q.npy`` (the first 5 rows), and ``my.ooc``, never changed."""
    directory = tmp_path_factory.mktemp("cli")
    x = np.random.default_rng(7).standard_normal((3000, 16), dtype=np.float32)
    np.save(directory / "x.npy", x)
    np.save(directory / "q.npy", x[:5])
    done = run("build", "x.npy", "my.ooc", *FLAT, cwd=directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def here(collection: Path, tmp_path: Path) -> Path:
    """A directory of the test's own with the same two stores."""
    for name in ("x.npy", "q.npy"):
        shutil.copy(collection / name, tmp_path)
    return tmp_path
