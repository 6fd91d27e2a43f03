"""Building: what comes out is right, the same however it came about, and nothing is lost on the way."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import ooc
from ooc import build
from ooc.build.fill import shards_done
from ooc.build.watch import MemoryWatch
from ooc.events import Event, Note, Progress, StageFinished, Started
from ooc.index.layout import BuildLayout, Layout
from ooc.types import AnyArray, FloatArray
from tests.helpers import embeddings, exact_search, recall, tree

CODES = ["Flat", "SQ8", "SQfp16", "SQ4", "PQ16", "RaBitQ", "RaBitQ2", "EDEN2"]
TRANSFORMED = [
    "HR,RaBitQ",
    "RR,RaBitQ2",
    "HR,EDEN2",
    "PCA24,SQ8",
    "OPQ8_32,PQ8",
    "IVF32,Flat",
    "IVF64_HNSW32,SQ8",
    "PCAR32,IVF32,SQfp16",
]


def small(store: Any, index: Path, **settings: Any) -> dict[str, Any]:
    return build(store, index, **{"memory": "400MiB", "metric": "l2", "factory": "IVF32,SQ8", **settings})


@pytest.mark.parametrize("factory", CODES + TRANSFORMED)
def test_every_code_finds_the_neighbours(
    factory: str, npy: Path, x: FloatArray, xq: FloatArray, tmp_path: Path
) -> None:
    small(npy, tmp_path / "i", factory=factory)
    _, rows = exact_search(x, xq, 10, "l2")
    with ooc.open_index(tmp_path / "i") as index:
        found, ids = index.search(xq, 10, nprobe=index.nlist, rerank=1500)
        assert recall(ids, rows) >= 0.99
        np.testing.assert_allclose(found, ((x[ids] - xq[:, None]) ** 2).sum(axis=2), rtol=1e-4)
        codes_only, _ = index.search(xq, 10, nprobe=index.nlist, rerank=0)
        assert np.isfinite(codes_only).all()


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_every_metric_equals_exact_search_when_nothing_is_left_out(
    metric: Any, npy: Path, x: FloatArray, xq: FloatArray, tmp_path: Path
) -> None:
    small(npy, tmp_path / "i", metric=metric, factory=None)
    exact, rows = exact_search(x, xq, 10, metric)
    with ooc.open_index(tmp_path / "i") as index:
        found, ids = index.search(xq, 10, nprobe=index.nlist, rerank=len(x))
        np.testing.assert_array_equal(ids, rows)
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
        _, ids = index.search(xq, 10, nprobe=index.nlist)
        assert recall(ids, rows) >= 0.97


def test_inner_product_of_rows_of_very_different_length(
    x: FloatArray, xq: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    long = x * np.random.default_rng(1).lognormal(0, 1, (len(x), 1)).astype(np.float32)
    small(npy_of(long), tmp_path / "i", metric="ip", factory="HR,EDEN4")
    _, rows = exact_search(long, xq, 10, "ip")
    with ooc.open_index(tmp_path / "i") as index:
        _, ids = index.search(xq, 10, nprobe=index.nlist, rerank=500)
    assert recall(ids, rows) >= 0.97


def test_plain_faiss_opens_a_segment_and_agrees(
    npy: Path, xq: FloatArray, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small(npy, tmp_path / "i")
    plain = faiss.read_index(str(tmp_path / "i/segments/s1/index.faiss"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    faiss.extract_index_ivf(plain).nprobe = 32
    theirs, their_ids = plain.search(xq, 5)
    with ooc.open_index(tmp_path / "i") as index:
        found, ids = index.search(xq, 5, nprobe=32, rerank=0)
    np.testing.assert_array_equal(ids, their_ids)
    np.testing.assert_array_equal(found, theirs)


@pytest.mark.parametrize("factory", ["HR,EDEN2", "IVF32,PQ16", "IVF512_HNSW32,SQ8"])
def test_same_bytes_for_any_threads_memory_and_shards(factory: str, npy: Path, tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {"threads": 1},
        {"threads": 2},
        {"threads": 2, "memory": "2GiB", "shard_rows": 1024},
        {"threads": 1, "shard_rows": 3000},
    ]
    trees = []
    for number, setting in enumerate(settings):
        small(npy, tmp_path / str(number), factory=factory, **setting)
        trees.append(tree(tmp_path / str(number)))
    assert all(one == trees[0] for one in trees)
    small(npy, tmp_path / "seeded", factory=factory, seed=1)
    assert tree(tmp_path / "seeded") != trees[0]


def test_ids_ascend_in_every_list_and_name_every_row_once(npy: Path, x: FloatArray, tmp_path: Path) -> None:
    small(npy, tmp_path / "i", shard_rows=1024)
    with ooc.open_index(tmp_path / "i") as index:
        segment = index._view().segments
        lists = [segment.ids(np.array([number])) for number in range(index.nlist)]
    assert all((np.diff(ids) > 0).all() for ids in lists)
    np.testing.assert_array_equal(np.sort(np.concatenate(lists)), np.arange(len(x)))


def test_the_sample_is_of_the_whole_store_and_of_the_seed() -> None:
    from ooc.build.draw import draw

    for n, m in ((100_000, 1000), (1000, 900), (50, 50), (3_000_000_000, 1000)):
        rows = draw(n, m, 0)
        assert len(rows) == m == len(np.unique(rows))
        assert (np.diff(rows) > 0).all()
        assert rows[0] >= 0
        assert rows[-1] < n
        np.testing.assert_array_equal(rows, draw(n, m, 0))
    wide = draw(100_000, 1000, 0)
    assert abs(wide.mean() - 50_000) < 4000
    assert not np.array_equal(wide, draw(100_000, 1000, 1))


def test_rows_that_recall_is_measured_by_are_not_trained_on() -> None:
    from ooc.build.draw import draw_sample, draw_witnesses

    for n, m, out in ((20_000, 18_625, 1375), (20_000, 5000, 1375), (1_000_000, 400_000, 550)):
        rows = draw_sample(n, m, 3, out)
        assert len(rows) == m == len(np.unique(rows))
        assert (np.diff(rows) > 0).all()
        assert rows[0] >= 0
        assert rows[-1] < n
        witnesses = draw_witnesses(n, out, 3)
        assert len(np.unique(witnesses)) == out
        assert not np.isin(rows, witnesses).any()
    # Where there are too few others, all count.
    assert draw_sample(1000, 900, 0, 200).tolist() != draw_sample(1000, 800, 0, 200).tolist()
    np.testing.assert_array_equal(draw_sample(1000, 1000, 0, 200), np.arange(1000))


def test_a_plan_holds_witnesses_out_where_there_are_rows_enough() -> None:
    for n, nlist, sample in ((16_000, 200, 16_000), (20_000, 400, 18_625), (20_000, 19_000, 20_000)):
        plan = ooc.plan(embeddings(n, 8), factory=f"IVF{nlist},SQ8")
        assert (plan.sample_rows, plan.witnesses) == (sample, 1375)


def test_building_again_does_nothing(npy: Path, tmp_path: Path) -> None:
    first = small(npy, tmp_path / "i")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "i").rglob("*")}
    again = small(npy, tmp_path / "i", memory="1GiB", threads=1)
    assert (first["already_built"], again["already_built"]) == (False, True)
    assert again["rows"] == 5000
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "i").rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"metric": "ip"}, "index-exists", "metric"),
        ({"factory": "IVF32,SQ4"}, "index-exists", "SQ4"),
        ({"seed": 5}, "index-exists", "seed"),
        ({"copy_vectors": "always"}, "index-exists", "copy_vectors"),
    ],
)
def test_another_plan_in_the_same_place_is_refused(
    change: dict[str, Any], kind: str, said: str, npy: Path, tmp_path: Path
) -> None:
    small(npy, tmp_path / "i")
    before = tree(tmp_path / "i")
    with pytest.raises(ooc.ConflictError, match=said) as error:
        small(npy, tmp_path / "i", **change)
    assert error.value.kind == kind
    assert tree(tmp_path / "i") == before


def test_other_rows_in_the_same_place_are_refused_and_grown_ones_are_not(
    x: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    small(npy_of(x[:3000]), tmp_path / "i")
    with pytest.raises(ooc.ConflictError) as error:
        small(npy_of(x[1000:4000]), tmp_path / "i")
    assert error.value.kind == "store-changed"
    notes: list[Event] = []
    figures = small(npy_of(x), tmp_path / "i", observer=notes.append)
    assert figures["already_built"]
    assert figures["rows"] == 3000
    assert any(isinstance(note, Note) and note.kind == "store-grown" for note in notes)


def test_something_else_in_the_way_is_left_alone(npy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(ooc.ConflictError) as error:
        small(npy, tmp_path / "mine")
    assert error.value.kind == "destination-exists"
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ooc.ConflictError):
        small(npy, tmp_path / "file")


@pytest.mark.parametrize("where", [0, 1500, 4999])
def test_bad_rows_stop_the_build_and_leave_nothing(
    where: int, x: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    bad = x.copy()
    bad[where, 3] = np.nan
    bad[-1, 0] = np.inf
    with pytest.raises(ooc.DataError, match=f"row {where} ") as error:
        small(npy_of(bad), tmp_path / "i", factory="IVF8,SQ8")
    assert error.value.kind == "bad-rows"
    assert "--on-bad skip" in str(error.value)
    assert not (tmp_path / "i").exists()


def test_bad_rows_are_left_out_when_asked_and_keep_the_numbers_of_the_rest(
    x: FloatArray, xq: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    bad = x.copy()
    rows = np.array([0, 17, 1023, 1024, 4999])
    bad[rows, 5] = [np.nan, np.inf, -np.inf, np.nan, np.nan]
    figures = small(npy_of(bad), tmp_path / "i", on_bad="skip", shard_rows=1024)
    assert figures["skipped_rows"] == 5
    assert figures["rows"] == 4995
    _, exact = exact_search(x[~np.isin(np.arange(5000), rows)], xq, 10, "l2")
    kept = np.setdiff1d(np.arange(5000), rows)
    with ooc.open_index(tmp_path / "i") as index:
        _, ids = index.search(xq, 10, nprobe=32, rerank=4995)
        np.testing.assert_array_equal(ids, kept[exact])


def test_on_bad_skip_goes_on_from_a_build_that_stopped_at_a_bad_row(
    x: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    bad = embeddings(40_000, 8)
    bad[39_000] = np.nan  # not in the small sample of this plan's seed
    path = npy_of(bad)
    with pytest.raises(ooc.DataError):
        small(path, tmp_path / "i", factory="IVF8,Flat", shard_rows=8192)
    done = shards_done(BuildLayout(next((tmp_path / "i/build").iterdir())))
    assert len(done) == 4
    assert small(path, tmp_path / "i", factory="IVF8,Flat", shard_rows=8192, on_bad="skip")["rows"] == 39_999


def test_zero_rows_are_counted_and_searchable_with_cosine(
    x: FloatArray, xq: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    some = x.copy()
    some[[3, 4000]] = 0
    figures = small(npy_of(some), tmp_path / "i", metric="cosine")
    assert figures["zero_rows"] == 2
    exact, _ = exact_search(some, xq, 10, "cosine")
    with ooc.open_index(tmp_path / "i") as index:
        found, _ = index.search(xq, 10, nprobe=32, rerank=5000)
        np.testing.assert_allclose(found, exact, atol=1e-5)
        found, _ = index.search(np.zeros(48), 3, nprobe=32)
        np.testing.assert_array_equal(found, 0)


def test_huge_and_tiny_rows_are_neither_bad_nor_zero(
    x: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    some = x.astype(np.float64)
    some[7] *= 1e25
    some[8] *= 1e-25
    figures = small(npy_of(some.astype(np.float32)), tmp_path / "i", metric="cosine")
    assert (figures["skipped_rows"], figures["zero_rows"]) == (0, 0)
    with ooc.open_index(tmp_path / "i") as index:
        found, ids = index.search(x[7:9], 1, nprobe=32)
        np.testing.assert_array_equal(ids[:, 0], [7, 8])
        np.testing.assert_allclose(found, 1, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 39, 300, 1025])
def test_collections_of_any_size(n: int, tmp_path: Path) -> None:
    x = embeddings(n, 20)
    build(x, tmp_path / "i", memory="400MiB")
    exact, rows = exact_search(x, x[:5], 3, "l2")
    with ooc.open_index(tmp_path / "i") as index:
        found, ids = index.search(x[:5], 3, nprobe=index.nlist)
        np.testing.assert_array_equal(ids[:, : rows.shape[1]], rows)
        np.testing.assert_allclose(found[:, : rows.shape[1]], exact, atol=1e-4)
        assert (ids[:, rows.shape[1] :] == -1).all()


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "uint8"])
def test_every_dtype_is_indexed_and_copied_without_loss(
    dtype: str, x: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    rows = np.clip(x * 20 + (60 if dtype == "uint8" else 0), *((-128, 127) if dtype == "int8" else (0, 255)))
    stored = (rows if dtype in ("int8", "uint8") else x).astype(dtype)
    exact, ids = exact_search(stored, stored[:20], 5, "l2")
    for copy in ("never", "always"):
        small(npy_of(stored), tmp_path / copy, copy_vectors=copy)
        with ooc.open_index(tmp_path / copy) as index:
            found, got = index.search(stored[:20], 5, nprobe=32, rerank=5000)
            np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)
            assert recall(got, ids) > 0.98  # integers tie
            np.testing.assert_array_equal(index.reconstruct([4, 3]), stored[[4, 3]].astype(np.float32))


def test_an_index_with_a_copy_needs_no_store(
    x: FloatArray, xq: FloatArray, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(x)
    small(path, tmp_path / "i", copy_vectors="always", shard_rows=2048)
    path.unlink()
    _, rows = exact_search(x, xq, 10, "l2")
    with ooc.open_index(tmp_path / "i") as index:
        assert recall(index.search(xq, 10, nprobe=32)[1], rows) > 0.99


def stop_after(rows: int, event: threading.Event) -> Callable[[Event], None]:
    def observe(seen: Event) -> None:
        if isinstance(seen, Progress) and seen.stage == "fill" and seen.done >= rows:
            event.set()

    return observe


@pytest.mark.parametrize("copy", ["never", "always"])
def test_a_stopped_build_goes_on_and_ends_with_the_same_bytes(
    copy: Any, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    settings: dict[str, Any] = {"factory": "IVF64,SQ8", "copy_vectors": copy, "shard_rows": 24_576}
    small(path, tmp_path / "whole", **settings)
    stops = 0
    for rows in (1, 18_000, 40_000, 59_000):
        event = threading.Event()
        try:
            small(path, tmp_path / "i", **settings, stop=event, observer=stop_after(rows, event))
        except ooc.Stopped:
            stops += 1
            with pytest.raises(ooc.IndexDirError, match="not finished"):
                ooc.open_index(tmp_path / "i")
    small(path, tmp_path / "i", **{**settings, "memory": "900MiB", "threads": 1})
    assert stops >= 2
    assert tree(tmp_path / "i") == tree(tmp_path / "whole")
    assert not (tmp_path / "i/build").exists()


def test_a_finished_shard_is_not_filled_again(npy_of: Callable[[AnyArray], Path], tmp_path: Path) -> None:
    path = npy_of(embeddings(60_000, 16))
    event = threading.Event()
    settings: dict[str, Any] = {"factory": "IVF64,SQ8", "shard_rows": 16_384}
    with pytest.raises(ooc.Stopped):
        small(path, tmp_path / "i", **settings, stop=event, observer=stop_after(30_000, event))
    shards = sorted((tmp_path / "i/build").rglob("*.ivfdata"))
    before = {shard.name: shard.stat().st_mtime_ns for shard in shards}
    assert before
    seen: list[Event] = []

    def observe(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StageFinished) and event.stage == "fill":
            for shard in shards:
                assert shard.stat().st_mtime_ns == before[shard.name]

    small(path, tmp_path / "i", **settings, observer=observe)
    assert any(isinstance(event, StageFinished) and event.stage == "fill" for event in seen)
    assert not any(isinstance(event, StageFinished) and event.stage == "train" for event in seen)


def test_a_damaged_shard_is_noticed_and_filled_again(
    npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    settings: dict[str, Any] = {"factory": "IVF64,SQ8", "shard_rows": 16_384}
    small(path, tmp_path / "whole", **settings)
    event = threading.Event()
    with pytest.raises(ooc.Stopped):
        small(path, tmp_path / "i", **settings, stop=event, observer=stop_after(40_000, event))
    one, two, *_ = sorted((tmp_path / "i/build").rglob("*.ivfdata"))
    data = bytearray(one.read_bytes())
    data[1000] ^= 1
    one.write_bytes(data)  # as long as before: only the checksum can tell
    two.write_bytes(two.read_bytes()[:-1])  # cut short: its size tells
    with pytest.raises(ooc.IndexDirError) as error:
        small(path, tmp_path / "i", **settings)
    assert error.value.kind == "lists-damaged"
    small(path, tmp_path / "i", **settings)
    assert tree(tmp_path / "i") == tree(tmp_path / "whole")


KILLED = """
import sys, os, signal
from ooc import build
from ooc.events import Progress, StageStarted
stage, done = sys.argv[3], int(sys.argv[4])
def observe(event):
    if isinstance(event, Progress) and event.stage == stage and event.done >= done:
        os.kill(os.getpid(), signal.SIGKILL)
build(sys.argv[1], sys.argv[2], memory="400MiB", factory="IVF64,SQ8", shard_rows=16384,
      copy_vectors="always", observer=observe)
"""


@pytest.mark.parametrize(
    ("stage", "done"),
    [
        ("sample", 1),
        ("train", 1),
        ("fill", 1),
        ("fill", 35_000),
        ("merge", 1),
        ("calibrate", 1),
        ("publish", 1),
    ],
)
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
    stage: str, done: int, npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(tmp_path / "i"), stage, str(done)], check=False
    )
    assert run.returncode == -signal.SIGKILL
    settings: dict[str, Any] = {"factory": "IVF64,SQ8", "copy_vectors": "always"}
    small(path, tmp_path / "i", **settings)
    small(path, tmp_path / "whole", **settings)
    assert tree(tmp_path / "i") == tree(tmp_path / "whole")
    left = [p.name for p in (tmp_path / "i").rglob("*") if ".partial" in p.name]
    assert left == []


def test_an_unfinished_build_with_other_settings_is_refused(
    npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    event = threading.Event()
    with pytest.raises(ooc.Stopped):
        small(path, tmp_path / "i", shard_rows=8192, stop=event, observer=stop_after(20_000, event))
    with pytest.raises(ooc.ConflictError, match="unfinished") as error:
        small(path, tmp_path / "i", seed=9)
    assert "seed" in str(error.value)


def test_a_store_that_grows_meanwhile_is_indexed_as_it_was(
    npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    x = embeddings(60_000, 16)
    event = threading.Event()
    settings: dict[str, Any] = {"factory": "IVF64,SQ8", "shard_rows": 8192}
    with pytest.raises(ooc.Stopped):
        small(npy_of(x[:50_000]), tmp_path / "i", **settings, stop=event, observer=stop_after(20_000, event))
    with pytest.raises(ooc.ConflictError) as error:
        small(npy_of(x[100:50_100]), tmp_path / "i", **settings)
    assert error.value.kind == "store-changed"
    assert small(npy_of(x), tmp_path / "i", **settings)["rows"] == 50_000


def test_a_second_builder_is_told_who_the_first_is(
    npy_of: Callable[[AnyArray], Path], tmp_path: Path
) -> None:
    path = npy_of(embeddings(60_000, 16))
    refused: list[ooc.OocError] = []

    def observe(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "fill" and not refused:
            with pytest.raises(ooc.ConflictError) as error:
                small(path, tmp_path / "i", factory="IVF64,SQ8")
            refused.append(error.value)

    small(path, tmp_path / "i", factory="IVF64,SQ8", observer=observe)
    assert refused[0].kind == "locked"
    assert str(os.getpid()) in refused[0].message


def test_events_tell_the_whole_story(npy: Path, tmp_path: Path) -> None:
    seen: list[Event] = []
    small(npy, tmp_path / "i", observer=seen.append)
    started = next(event for event in seen if isinstance(event, Started))
    assert sum(started.stages.values()) == pytest.approx(1)
    finished = [event.stage for event in seen if isinstance(event, StageFinished)]
    assert finished == ["plan", "sample", "train", "fill", "merge", "calibrate", "publish"]
    done = [event.done for event in seen if isinstance(event, Progress) and event.stage == "fill"]
    assert done == sorted(done)
    assert done[-1] == 5000
    report = json.loads((tmp_path / "i/generations/1.report.json").read_text())
    assert report["plan"]["n"] == 5000
    assert report["stages"]["fill"]["seconds"] > 0


def test_the_callers_thread_settings_are_left_alone(npy: Path, tmp_path: Path) -> None:
    from threadpoolctl import threadpool_info

    before = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    openmp = faiss.omp_get_max_threads()
    small(npy, tmp_path / "i", threads=1)
    assert [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()] == before
    assert faiss.omp_get_max_threads() == openmp


def test_a_full_disk_is_noticed_before_the_work(
    npy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(ooc.ResourceError, match="needs") as error:
        small(npy, tmp_path / "i")
    assert error.value.kind == "disk-full"
    assert not (tmp_path / "i").exists()


def test_lists_are_even(npy_of: Callable[[AnyArray], Path], tmp_path: Path) -> None:
    figures = small(npy_of(embeddings(60_000, 32)), tmp_path / "i", factory=None)
    lists = figures["stages"]["merge"]
    assert lists["weighted_mean"] <= 2 * lists["mean"]


def test_private_memory_stays_within_the_budget_of_the_plan(tmp_path: Path) -> None:
    """A store many times larger than what the build may hold, in a process of its own."""
    path = tmp_path / "x.npy"
    np.save(path, embeddings(200_000, 256))  # 205 MB
    code = (
        "import sys, threading; from ooc import build\n"
        "from ooc.mapping import private_bytes\n"
        "peak = [0]; over = threading.Event()\n"
        "def watch():\n"
        "    while not over.wait(0.005): peak[0] = max(peak[0], private_bytes())\n"
        "thread = threading.Thread(target=watch); thread.start()\n"
        "build(sys.argv[1], sys.argv[2], memory='300MiB', factory='IVF256,SQ8')\n"
        "over.set(); thread.join()\n"
        "print(peak[0])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "i")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(run.stdout) <= 300 * 1024**2
    assert Layout.of(tmp_path / "i").live() == 1


def test_building_again_over_a_damaged_index_says_so(npy: Path, tmp_path: Path) -> None:
    small(npy, tmp_path / "i")
    lists = tmp_path / "i/segments/s1/lists.ivfdata"
    lists.write_bytes(lists.read_bytes()[:-8])
    with pytest.raises(ooc.IndexDirError, match=r"lists\.ivfdata"):
        small(npy, tmp_path / "i")


def test_a_lost_current_is_published_again_without_the_work(npy: Path, tmp_path: Path) -> None:
    small(npy, tmp_path / "i")
    before = tree(tmp_path / "i")
    (tmp_path / "i/CURRENT").unlink()
    seen: list[Event] = []
    small(npy, tmp_path / "i", observer=seen.append)
    assert [event.stage for event in seen if isinstance(event, StageFinished)] == ["plan", "publish"]
    assert tree(tmp_path / "i") == before


def test_a_segment_of_another_plan_is_never_published(npy: Path, tmp_path: Path) -> None:
    small(npy, tmp_path / "i", seed=1)
    (tmp_path / "i/CURRENT").unlink()
    small(npy, tmp_path / "i", seed=2)
    small(npy, tmp_path / "fresh", seed=2)
    assert tree(tmp_path / "i") == tree(tmp_path / "fresh")


def test_freed_memory_is_given_back_where_a_stage_comes_near_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", embeddings(60_000, 16))
    released: dict[str, int] = {}
    watch = importlib.import_module("ooc.build.watch")
    monkeypatch.setattr(watch, "_RELEASE_SECONDS", 0.0)
    monkeypatch.setattr(watch, "_LOOK_SECONDS", 0.002)
    for name, private in (("much", 1 << 40), ("little", 1)):
        calls: list[int] = []
        monkeypatch.setattr(watch, "private_bytes", lambda private=private: private)
        monkeypatch.setattr(watch, "release_free_memory", lambda calls=calls: calls.append(1))
        ooc.build(tmp_path / "x.npy", tmp_path / name, memory="400MiB", factory="IVF32,SQ8")
        released[name] = len(calls)
    assert released["little"] == 0
    assert released["much"] > 20


def test_the_most_memory_of_each_stage_is_known(tmp_path: Path) -> None:
    """What comes and goes between two events of progress, too."""
    with MemoryWatch() as memory:
        memory.begins("first")
        before = memory.look()
        held = np.ones(64 << 20, np.uint8)
        time.sleep(0.5)
        assert held.sum() == len(held)
        del held
        memory.begins("second")
        after = memory.look()
    assert memory.peaks["first"] >= before + (60 << 20)
    assert memory.peaks["second"] == after < before + (30 << 20)
    assert memory.peak == memory.peaks["first"]


def test_each_stage_can_be_called_by_itself(npy: Path, xq: FloatArray, tmp_path: Path) -> None:
    from ooc.build.fill import fill
    from ooc.build.merge import merge
    from ooc.build.publish import publish
    from ooc.build.sample import sampled
    from ooc.build.train import train
    from ooc.build.workers import workers
    from ooc.index.layout import Header

    made = ooc.plan(npy, memory="400MiB", factory="IVF32,SQ8")
    layout = Layout.of(tmp_path / "i")
    seen: list[Event] = []
    with ooc.open_store(npy) as store:
        layout.claim(Header(d=made.d, metric=made.metric))
        building = layout.build(made.digest)
        building.root.mkdir(parents=True)
        with (
            workers(2) as pool,
            sampled(store, made, building.sample, pool, observer=seen.append) as rows,
        ):
            template = train(rows, made, layout, pool, observer=seen.append)
        shards = fill(store, made, template, building, observer=seen.append)
        merge(shards, made, template.codec, building.segment, observer=seen.append)
        publish(made, layout, {}, {}, building.sketch, observer=seen.append)
        count = len(seen)
        fill(store, made, template, building, observer=seen.append)
    assert [e.stage for e in seen[:count] if isinstance(e, StageFinished)] == [
        "sample",
        "train",
        "fill",
        "merge",
        "publish",
    ]
    assert not any(isinstance(event, Progress) for event in seen[count:])  # nothing was left to fill
    small(npy, tmp_path / "whole")
    with ooc.open_index(tmp_path / "i") as one, ooc.open_index(tmp_path / "whole") as two:
        settings = {"nprobe": 8, "rerank": 100}  # the one that was built by hand was not calibrated
        np.testing.assert_array_equal(one.search(xq, **settings)[1], two.search(xq, **settings)[1])


@pytest.mark.parametrize(
    ("factory", "rows"),
    [("IVF2,PQ4", 255), ("IVF2,PQ4x10", 1023), ("OPQ4_8,IVF2,Flat", 255), ("PCA16,IVF2,SQ8", 15)],
)
def test_too_few_rows_for_a_code_are_told(
    npy_of: Callable[[AnyArray], Path], tmp_path: Path, factory: str, rows: int
) -> None:
    x = embeddings(rows + 1, 24)
    with pytest.raises(ooc.PlanError, match=f"{rows} rows are too few") as caught:
        ooc.build(npy_of(x[:rows]), tmp_path / "i", factory=factory)
    assert caught.value.kind == "too-few-rows"
    ooc.build(npy_of(x), tmp_path / "i", factory=factory)
