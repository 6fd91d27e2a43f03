"""tools/make_dataset: the same bytes however they are made, and neighbours that are exact."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import pytest
import zarr

TOOLS = Path(__file__).parents[2] / "tools"
ROWS, DIM = 20_000, 24  # more than a block, and no multiple of a tile


@pytest.fixture(scope="module")
def realistic() -> Iterator[ModuleType]:
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("realistic")
    finally:
        sys.path.remove(str(TOOLS))


def command(out: Path, *more: str, rows: int = ROWS, dim: int = DIM) -> list[str]:
    options = ["--rows", str(rows), "--dim", str(dim), "--out", str(out), "--queries", "30"]
    return [sys.executable, str(TOOLS / "make_dataset"), *options, "--shifted-queries", "20", *more]


def made(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, *more), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "rows.npy"
    assert made(out).returncode == 0
    return out


def test_a_block_depends_on_its_number_and_the_seed_alone(realistic: ModuleType) -> None:
    source = realistic.Realistic(DIM, seed=5)
    source.block(0).rows()
    third = source.block(3).rows()
    again = realistic.Realistic(DIM, seed=5).block(3)
    np.testing.assert_array_equal(again.rows(), third)
    np.testing.assert_array_equal(again.rows(1_000, 1_100), third[1_000:1_100])
    assert not np.array_equal(source.block(4).rows(), third)
    assert not np.array_equal(realistic.Realistic(DIM, seed=6).block(3).rows(), third)


def test_rows_are_unit_vectors_around_a_common_mean(realistic: ModuleType) -> None:
    source = realistic.Realistic(256)
    rows = source.block(0).rows()
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    # Words of the whole collection add to what all rows share.
    assert 0.3 < np.linalg.norm(rows.mean(0)) < 0.6


def test_a_part_of_the_rows_is_far_nearer_than_the_rest_but_no_copy(realistic: ModuleType) -> None:
    rows = realistic.Realistic(256).block(0).rows(0, 4_000)
    products = rows[:100] @ rows.T
    np.fill_diagonal(products, -1)
    nearest = np.partition(products, -10, axis=1)[:, -10]
    assert np.median(products) < 0.3 < 0.4 < nearest.mean() < 0.8


def test_one_process_and_two_make_the_same_bytes(collection: Path, tmp_path: Path) -> None:
    other = tmp_path / "rows.npy"
    assert made(other, "--jobs", "1").returncode == 0
    assert other.read_bytes() == collection.read_bytes()
    queries = "rows.queries.npz"
    assert (tmp_path / queries).read_bytes() == (collection.parent / queries).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_neighbours_are_those_of_exact_search(dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.npy"
    assert made(out, "--dtype", dtype, "--k", "40").returncode == 0
    rows = np.load(out).astype(np.float64)
    assert rows.shape == (ROWS, DIM)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with np.load(tmp_path / "rows.queries.npz") as file:
        assert (file["rows"], file["dim"], file["seed"]) == (ROWS, DIM, 0)
        for prefix, count in (("", 30), ("shifted_", 20)):
            queries, ids = file[prefix + "queries"], file[prefix + "neighbors"]
            assert queries.shape == (count, DIM)
            assert ids.dtype == np.int64
            assert ids.shape == (count, 40)
            products = queries.astype(np.float64) @ rows.T
            found = np.take_along_axis(products, ids, axis=1)
            best = -np.sort(-products, axis=1)[:, :40]
            # Rows closer to one another than float32's rounding may change places.
            np.testing.assert_allclose(found, best, atol=1e-6, rtol=0)
            np.testing.assert_allclose(file[prefix + "similarities"], best, atol=1e-6, rtol=0)
            assert all(len(set(row)) == 40 for row in ids.tolist())


def test_shifted_queries_are_farther_from_the_rows_than_held_out_ones(tmp_path: Path) -> None:
    out = tmp_path / "rows.npy"
    subprocess.run(command(out, dim=256), check=True, capture_output=True)
    with np.load(tmp_path / "rows.queries.npz") as file:
        assert file["shifted_similarities"][:, 0].mean() < file["similarities"][:, 0].mean() - 0.02


def test_fewer_rows_than_neighbours_are_padded(tmp_path: Path) -> None:
    out = tmp_path / "few.npy"
    subprocess.run(command(out, "--k", "9", rows=5), check=True, capture_output=True)
    with np.load(tmp_path / "few.queries.npz") as file:
        assert np.array_equal(np.sort(file["neighbors"][:, :5]), np.tile(np.arange(5), (30, 1)))
        assert (file["neighbors"][:, 5:] == -1).all()


def test_formats_hold_the_same_rows(collection: Path, tmp_path: Path) -> None:
    expected = np.load(collection)
    for suffix in (".fbin", ".h5", ".zarr"):
        run = made(tmp_path / f"rows{suffix}", "--force")
        assert run.returncode == 0, run.stderr
    raw = (tmp_path / "rows.fbin").read_bytes()
    assert np.frombuffer(raw, np.uint32, 2).tolist() == [ROWS, DIM]
    np.testing.assert_array_equal(np.frombuffer(raw, np.float32, offset=8).reshape(ROWS, DIM), expected)
    with h5py.File(tmp_path / "rows.h5") as file:
        assert file["vectors"].chunks is None
        np.testing.assert_array_equal(file["vectors"][:], expected)
    array = zarr.open_array(tmp_path / "rows.zarr", mode="r")
    assert not array.compressors
    np.testing.assert_array_equal(np.asarray(array[:]), expected)


def test_making_again_does_nothing_and_replacing_must_be_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "rows.npy"
    assert made(out).returncode == 0
    before = out.stat().st_mtime_ns
    assert made(out).returncode == 0
    assert out.stat().st_mtime_ns == before
    refused = made(out, "--seed", "1")
    assert refused.returncode == 7
    assert "--force" in refused.stderr
    assert out.stat().st_mtime_ns == before
    first = np.load(out)
    assert made(out, "--seed", "1", "--force").returncode == 0
    assert not np.array_equal(np.load(out), first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.npy", "rows.queries.npz"]


def test_an_unknown_ending_is_refused(tmp_path: Path) -> None:
    refused = made(tmp_path / "rows.csv")
    assert refused.returncode == 2
    assert ".zarr" in refused.stderr
    assert not list(tmp_path.iterdir())


#: Runs a command and prints the largest resident set of what ran. A process of its own: the figure begins
#: with that of the process that starts the command, and this one is small.
_MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_collection(tmp_path: Path) -> None:
    peaks = []
    for rows in (20_000, 150_000):
        making = command(tmp_path / f"{rows}.npy", "--jobs", "1", rows=rows, dim=256)
        told = subprocess.check_output([sys.executable, "-c", _MEASURED, *map(str, making)], text=True)
        status, peak = map(int, told.split())
        assert status == 0
        peaks.append(peak * (1 if sys.platform == "darwin" else 1024))
    # The largest of the process and its workers; the rows added are 133 MB.
    assert peaks[1] - peaks[0] < 30e6
    assert peaks[1] < 450e6
