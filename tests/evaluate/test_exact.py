"""Exact neighbours out of core against numpy's, in every format, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ooc
from ooc import events
from ooc.evaluation.neighbours import read_neighbours
from ooc.search.sweep import Sweep
from ooc.types import AnyArray, FloatArray, IntArray, Metric
from ooc.units import MIB, parse_bytes
from tests.helpers import embeddings, exact_search

METRICS: tuple[Metric, ...] = ("l2", "ip", "cosine")


def same_up_to_rounding(
    x: AnyArray, xq: AnyArray, ids: IntArray, distances: FloatArray, k: int, metric: str
) -> None:
    """Distances are numpy's; where an id is another one, the two rows are equally near but for rounding."""
    expected, rows = exact_search(x, xq, k, metric)
    np.testing.assert_allclose(distances, expected, rtol=3e-5, atol=1e-5)
    assert (ids == rows).mean() > 0.99
    assert all(len(set(line)) == len(line) for line in ids.tolist())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 10, 100])
def test_neighbours_are_those_of_numpy(x: FloatArray, xq: FloatArray, metric: Metric, k: int) -> None:
    distances, ids = ooc.exact(x, xq, k=k, metric=metric)
    assert (distances.dtype, ids.dtype, ids.shape) == (np.float32, np.int64, (40, k))
    same_up_to_rounding(x, xq, ids, distances, k, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_results_are_those_of_an_exhaustive_search_to_the_bit(
    x: FloatArray, xq: FloatArray, metric: Metric, tmp_path: Path
) -> None:
    ooc.build(x, tmp_path / "x.ooc", metric=metric, factory="IVF16,SQ8", copy_vectors="always")
    with ooc.open_index(tmp_path / "x.ooc") as index:
        expected = index.search(xq, 20, nprobe=index.nlist, rerank=index.n)
    distances, ids = ooc.exact(x, xq, k=20, metric=metric)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(distances, expected[0])


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8"])
def test_dtypes_of_a_store(x: FloatArray, xq: FloatArray, dtype: str) -> None:
    rows = (20 * x[:1000]).clip(0 if dtype == "uint8" else -100, 100).astype(dtype)
    distances, ids = ooc.exact(rows, 20 * xq, k=5)
    same_up_to_rounding(rows, 20 * xq, ids, distances, 5, "l2")


@given(
    n=st.integers(1, 400),
    d=st.integers(1, 40),
    nq=st.integers(1, 30),
    k=st.integers(1, 30),
    block=st.integers(1, 150),
    values=st.integers(1, 3),
    shift=st.sampled_from([0, 1000]),
    metric=st.sampled_from(METRICS),
    own=st.booleans(),
    seed=st.integers(0, 9),
)
def test_ties_are_in_the_order_of_ids_whatever_the_blocks(
    n: int, d: int, nq: int, k: int, block: int, values: int, shift: int, metric: Metric, own: bool, seed: int
) -> None:
    """Small whole numbers: many rows are equal or equally far, and distances are exact in float32."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-values, values + 1, (n, d)) + shift * (metric == "l2")).astype(np.float32)
    which = rng.integers(0, n, nq)
    xq = x[which]
    if metric == "cosine":
        # Of equal length, so that cosines of equal products are equal; queries of unit length would
        # round the products.
        x = np.sign(x + np.float32(0.5))
        xq = x[which]
    sweep = Sweep(xq, k, metric, which if own else None)
    starts = list(range(0, n, block))
    rng.shuffle(starts)
    for start in starts:
        sweep.take(sweep.look_at(start, x[start : start + block], np.empty(0, np.int64)))
    distances, ids = sweep.result()
    a, b = x.astype(np.int64), x[which].astype(np.int64)
    key = ((a[None] - b[:, None]) ** 2).sum(axis=2) if metric == "l2" else -(b @ a.T)
    for i in range(nq):
        order = np.argsort(key[i], kind="stable")
        order = order[order != which[i]] if own else order
        expected = np.full(k, -1)
        expected[: min(k, len(order))] = order[:k]
        np.testing.assert_array_equal(ids[i], expected)
    assert np.isinf(distances[ids < 0]).all()


def test_far_from_the_origin_nothing_is_lost() -> None:
    """A product of rows with a large common offset has an error far above the differences of distances."""
    x = embeddings(2000, 32) + np.float32(1000)
    xq = x[:50] + np.float32(0.25)
    distances, ids = ooc.exact(x, xq, k=10)
    same_up_to_rounding(x, xq, ids, distances, 10, "l2")


@pytest.mark.parametrize("scale", [1e-25, 1e18, 1e30])
def test_very_small_and_very_large_values(scale: float) -> None:
    x = (embeddings(500, 16) * scale).astype(np.float32)
    distances, ids = ooc.exact(x, x[:20], k=5, metric="cosine")
    same_up_to_rounding(x, x[:20], ids, distances, 5, "cosine")
    assert (ids[:, 0] == np.arange(20)).all()
    if scale < 1e19:
        _, ids = ooc.exact(x, x[:20], k=1, rows=np.full(20, -1))
        assert len(ids) == 20


def test_zero_rows_have_a_cosine_of_zero() -> None:
    x = np.zeros((6, 4), np.float32)
    x[1], x[4] = 1, -1
    distances, ids = ooc.exact(x, np.ones((1, 4), np.float32), k=6, metric="cosine")
    assert ids.tolist() == [[1, 0, 2, 3, 5, 4]]
    np.testing.assert_allclose(distances, [[1, 0, 0, 0, 0, -1]], rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_row_is_left_out_of_its_own_answer(x: FloatArray, metric: Metric) -> None:
    some = np.array([4999, 7, 0, 7])
    distances, ids = ooc.exact(x, rows=some, k=8, metric=metric)
    all_distances, all_ids = ooc.exact(x, x[some], k=9, metric=metric)
    for i, row in enumerate(some):
        kept = all_ids[i] != row
        np.testing.assert_array_equal(ids[i], all_ids[i][kept][:8])
        np.testing.assert_array_equal(distances[i], all_distances[i][kept][:8])


def test_queries_of_which_some_are_rows(x: FloatArray) -> None:
    _, ids = ooc.exact(x, x[:3], rows=[0, -1, 2], k=1)
    assert (ids[:, 0] == [0, 1, 2]).tolist() == [False, True, False]


def test_fewer_rows_than_k_are_padded(x: FloatArray) -> None:
    distances, ids = ooc.exact(x[:3], x[:2], k=5, rows=range(2))
    assert (ids >= 0).sum(axis=1).tolist() == [2, 2]
    assert (ids[:, 2:] == -1).all()
    assert np.isposinf(distances[:, 2:]).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_passes_and_threads_change_nothing(threads: int, npy: Path, xq: FloatArray, tmp_path: Path) -> None:
    """A budget that holds some of the queries: several passes, with the same bytes."""
    x = np.load(npy)
    queries = np.repeat(xq, 40, axis=0)
    expected = ooc.exact(x, queries, k=200)
    options: dict[str, Any] = {"k": 200, "threads": threads, "out": tmp_path / "o.npz"}
    with pytest.raises(ooc.PlanError) as caught:
        ooc.exact(npy, queries, memory="80MiB", **options)
    assert caught.value.kind == "memory-too-small"
    least = parse_bytes(str(caught.value.hint).removeprefix("Give it at least ").removesuffix("."))
    figures = ooc.exact(npy, queries, memory=least + 6 * MIB, **options)
    assert figures["passes"] > 1
    assert figures["nq"] == 1600
    with np.load(tmp_path / "o.npz") as file:
        np.testing.assert_array_equal(file["ids"], expected[1])
        np.testing.assert_array_equal(file["distances"], expected[0])


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".npy", ".ivecs", ".zarr", ".parquet"])
def test_files_hold_what_is_returned(suffix: str, x: FloatArray, xq: FloatArray, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    distances, ids = ooc.exact(x, xq, k=7, metric="ip")
    figures = ooc.exact(x, xq, k=7, metric="ip", out=tmp_path / f"truth{suffix}")
    assert (figures["nq"], figures["k"], figures["rows"]) == (40, 7, 5000)
    json.dumps(figures, allow_nan=False)
    np.testing.assert_array_equal(read_neighbours(tmp_path / f"truth{suffix}"), ids)
    if suffix == ".h5":
        with h5py.File(tmp_path / "truth.h5") as file:
            np.testing.assert_array_equal(file["neighbors"][:], ids)
            np.testing.assert_array_equal(file["distances"][:], distances)
    if suffix == ".ivecs":
        lines = np.fromfile(tmp_path / "truth.ivecs", "<i4").reshape(40, 8)
        assert (lines[:, 0] == 7).all()
    with pytest.raises(ooc.ConflictError) as caught:
        ooc.exact(x, xq, out=tmp_path / f"truth{suffix}")
    assert caught.value.kind == "out-exists"
    ooc.exact(x, xq, k=3, out=tmp_path / f"truth{suffix}", overwrite=True)
    assert read_neighbours(tmp_path / f"truth{suffix}").shape == (40, 3)


def test_rows_with_nan_stop_or_are_passed_over(x: FloatArray, xq: FloatArray) -> None:
    bad = x[:300].copy()
    bad[17, 3], bad[200, 0] = np.nan, np.inf
    with pytest.raises(ooc.DataError, match="row 17 of") as caught:
        ooc.exact(bad, xq, k=3)
    assert caught.value.kind == "bad-rows"
    seen: list[events.Event] = []
    _, ids = ooc.exact(bad, xq, k=298, on_bad="skip", observer=seen.append)
    assert not np.isin([17, 200, -1], ids).any()
    assert [e.kind for e in seen if isinstance(e, events.Note)] == ["rows-skipped"]


def test_events_are_told(npy: Path, xq: FloatArray) -> None:
    seen: list[events.Event] = []
    ooc.exact(npy, xq, k=3, observer=seen.append)
    assert isinstance(seen[0], events.Started)
    assert isinstance(seen[-1], events.Finished)
    done = [event.done for event in seen if isinstance(event, events.Progress)]
    assert done == sorted(done)
    assert done[-1] == 5000


def test_a_stop_leaves_nothing(npy: Path, xq: FloatArray, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(ooc.Stopped):
        ooc.exact(npy, xq, out=tmp_path / "o.h5", stop=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "kind"),
    [
        ({"k": 0}, ooc.ArgumentError, "k"),
        ({"metric": "l3"}, ooc.ArgumentError, "metric"),
        ({"threads": 0}, ooc.ArgumentError, "threads"),
        ({"on_bad": "look"}, ooc.ArgumentError, "on_bad"),
        ({"rows": [1]}, ooc.ArgumentError, "rows"),
        ({"rows": [5000] * 40}, ooc.ArgumentError, "rows"),
        ({"memory": "64MiB"}, ooc.PlanError, "memory-too-small"),
        ({"memory": "much"}, ooc.ArgumentError, "size"),
        ({"out": "truth.txt"}, ooc.ArgumentError, "out-name"),
        ({"out": "/nowhere/truth.h5"}, ooc.ArgumentError, "directory-missing"),
        ({"queries": None}, ooc.ArgumentError, "queries"),
        ({"queries": np.ones((2, 3), np.float32)}, ooc.DataError, "query-shape"),
        ({"queries": np.full((2, 48), np.nan, np.float32)}, ooc.DataError, "query-values"),
    ],
    ids=str,
)
def test_what_is_refused(
    options: dict[str, Any], error: type[ooc.OocError], kind: str, x: FloatArray, xq: FloatArray
) -> None:
    with pytest.raises(error) as caught:
        ooc.exact(x, **{"queries": xq, **options})
    assert caught.value.kind == kind


def test_the_output_is_not_the_source(npy: Path, xq: FloatArray) -> None:
    with pytest.raises(ooc.ArgumentError) as caught:
        ooc.exact(npy, xq, out=npy, overwrite=True)
    assert caught.value.kind == "same-path"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("gone.npy", None, "store-missing"),
        ("truth.txt", b"1 2 3", "store-format"),
        ("truth.npy", b"not one", "store-format"),
        ("truth.npz", b"not one", "store-format"),
        ("truth.h5", b"not one", "store-format"),
        ("truth.ivecs", np.array([3, 1, 2], "<i4").tobytes(), "store-format"),
        ("truth.ivecs", np.array([1, 5, 2, 6], "<i4").tobytes(), "store-format"),
        ("truth.ivecs", b"", "store-format"),
    ],
)
def test_files_that_hold_no_neighbours(name: str, content: bytes | None, kind: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ooc.StoreError) as caught:
        read_neighbours(tmp_path / name)
    assert caught.value.kind == kind


def test_arrays_that_are_no_neighbours(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.arange(5))
    np.save(tmp_path / "floats.npy", np.ones((2, 2)))
    np.savez(tmp_path / "named.npz", other=np.ones((2, 2), int))
    for name in ("flat.npy", "floats.npy"):
        with pytest.raises(ooc.DataError) as caught:
            read_neighbours(tmp_path / name)
        assert caught.value.kind == "ground-truth"
    with pytest.raises(ooc.StoreError, match="holds other") as missing:
        read_neighbours(tmp_path / "named.npz")
    assert missing.value.kind == "dataset-missing"


_PEAK = """
import json, sys, threading
import ooc
from ooc.mapping import private_bytes
peak, over = [0], threading.Event()
def watch():
    while not over.wait(0.002): peak[0] = max(peak[0], private_bytes())
thread = threading.Thread(target=watch); thread.start()
figures = ooc.exact(sys.argv[1], rows=range(20_000), k=100, out=sys.argv[2], memory=int(sys.argv[3]))
over.set(); thread.join()
print(json.dumps([peak[0], figures["passes"]]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="private memory is read from /proc")
@pytest.mark.parametrize("name", ["x.npy", "x.h5"])
def test_private_memory_stays_within_the_budget(name: str, tmp_path: Path) -> None:
    """More queries than the budget holds, of a mapped store and of one that is decoded."""
    x = embeddings(20_000, 64)
    if name == "x.npy":
        np.save(tmp_path / name, x)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("x", data=x, chunks=(2000, 64), compression="gzip", compression_opts=1)
    budget = 160 << 20
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(tmp_path / name), str(tmp_path / "o.npy"), str(budget)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, passes = json.loads(done.stdout)
    assert passes > 1
    assert peak <= budget
    ids = np.load(tmp_path / "o.npy")
    some = np.arange(0, 20_000, 997)
    np.testing.assert_array_equal(ids[some], ooc.exact(x, rows=some, k=100)[1])


def test_an_archive_that_was_cut_short_is_said(tmp_path: Path) -> None:
    path = tmp_path / "truth.npz"
    np.savez(path, neighbors=np.arange(1000).reshape(100, 10))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ooc.StoreError, match="cannot be read") as error:
        read_neighbours(path)
    assert error.value.kind == "store-format"
