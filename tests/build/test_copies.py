"""Rows of the index's own in a smaller dtype: what is kept, what is said to be lost, what searches give."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import ooc
from ooc import build
from ooc.index.layout import Layout
from ooc.types import AnyArray, FloatArray, Metric
from tests.build.test_build import stop_after
from tests.helpers import embeddings, exact_search, recall, tree

DTYPES = ("float16", "int8")


def copied(store: Any, index: Path, dtype: str, **settings: Any) -> dict[str, Any]:
    return build(
        store, index, **{"memory": "400MiB", "factory": "IVF32,SQ8", "copy_dtype": dtype, **settings}
    )


def segment(index: Path) -> dict[str, Any]:
    return dict(json.loads((index / "segments/s1/segment.json").read_text()))


def decoded(x: AnyArray, dtype: str) -> FloatArray:
    """What a copy of ``x`` holds, in plain numpy."""
    x = x.astype(np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    scales = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.round(x / scales)) * scales


def relative_error(x: AnyArray, copy: AnyArray) -> float:
    error = copy.astype(np.float64) - x
    return float(np.sqrt((error**2).sum() / (x.astype(np.float64) ** 2).sum()))


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize(("dtype", "least", "error"), [("float16", 0.99, 3e-4), ("int8", 0.94, 1e-2)])
def test_search_finds_nearly_what_exact_rows_would(
    dtype: str,
    least: float,
    error: float,
    metric: Metric,
    x: FloatArray,
    xq: FloatArray,
    npy_of: Callable[[AnyArray], Path],
    tmp_path: Path,
) -> None:
    path = npy_of(x)
    copied(path, tmp_path / "i", dtype, metric=metric)
    path.rename(tmp_path / "away.npy")
    kept = decoded(x, dtype)
    exact, rows = exact_search(x, xq, 10, metric)
    of_kept, kept_rows = exact_search(kept, xq, 10, metric)
    with ooc.open_index(tmp_path / "i") as index:
        for rerank in (500, len(x)):
            found, ids = index.search(xq, 10, nprobe=index.nlist, rerank=rerank)
            assert recall(ids, rows) >= least
            assert recall(ids, kept_rows) >= 0.999
            np.testing.assert_allclose(found, of_kept, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found, exact, rtol=10 * error, atol=10 * error)
    assert 0 < segment(tmp_path / "i")["copy_error"] <= error
    with ooc.open_index(tmp_path / "i", store=tmp_path / "away.npy") as index:
        found, ids = index.search(xq, 10, nprobe=index.nlist, rerank=len(x))
        np.testing.assert_array_equal(ids, rows)  # from the store itself nothing is lost


@pytest.mark.parametrize("dtype", DTYPES)
def test_reconstruct_and_range_search_give_what_the_copy_holds(
    dtype: str, x: FloatArray, xq: FloatArray, npy: Path, tmp_path: Path
) -> None:
    copied(npy, tmp_path / "i", dtype)
    kept = decoded(x, dtype)
    with ooc.open_index(tmp_path / "i") as index:
        rows = np.array([4999, 0, 17, 17])
        np.testing.assert_array_equal(index.reconstruct(rows), kept[rows])
        radius = float(np.median(exact_search(kept, xq[:5], 20, "l2")[0][:, -1]))
        lims, found, ids = index.range_search(xq[:5], radius, nprobe=index.nlist)
    for i, query in enumerate(xq[:5].astype(np.float64)):
        distances = ((kept - query) ** 2).sum(axis=1)
        near = np.flatnonzero(distances < radius)
        np.testing.assert_array_equal(np.sort(ids[lims[i] : lims[i + 1]]), near)
        np.testing.assert_allclose(found[lims[i] : lims[i + 1]], np.sort(distances[near]), rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored", ["float32", "float64", "bfloat16"])
def test_the_error_is_that_of_numpy(
    stored: str, dtype: str, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    x: AnyArray = embeddings(3000, 24) * np.float32(3)
    if stored == "bfloat16":
        x = x.astype(pytest.importorskip("ml_dtypes").bfloat16)
        store: Any = x
    else:
        x = x.astype(stored)
        store = npy_of(x)
    copied(store, tmp_path / "i", dtype)
    x = x.astype(np.float32)
    expected = relative_error(x, decoded(x, dtype))
    assert segment(tmp_path / "i")["copy_error"] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_files_are_as_the_page_of_the_format_says(x: FloatArray, npy: Path, tmp_path: Path) -> None:
    made = ooc.plan(npy, memory="400MiB", factory="IVF32,SQ8", copy_dtype="int8")
    copied(npy, tmp_path / "i", "int8")
    place = tmp_path / "i/segments/s1"
    values, scales = np.load(place / "vectors.npy"), np.load(place / "scales.npy")
    assert (values.dtype, scales.dtype, scales.shape) == (np.int8, np.float32, (5000, 1))
    np.testing.assert_array_equal(values * scales, decoded(x, "int8"))
    recorded: dict[str, list[str]] = {}
    for line in (place / "blocks.xxh3").read_text().splitlines():
        digest, name, _ = line.split()
        recorded.setdefault(name, []).append(digest)
    for name, array in (("vectors.npy", values), ("scales.npy", scales)):
        blocks = [array[i : i + 1024].tobytes() for i in range(0, len(x), 1024)]
        assert recorded[name] == [xxhash.xxh3_128_hexdigest(block) for block in blocks]
        part = name.removesuffix(".npy")
        assert made.index_bytes[part] == array.nbytes == (place / name).stat().st_size - 4096
    assert json.loads((tmp_path / "i/ooc.json").read_text())["features"] == ["scaled-rows"]
    assert set(recorded) | {"blocks.xxh3"} == set(segment(tmp_path / "i")["bytes"])


def test_a_copy_as_float16_is_a_plain_file_of_half_the_size(x: FloatArray, npy: Path, tmp_path: Path) -> None:
    whole = ooc.plan(npy, memory="400MiB", copy_vectors="always")
    half = ooc.plan(npy, memory="400MiB", copy_dtype="float16")
    assert 2 * half.index_bytes["vectors"] == whole.index_bytes["vectors"]
    assert dict(half.memory_by_stage) == dict(whole.memory_by_stage)
    copied(npy, tmp_path / "i", "float16")
    np.testing.assert_array_equal(
        np.load(tmp_path / "i/segments/s1/vectors.npy"), decoded(x, "float16").astype(np.float16)
    )
    assert json.loads((tmp_path / "i/ooc.json").read_text())["features"] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bytes_however_the_work_is_cut(dtype: str, x: FloatArray, npy: Path, tmp_path: Path) -> None:
    import zarr

    settings: list[dict[str, Any]] = [
        {"threads": 1},
        {"threads": 2, "shard_rows": 1024, "memory": "2GiB"},
        {"threads": 2, "shard_rows": 3000, "copy_vectors": "always"},
    ]
    for number, setting in enumerate(settings):
        copied(npy, tmp_path / str(number), dtype, **setting)
        assert tree(tmp_path / str(number)) == tree(tmp_path / "0")
    zarr.create_array(str(tmp_path / "x.zarr"), data=x, chunks=(700, 48))
    copied(tmp_path / "x.zarr", tmp_path / "decoded", dtype, threads=2, shard_rows=2048)
    assert segment(tmp_path / "decoded") == segment(tmp_path / "0")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stopped_build_goes_on_and_ends_with_the_same_bytes(
    dtype: str, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    copied(path, tmp_path / "whole", dtype, shard_rows=24_576)
    stops = 0
    for rows in (1, 18_000, 40_000):
        event = threading.Event()
        try:
            copied(path, tmp_path / "i", dtype, stop=event, observer=stop_after(rows, event))
        except ooc.Stopped:
            stops += 1
    ooc.fill(path, tmp_path / "i", memory="900MiB", threads=1)
    copied(path, tmp_path / "i", dtype)
    assert stops
    assert tree(tmp_path / "i") == tree(tmp_path / "whole")


KILLED = """
import sys, os, signal
from ooc import build
from ooc.events import Progress
def observe(event):
    if isinstance(event, Progress) and event.stage == "fill" and event.done >= 35_000:
        os.kill(os.getpid(), signal.SIGKILL)
build(sys.argv[1], sys.argv[2], memory="400MiB", factory="IVF32,SQ8", shard_rows=16384,
      copy_dtype=sys.argv[3], observer=observe)
"""


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
    dtype: str, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(tmp_path / "i"), dtype], check=False, timeout=60
    )
    assert run.returncode == -signal.SIGKILL
    copied(path, tmp_path / "i", dtype)
    copied(path, tmp_path / "whole", dtype)
    assert tree(tmp_path / "i") == tree(tmp_path / "whole")


def test_several_processes_share_the_files_of_the_copy(
    npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    copied(path, tmp_path / "one", "int8")
    copied(path, tmp_path / "two", "int8", workers=2, memory="1GiB", threads=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize(
    ("stored", "settings", "error"),
    [
        ("float32", {"copy_dtype": "int8", "copy_vectors": "never"}, ooc.ArgumentError),
        ("float32", {"copy_dtype": "float64"}, ooc.ArgumentError),
        ("int8", {"copy_dtype": "float16"}, ooc.PlanError),
        ("uint8", {"copy_dtype": "float16"}, ooc.PlanError),
        ("uint8", {"copy_dtype": "int8"}, ooc.PlanError),
    ],
)
def test_what_makes_no_sense_is_refused(
    stored: str, settings: dict[str, Any], error: type[ooc.OocError], tmp_path: Path
) -> None:
    x = np.arange(600).reshape(100, 6).clip(0, 100).astype(stored)
    for function in (ooc.plan, lambda store, **more: build(store, tmp_path / "i", **more)):
        with pytest.raises(error) as raised:
            function(x, memory="400MiB", **settings)
        assert raised.value.kind == "copy_dtype"
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("stored", DTYPES)
def test_the_dtype_that_the_store_has_is_that_of_the_store(
    stored: str, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of((embeddings(2000, 16) * 20).clip(-120, 120).astype(stored))
    copied(path, tmp_path / "asked", stored)
    copied(path, tmp_path / "always", "store", copy_vectors="always")
    assert tree(tmp_path / "asked") == tree(tmp_path / "always")
    assert "copy_error" not in segment(tmp_path / "asked")


def test_a_dtype_asks_for_a_copy_and_is_part_of_the_plan(npy: Path) -> None:
    plain, small = (ooc.plan(npy, memory="400MiB", copy_dtype=dtype) for dtype in ("store", "int8"))
    assert (plain.copy_vectors, small.copy_vectors) == (False, True)
    whole = ooc.plan(npy, memory="400MiB", copy_vectors="always")
    assert len({plain.digest, small.digest, whole.digest}) == 3
    assert "copy_dtype" not in plain.identity
    assert small.identity["copy_dtype"] == "int8"
    assert ooc.Plan.from_record(small.to_record()) == small


def test_another_dtype_in_the_same_place_is_refused(npy: Path, tmp_path: Path) -> None:
    copied(npy, tmp_path / "i", "int8")
    assert copied(npy, tmp_path / "i", "int8")["already_built"]
    for dtype in ("float16", "store"):
        with pytest.raises(ooc.ConflictError, match="copy_dtype") as error:
            copied(npy, tmp_path / "i", dtype)
        assert error.value.kind == "index-exists"


def test_a_value_beyond_float16_is_refused_and_fits_int8(
    x: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    some = x.copy()
    some[4321, 7] = 70_000
    path = npy_of(some)
    with pytest.raises(ooc.DataError, match="row 4321 holds 70000") as error:
        copied(path, tmp_path / "half", "float16")
    assert error.value.kind == "value-range"
    assert "int8" in str(error.value)
    copied(path, tmp_path / "i", "int8")
    with ooc.open_index(tmp_path / "i") as index:
        assert index.reconstruct([4321])[0, 7] == pytest.approx(70_000, rel=1e-6)
        np.testing.assert_array_equal(index.reconstruct([5]), decoded(x[5:6], "int8"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_left_out_do_not_count_and_zero_rows_stay_zero(
    dtype: str, x: FloatArray, xq: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    some = x.copy()
    some[[3, 2000], 5] = np.nan, -np.inf
    some[7] = 0
    copied(npy_of(some), tmp_path / "i", dtype, on_bad="skip", metric="cosine")
    good = np.setdiff1d(np.arange(5000), [3, 2000])
    expected = relative_error(some[good], decoded(some[good], dtype))
    assert segment(tmp_path / "i")["copy_error"] == pytest.approx(expected, rel=1e-9)
    with ooc.open_index(tmp_path / "i") as index:
        assert not np.isfinite(index.reconstruct([3, 2000])).all(axis=1).any()
        np.testing.assert_array_equal(index.reconstruct([7]), 0)
        _, ids = index.search(xq, 10, nprobe=index.nlist, rerank=5000)
    assert np.isin(ids, good).all()


def test_a_collection_of_zeros_loses_nothing(tmp_path: Path) -> None:
    copied(np.zeros((50, 8), np.float32), tmp_path / "i", "int8", factory="IVF2,Flat")
    assert segment(tmp_path / "i")["copy_error"] == 0


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_scales_that_are_missing_or_cut_short_are_said(damage: str, npy: Path, tmp_path: Path) -> None:
    copied(npy, tmp_path / "i", "int8")
    scales = Layout.of(tmp_path / "i").segment("s1").scales
    if damage == "missing":
        scales.unlink()
    else:
        scales.write_bytes(scales.read_bytes()[:-4])
    with pytest.raises(ooc.IndexDirError, match=r"scales\.npy") as error:
        ooc.open_index(tmp_path / "i")
    assert error.value.kind == "index-damaged"
