"""What is imported on the way to the first answer: a service and a command line start quickly.

Each case is a process of its own, which says what it imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

import ooc
from ooc.types import FloatArray

#: Libraries that take long to import, and the parts of this package that only some calls need.
_HEAVY = {
    "aiohttp",
    "faiss",
    "fsspec",
    "h5py",
    "ml_dtypes",
    "numpy",
    "ooc.build.pipeline",
    "ooc.build.plan",
    "ooc.cli",
    "ooc.search.searcher",
    "ooc.stores.convert",
    "ooc.stores.write",
    "pyarrow",
    "pyroaring",
    "rich",
    "threadpoolctl",
    "zarr",
}
#: What an answer takes.
_ANSWER = {"faiss", "numpy", "ooc.search.searcher"}


def imported(script: str, *arguments: str | Path) -> set[str]:
    """Which of the heavy modules a script has imported when it ends."""
    told = "\nimport json, sys; print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script + told, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return _HEAVY & set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture(scope="module")
def stores(x: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same rows in each format that is mapped, and in one that is read through its library."""
    root = tmp_path_factory.mktemp("stores")
    np.save(root / "x.npy", x)
    with h5py.File(root / "x.h5", "w") as file:
        file["x"] = x
    zarr.create_array(root / "x.zarr", data=x, chunks=(1000, 48), compressors=None)
    return {name: str(root / f"x.{name}") for name in ("npy", "h5", "zarr")} | {"h5": f"{root / 'x.h5'}::/x"}


_SEARCH = """
import sys, ooc
import numpy as np
with ooc.open_index(sys.argv[1]) as index:
    index.search(np.ones((2, 48), np.float32), 5)
    index.search(np.ones((2, 48), np.float32), 5, filter=range(100))
"""


def test_importing_the_package_imports_no_library() -> None:
    assert imported("import ooc; ooc.OocError; ooc.build; ooc.__version__") == set()


@pytest.mark.parametrize(("name", "library"), [("npy", set()), ("h5", {"h5py"}), ("zarr", set())])
def test_an_answer_imports_no_more_than_the_library_of_its_store(
    name: str, library: set[str], stores: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "i"
    ooc.build(stores[name], path, memory="400MiB", factory="IVF16,SQ8")
    assert imported(_SEARCH, path) <= _ANSWER | library


@pytest.mark.parametrize("name", ["npy", "h5", "zarr"])
def test_an_index_with_rows_of_its_own_needs_no_library(
    name: str, stores: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "i"
    ooc.build(stores[name], path, memory="400MiB", factory="IVF16,SQ8", copy_vectors="always")
    assert imported(_SEARCH, path) == _ANSWER


_COMMAND = """
import sys
from ooc.cli.main import main
assert main(sys.argv[1:]) == 0
"""


def test_the_search_command_imports_what_an_answer_takes(npy: Path, tmp_path: Path) -> None:
    path = tmp_path / "i"
    ooc.build(npy, path, memory="400MiB", factory="IVF16,SQ8")
    taken = imported(_COMMAND, "search", path, npy, "--first", "2")
    assert taken == _ANSWER | {"ooc.cli"}


@pytest.mark.parametrize("arguments", [("help",), ("build", "--help"), ("--version",)])
def test_help_imports_no_numbers(arguments: tuple[str, ...]) -> None:
    taken = imported(_COMMAND, *arguments)
    assert not taken & {"numpy", "faiss", "h5py", "zarr"}
