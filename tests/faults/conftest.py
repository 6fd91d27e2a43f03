"""The server that forks, and places on a disk that is quick to sync."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ooc.testing.forked import Server
from tests.faults.case import Case
from tests.faults.operations import on_memory_disk


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server(["tests.faults.operations", "tests.faults.child"]) as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory for one operation after another."""
    root = Path(tempfile.mkdtemp(prefix="ooc-faults-", dir=on_memory_disk() or tmp_path))
    yield root / "place"
    shutil.rmtree(root)


@pytest.fixture
def case(request: pytest.FixtureRequest, place: Path, server: Server) -> Case:
    return Case(request.param, place, server)
