"""Queries streamed from a store and results streamed to a file: the same answers, in bounded memory."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import ooc
from ooc import build, events
from ooc.durable import partial_name
from ooc.search.stream import batch_queries
from ooc.stores.array import ArrayStore
from ooc.types import FloatArray, IntArray
from tests.helpers import tree

NAMES = ["hits.npz", "hits.h5", "hits.hdf5", "hits.zarr", "hits.parquet", "hits.pq"]


@pytest.fixture(scope="module")
def index(npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ooc.Index]:
    path = tmp_path_factory.mktemp("streamed") / "i"
    build(npy, path, memory="400MiB", factory="IVF64,SQ8")
    with ooc.open_index(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def queries(x: FloatArray) -> FloatArray:
    return np.asarray(x[:1500] + np.float32(0.01))


def read_hits(path: Path) -> tuple[FloatArray, IntArray, dict[str, Any]]:
    """What another program reads, without any of ours."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["distances"], file["ids"], json.loads(str(file["settings"]))
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["neighbors"][:], file["ids"][:])
            return file["distances"][:], file["ids"][:], json.loads(file.attrs["settings"])
    if path.suffix == ".zarr":
        group: Any = zarr.open_group(path, mode="r")
        return group["distances"][:], group["ids"][:], group.attrs["settings"]
    table = pq.read_table(path)
    k = table.schema.field("ids").type.list_size
    distances, ids = (
        table[name].combine_chunks().flatten().to_numpy().reshape(-1, k) for name in ("distances", "ids")
    )
    return distances, ids, json.loads(table.schema.metadata[b"settings"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [None, 1500, 700, 64])
def test_results_are_those_of_a_plain_search(
    index: ooc.Index, queries: FloatArray, tmp_path: Path, name: str, batch: int | None
) -> None:
    figures = index.search_to(queries, tmp_path / name, k=7, nprobe=20, rerank=50, batch=batch)
    distances, ids, settings = read_hits(tmp_path / name)
    expected, expected_ids = index.search(queries, 7, nprobe=20, rerank=50)
    assert (distances.dtype, ids.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(distances, expected)
    assert (settings["k"], settings["nprobe"], settings["rerank"], settings["metric"]) == (7, 20, 50, "l2")
    assert figures["nq"] == 1500
    assert figures["out"] == str(tmp_path / name)
    assert figures == json.loads(json.dumps(figures))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def sources(directory: Path, queries: FloatArray) -> dict[str, Any]:
    for name in ("q.npy", "q.fvecs", "q.h5::/a/q", "q.zarr::/q", "q.parquet::q"):
        ooc.convert(queries, directory / name, chunk_rows=100 if name.endswith(("/q", "::q")) else None)
    ooc.convert(queries, directory / "packed.zarr", compression="zstd", chunk_rows=300)
    np.save(directory / "part-1.npy", queries[:10])
    np.save(directory / "part-2.npy", queries[10:])
    return {
        "array": queries,
        "pattern": str(directory / "part-*.npy"),
        "list": [directory / "part-1.npy", directory / "part-2.npy"],
        "path": directory / "q.npy",
        **{
            name: str(directory / name)
            for name in ("q.fvecs", "q.h5::/a/q", "q.zarr::/q", "q.parquet::q", "packed.zarr")
        },
    }


def test_queries_may_be_any_store(index: ooc.Index, queries: FloatArray, tmp_path: Path) -> None:
    expected = index.search(queries, 5)
    for what, source in sources(tmp_path, queries).items():
        out = tmp_path / "hits.npz"
        index.search_to(source, out, k=5, batch=333, overwrite=True)
        distances, ids, _ = read_hits(out)
        np.testing.assert_array_equal(ids, expected[1], err_msg=what)
        np.testing.assert_array_equal(distances, expected[0], err_msg=what)


def test_an_open_store_stays_open(index: ooc.Index, queries: FloatArray, tmp_path: Path) -> None:
    ooc.convert(queries, tmp_path / "q.zarr", compression="zstd")
    with ooc.open_store(tmp_path / "q.zarr") as store:
        for first in (1, 37, 99_999):
            index.search_to(store, tmp_path / "hits.npz", first=first, overwrite=True)
            assert read_hits(tmp_path / "hits.npz")[1].shape == (min(first, 1500), 10)
        np.testing.assert_array_equal(store.read(0, 3), queries[:3])


@pytest.mark.parametrize("name", NAMES[:5])
def test_a_filter_is_passed_on_and_what_is_not_found_is_minus_one(
    index: ooc.Index, queries: FloatArray, tmp_path: Path, name: str
) -> None:
    allowed = [3, 14, 159, 2653]
    figures = index.search_to(queries[:50], tmp_path / name, k=6, filter=allowed, batch=20)
    distances, ids, settings = read_hits(tmp_path / name)
    expected, expected_ids = index.search(queries[:50], 6, filter=allowed)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(distances, expected)
    assert (ids[:, 4:] == -1).all()
    assert np.isinf(distances[:, 4:]).all()
    assert figures["allowed"] == settings["allowed"] == 4


def test_events_count_queries(index: ooc.Index, queries: FloatArray, tmp_path: Path) -> None:
    told: list[events.Event] = []
    figures = index.search_to(queries, tmp_path / "hits.npz", batch=400, observer=told.append)
    begun = next(event for event in told if isinstance(event, events.StageStarted))
    assert (begun.stage, begun.total, begun.unit) == ("search", 1500, "queries")
    assert [e.done for e in told if isinstance(e, events.Progress)] == [400, 800, 1200, 1500]
    assert isinstance(told[0], events.Started)
    last = told[-1]
    assert isinstance(last, events.Finished)
    assert last.figures == figures


def test_npz_is_a_sound_zip_and_hdf5_and_zarr_are_stores(
    index: ooc.Index, queries: FloatArray, tmp_path: Path
) -> None:
    for name in ("hits.npz", "hits.h5", "hits.zarr"):
        index.search_to(queries, tmp_path / name, batch=600)
    with zipfile.ZipFile(tmp_path / "hits.npz") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["distances.npy", "ids.npy", "settings.npy"]
    for name in ("hits.h5", "hits.zarr"):
        with ooc.open_store(tmp_path / f"{name}::/distances") as store:
            assert store.mapped
            np.testing.assert_array_equal(store.read(0, store.n), index.search(queries)[0])


def refused(
    index: ooc.Index, error: type[ooc.OocError], kind: str, source: Any, out: Path, **options: Any
) -> ooc.OocError:
    """The error of a search that must fail, and leave its directory as it was."""
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(error) as caught:
        index.search_to(source, out, **options)
    assert caught.value.kind == kind
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before
    return caught.value


@pytest.mark.parametrize("name", NAMES[:5])
def test_the_first_bad_query_is_named_and_nothing_is_left(
    index: ooc.Index, queries: FloatArray, tmp_path: Path, name: str
) -> None:
    bad = queries.copy()
    bad[[1100, 1234], 3] = np.nan, np.inf
    np.save(tmp_path / "bad.npy", bad)
    index.search_to(tmp_path / "bad.npy", tmp_path / f"good-{name}", first=1100)  # all before it are fine
    fds = open_files()  # with those that the index opens when it is first searched
    said = refused(index, ooc.DataError, "query-values", tmp_path / "bad.npy", tmp_path / name, batch=256)
    assert "query 1100 of " in said.message
    assert "bad.npy" in said.message
    del said
    assert open_files() == fds


def open_files() -> int:
    gc.collect()
    fds = Path("/proc/self/fd")
    return len(list(fds.iterdir())) if fds.exists() else 0


def test_wrong_arguments(index: ooc.Index, queries: FloatArray, tmp_path: Path) -> None:
    out = tmp_path / "hits.npz"
    refused(index, ooc.ArgumentError, "out-name", queries, tmp_path / "hits.txt")
    refused(index, ooc.ArgumentError, "directory-missing", queries, tmp_path / "no" / "hits.npz")
    for name in ("k", "first", "batch", "nprobe"):
        refused(index, ooc.ArgumentError, name, queries, out, **{name: 0})
    refused(index, ooc.ArgumentError, "rerank", queries, out, rerank=-1)
    refused(index, ooc.ArgumentError, "filter", queries, out, filter=[10**9])
    refused(index, ooc.DataError, "query-shape", queries[:, :5], out)
    refused(index, ooc.StoreError, "store-shape", queries[0], out)
    refused(index, ooc.StoreError, "store-empty", queries[:0], out)
    np.save(tmp_path / "none.npy", queries[:0])
    refused(index, ooc.StoreError, "store-empty", tmp_path / "none.npy", out)
    refused(index, ooc.StoreError, "store-missing", tmp_path / "nix.npy", out)
    ooc.convert(queries, tmp_path / "q.h5")
    refused(index, ooc.ConflictError, "out-exists", tmp_path / "q.h5", tmp_path / "q.h5")


def test_what_is_there_is_replaced_only_when_asked_and_only_where_it_is_results(
    index: ooc.Index, queries: FloatArray, tmp_path: Path
) -> None:
    for name in NAMES[:5]:
        out = tmp_path / name
        index.search_to(queries[:30], out, k=3)
        refused(index, ooc.ConflictError, "out-exists", queries, out)
        index.search_to(queries[:20], out, k=2, overwrite=True)
        assert read_hits(out)[1].shape == (20, 2)
    for name in ("x.h5", "x.zarr", "g.zarr::/a/x"):
        path = ooc.convert(queries, tmp_path / name)["path"]
        refused(index, ooc.ConflictError, "out-exists", queries, Path(path), overwrite=True)
    (tmp_path / "dir.npz").mkdir()
    (tmp_path / "dir.npz" / "thesis.tex").write_text("years of work")
    refused(index, ooc.ConflictError, "out-exists", queries, tmp_path / "dir.npz", overwrite=True)
    (tmp_path / "file.zarr").write_text("no group")
    index.search_to(queries[:5], tmp_path / "file.zarr", overwrite=True)
    assert read_hits(tmp_path / "file.zarr")[1].shape == (5, 10)


def test_the_queries_are_not_overwritten_by_their_results(
    index: ooc.Index, queries: FloatArray, tmp_path: Path
) -> None:
    ooc.convert(queries, tmp_path / "q.parquet")
    refused(
        index, ooc.ArgumentError, "same-path", tmp_path / "q.parquet", tmp_path / "q.parquet", overwrite=True
    )


def test_results_go_neither_into_an_index_nor_over_its_store(queries: FloatArray, tmp_path: Path) -> None:
    store, path = tmp_path / "x.parquet", tmp_path / "i.ooc"
    ooc.convert(queries, store)
    ooc.build(store, path, factory="IVF1,Flat")
    inside = path / "generations" / "hits.npz"
    before = tree(tmp_path)
    with ooc.open_index(path) as index:
        refused(index, ooc.ArgumentError, "same-path", queries, store, overwrite=True)
        refused(index, ooc.ArgumentError, "out-name", queries, inside)
    with pytest.raises(ooc.ArgumentError, match="within the index"):
        ooc.exact(store, queries, k=3, out=inside)
    with pytest.raises(ooc.ArgumentError, match="within the index"):
        ooc.evaluate(path, queries, k=3, html=path / "page.html")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", NAMES[:5])
def test_a_stop_leaves_nothing(index: ooc.Index, queries: FloatArray, tmp_path: Path, name: str) -> None:
    stop = threading.Event()

    def observer(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.done >= 400:
            stop.set()

    with pytest.raises(ooc.Stopped, match="after 400 of 1 500 queries"):
        index.search_to(queries, tmp_path / name, batch=200, observer=observer, stop=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES[:5])
def test_an_interrupt_leaves_nothing_and_the_old_file_stays(
    index: ooc.Index, queries: FloatArray, tmp_path: Path, name: str
) -> None:
    index.search_to(queries[:30], tmp_path / name, k=3)

    def interrupt(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.done >= 400:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.search_to(queries, tmp_path / name, batch=200, observer=interrupt, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert read_hits(tmp_path / name)[1].shape == (30, 3)


def test_a_disk_without_room_is_seen_before_the_search(
    index: ooc.Index, queries: FloatArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[object] = []
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1500 * 10 * 12 - 1}))
    for name in NAMES[:5]:
        refused(
            index,
            ooc.ResourceError,
            "disk-full",
            queries,
            tmp_path / name,
            observer=lambda e: searched.append(e),
        )
    assert not any(isinstance(event, events.Progress) for event in searched)


KILLED = """
import os, sys
import numpy as np, ooc
from ooc import events

def observer(event):
    if isinstance(event, events.Progress) and event.done >= 400:
        os._exit(9)

with ooc.open_index(sys.argv[1]) as index:
    index.search_to(np.load(sys.argv[2]), sys.argv[3], batch=200, observer=observer)
"""


@pytest.mark.parametrize("name", NAMES[:5])
def test_a_crash_leaves_no_file_and_the_next_run_cleans_up(
    index: ooc.Index, queries: FloatArray, tmp_path: Path, name: str
) -> None:
    np.save(tmp_path / "q.npy", queries)
    out = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-c", KILLED, index.info()["path"], str(tmp_path / "q.npy"), str(out)], timeout=120
    )
    assert done.returncode == 9
    assert not out.exists()
    assert partial_name(out).exists()
    index.search_to(tmp_path / "q.npy", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "q.npy"])
    np.testing.assert_array_equal(read_hits(out)[1], index.search(queries)[1])


@pytest.mark.parametrize("name", NAMES[:5])
def test_two_searches_do_not_write_one_file(
    index: ooc.Index, queries: FloatArray, tmp_path: Path, name: str
) -> None:
    refusals: list[str] = []

    def second(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.done == 400:
            with pytest.raises(ooc.ConflictError) as caught:
                index.search_to(queries[:9], tmp_path / name)
            refusals.append(caught.value.kind)

    index.search_to(queries, tmp_path / name, batch=400, observer=second)
    assert refusals == ["store-busy"]
    assert read_hits(tmp_path / name)[1].shape == (1500, 10)


MEASURE = """
import sys
import ooc
from ooc import events
from ooc.mapping import private_bytes

taken = []

def observer(event):
    if isinstance(event, events.Progress):
        taken.append((event.done, private_bytes()))

with ooc.open_index(sys.argv[1]) as index:
    index.search_to(sys.argv[2], sys.argv[3], k=10, nprobe=1, rerank=0, batch=4096, observer=observer)
early = max(size for done, size in taken if done <= 150_000)
late = max(size for done, size in taken if done > 150_000)
print(late - early)
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index of 4 dimensions and 400 000 queries: results of 48 MB."""
    directory = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    np.save(directory / "x.npy", rng.standard_normal((3000, 4), dtype=np.float32))
    build(directory / "x.npy", directory / "i", factory="IVF64,Flat")
    rows = rng.standard_normal((400_000, 4), dtype=np.float32)
    np.save(directory / "q.npy", rows)
    ooc.convert(rows, directory / "q.zarr", compression="zstd", chunk_rows=5000)
    return directory


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
@pytest.mark.parametrize(
    ("source", "name"),
    [("q.npy", "hits.npz"), ("q.npy", "hits.h5"), ("q.npy", "hits.zarr"), ("q.zarr", "hits.parquet")],
)
def test_private_memory_does_not_grow_with_the_queries(
    many: Path, tmp_path: Path, source: str, name: str
) -> None:
    out = tmp_path / name
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(many / "i"), str(many / source), str(out)],
        capture_output=True, text=True, timeout=160, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sum(p.stat().st_size for p in (out.rglob("*") if out.is_dir() else [out])) > 47e6
    # 30 MB of results came after the first look.
    assert int(done.stdout) < 10e6


class _Shape(ArrayStore):
    """A store of any size, of which only its sizes are looked at."""

    def __init__(self, d: int, *, mapped: bool, chunk: int = 0) -> None:
        super().__init__(np.zeros((1, d), np.float32))
        self.mapped = mapped
        self.chunk_starts = np.array([0, chunk or 10**7], np.int64)


def test_a_batch_fits_the_memory_and_is_of_whole_chunks() -> None:
    assert batch_queries(_Shape(64, mapped=True), 10) == 16384
    assert batch_queries(_Shape(64, mapped=False, chunk=5000), 10) == 15000
    assert batch_queries(_Shape(64, mapped=False, chunk=50_000), 10) == 16384
    for d, k in ((1024, 10), (1024, 1000), (8, 100_000)):
        batch = batch_queries(_Shape(d, mapped=False), k)
        assert 100 * 2**20 < batch * (3 * 4 * d + 8 * d + 24 * k) <= 128 * 2**20
    assert batch_queries(_Shape(8, mapped=True), 10**8) == 1
