"""Conversion between formats: what comes out, what is gone on with, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

import ooc
from ooc import events
from ooc.errors import ArgumentError, ConflictError, DataError, PlanError, ResourceError, Stopped
from ooc.stores import convert as convert_module
from ooc.stores.convert import convert, record_name

N, D = 203, 6

#: Every writable format, with settings that make several chunks where there are any.
WRITTEN: list[tuple[str, dict[str, Any]]] = [
    ("x.zarr", {"chunk_rows": 64}),
    ("x.zarr::/g/emb", {"chunk_rows": 64, "compression": "zstd"}),
    ("x.h5", {}),
    ("x.h5::/g/emb", {"chunk_rows": 64}),
    ("x.hdf5", {"chunk_rows": 64, "compression": "gzip"}),
    ("x.npy", {}),
    ("x.fvecs", {}),
    ("x.bvecs", {}),
    ("x.fbin", {}),
    ("x.f16bin", {}),
    ("x.u8bin", {}),
    ("x.i8bin", {}),
    ("x.parquet", {"chunk_rows": 64}),
    ("x.parquet::emb", {"chunk_rows": 64, "compression": "zstd"}),
    ("x.arrow", {"chunk_rows": 64}),
    ("x.feather", {"chunk_rows": 64, "compression": "lz4"}),
]
NAMES = [f"{name}{'-' + opts['compression'] if 'compression' in opts else ''}" for name, opts in WRITTEN]


def whole_numbers(n: int = N) -> np.ndarray:
    """Rows that every dtype can hold."""
    return np.random.default_rng(3).integers(0, 100, (n, D)).astype(np.float32)


def read_all(name: Any) -> np.ndarray:
    with ooc.open_store(name) as store:
        return np.array(store.read(0, store.n))


def files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power: killed processes lose no write that the system took."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None, raising=False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store of each writable format."""
    root = tmp_path_factory.mktemp("sources")
    for number, (name, options) in enumerate(WRITTEN):
        (root / str(number)).mkdir()
        convert(whole_numbers(), root / str(number) / name, **options)
    return root


@pytest.mark.parametrize(("name", "options"), WRITTEN, ids=NAMES)
def test_every_readable_format_becomes_every_writable_one(
    sources: Path, tmp_path: Path, name: str, options: dict
) -> None:
    for number, (source, _) in enumerate(WRITTEN):
        folder = tmp_path / str(number)
        folder.mkdir()
        figures = convert(str(sources / str(number) / source), folder / name, **options)
        got = read_all(str(folder / name))
        np.testing.assert_array_equal(got, whole_numbers())
        assert figures["rows"] == N
        assert figures["d"] == D
        assert figures["dtype"] == got.dtype.name
        assert figures["resumed_rows"] == 0
        assert files(folder) == [name.partition("::")[0]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8"])
@pytest.mark.parametrize("name", ["x.zarr", "x.h5", "x.npy", "x.parquet", "x.arrow"])
def test_every_dtype_passes_through_unchanged(tmp_path: Path, name: str, dtype: str) -> None:
    rows = (whole_numbers() + (0.25 if dtype.startswith("f") else 0)).astype(dtype)
    convert(rows, tmp_path / name)
    got = read_all(tmp_path / name)
    assert got.dtype == rows.dtype
    np.testing.assert_array_equal(got, rows)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rows = whole_numbers().astype(ml_dtypes.bfloat16)
    assert convert(rows, tmp_path / "x.npy")["dtype"] == "float32"
    np.testing.assert_array_equal(read_all(tmp_path / "x.npy"), whole_numbers())


def test_float16_rounds_to_nearest_when_asked(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    convert(rows, tmp_path / "x.zarr", dtype="float16")
    np.testing.assert_array_equal(read_all(tmp_path / "x.zarr"), rows.astype(np.float16))


@pytest.mark.parametrize("name", ["x.zarr", "x.h5", "x.npy", "x.parquet"])
def test_a_value_that_does_not_fit_names_its_row_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    rows = whole_numbers()
    rows[150, 2] = 0.5
    rows[151, 2] = 0.5
    with pytest.raises(DataError, match=r"row 150 holds 0\.5 in column 2") as caught:
        convert(rows, tmp_path / name, dtype="int8")
    assert caught.value.kind == "value-range"
    assert files(tmp_path) == []


def test_the_default_is_mapped_and_chunks_make_hdf5_extendable(tmp_path: Path) -> None:
    for name in ("x.zarr", "x.h5", "x.npy"):
        convert(whole_numbers(), tmp_path / name)
        with ooc.open_store(tmp_path / name) as store:
            assert store.mapped
    convert(whole_numbers(), tmp_path / "y.h5", chunk_rows=64)
    with ooc.create_store(tmp_path / "y.h5", d=D, append=True) as writer:
        writer.append(whole_numbers())
    np.testing.assert_array_equal(read_all(tmp_path / "y.h5"), np.tile(whole_numbers(), (2, 1)))


def test_foreign_readers_read_what_is_written(tmp_path: Path) -> None:
    rows = whole_numbers()
    for name in ("x.npy", "x.h5::/a/b", "x.zarr", "x.parquet::emb", "x.fvecs", "x.u8bin"):
        convert(rows, tmp_path / name)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["a/b"][:], rows)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "x.zarr", mode="r")[:], rows)
    table = pq.read_table(tmp_path / "x.parquet")
    np.testing.assert_array_equal(np.stack(table["emb"].to_numpy(zero_copy_only=False)), rows)
    vecs = np.fromfile(tmp_path / "x.fvecs", np.int32).reshape(N, D + 1)
    assert (vecs[:, 0] == D).all()
    np.testing.assert_array_equal(np.ascontiguousarray(vecs[:, 1:]).view(np.float32), rows)
    data = (tmp_path / "x.u8bin").read_bytes()
    assert np.frombuffer(data[:8], np.uint32).tolist() == [N, D]
    np.testing.assert_array_equal(np.frombuffer(data[8:], np.uint8).reshape(N, D), rows)


def test_events_tell_the_whole_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "_BLOCK_BYTES", 50 * D * 4)
    seen: list[events.Event] = []
    figures = convert(whole_numbers(), tmp_path / "x.npy", observer=seen.append, memory="64MiB")
    kinds = [type(event).__name__ for event in seen]
    assert kinds == ["Started", "StageStarted", *["Progress"] * 5, "StageFinished", "Finished"]
    started, stage = seen[0], seen[1]
    assert isinstance(started, events.Started)
    assert isinstance(stage, events.StageStarted)
    assert (started.operation, started.memory_bytes, dict(started.stages)) == (
        "convert",
        64 << 20,
        {"copy": 1.0},
    )
    assert (stage.total, stage.done, stage.row_bytes) == (N, 0, 4 * D)
    assert [e.done for e in seen if isinstance(e, events.Progress)] == [50, 100, 150, 200, 203]
    last = seen[-1]
    assert isinstance(last, events.Finished)
    assert last.figures == figures
    json.dumps([events.as_record(event) for event in seen])


@pytest.mark.parametrize(("name", "options"), WRITTEN, ids=NAMES)
def test_stopped_and_run_again_goes_on(
    tmp_path: Path, name: str, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_module, "_BLOCK_BYTES", 50 * D)
    stop = threading.Event()

    def stop_halfway(event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.done >= N // 2:
            stop.set()

    rows = whole_numbers()
    with pytest.raises(Stopped):
        convert(rows, tmp_path / name, observer=stop_halfway, stop=stop, **options)
    path = tmp_path / name.partition("::")[0]
    assert files(tmp_path) == [f".{path.name}.convert.json", f".{path.name}.partial"]

    seen: list[events.Event] = []
    figures = convert(rows, tmp_path / name, observer=seen.append, **options)
    resumable = path.suffix not in (".parquet", ".feather", ".arrow")
    assert (figures["resumed_rows"] >= N // 2) == resumable
    assert [e.done for e in seen if isinstance(e, events.StageStarted)] == [figures["resumed_rows"]]
    np.testing.assert_array_equal(read_all(str(tmp_path / name)), rows)
    assert files(tmp_path) == [path.name]


def _interrupted(tmp_path: Path, rows: np.ndarray, **options: Any) -> Path:
    path = tmp_path / "x.npy"
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        convert(rows, path, stop=stop, **options)
    return path


def test_another_source_or_setting_does_not_go_on(tmp_path: Path) -> None:
    rows = whole_numbers()
    path = _interrupted(tmp_path, rows)
    before = files(tmp_path)
    for other in (rows + 1, rows[:100], rows.astype(np.float64)):
        with pytest.raises(ConflictError) as caught:
            convert(other, path)
        assert caught.value.kind == "convert-source-differs"
        assert "overwrite" in str(caught.value)
    with pytest.raises(ConflictError) as caught:
        convert(rows, path, dtype="float16")
    assert caught.value.kind == "convert-settings-differs"
    assert files(tmp_path) == before
    convert(rows, path, dtype="float16", overwrite=True)
    np.testing.assert_array_equal(read_all(path), rows)
    assert files(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("name", ["x.zarr", "x.h5", "x.npy"])
def test_an_existing_destination_is_replaced_only_when_asked_and_only_at_the_end(
    tmp_path: Path, name: str
) -> None:
    rows = whole_numbers()
    convert(rows, tmp_path / name)
    with pytest.raises(ConflictError) as caught:
        convert(rows + 1, tmp_path / name)
    assert caught.value.kind == "store-exists"
    bad = rows.copy()
    bad[-1, 0] = np.nan
    with pytest.raises(DataError):
        convert(bad, tmp_path / name, dtype="int8", overwrite=True)
    np.testing.assert_array_equal(read_all(tmp_path / name), rows)
    convert(rows + 1, tmp_path / name, overwrite=True)
    np.testing.assert_array_equal(read_all(tmp_path / name), rows + 1)
    assert files(tmp_path) == [name]


def test_what_is_more_than_the_store_is_never_replaced(tmp_path: Path) -> None:
    rows = whole_numbers()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"], file["b"] = rows, rows
    group = zarr.create_group(tmp_path / "x.zarr")
    for name in ("a", "b"):
        group.create_array(name, data=rows)
    (tmp_path / "y.zarr").mkdir()
    (tmp_path / "y.zarr" / "thesis.txt").write_text("mine")
    (tmp_path / "x.npy").mkdir()
    for name in ("x.h5", "x.h5::/a", "x.zarr", "x.zarr::/a", "y.zarr", "x.npy"):
        with pytest.raises(ConflictError):
            convert(rows, tmp_path / name, overwrite=True)
    assert files(tmp_path) == ["x.h5", "x.npy", "x.zarr", "y.zarr"]
    np.testing.assert_array_equal(read_all(str(tmp_path / "x.h5::/b")), rows)
    np.testing.assert_array_equal(read_all(str(tmp_path / "x.zarr::/b")), rows)


def test_the_source_is_not_its_own_destination(tmp_path: Path) -> None:
    rows = whole_numbers()
    (tmp_path / "parts").mkdir()
    np.save(tmp_path / "parts" / "a.npy", rows)
    np.save(tmp_path / "x.npy", rows)
    (tmp_path / "link.npy").symlink_to("x.npy")
    for src, dst in (
        (tmp_path / "x.npy", tmp_path / "x.npy"),
        (tmp_path / "x.npy", tmp_path / "link.npy"),
        (tmp_path / "parts", tmp_path / "parts" / "all.npy"),
        ([tmp_path / "parts" / "a.npy", tmp_path / "x.npy"], tmp_path / "x.npy"),
    ):
        with pytest.raises(ArgumentError) as caught:
            convert(src, dst, overwrite=True)
        assert caught.value.kind == "same-path"
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("x.csv", {}, "store-name"),
        ("x", {}, "store-name"),
        ("x.npy::/a", {}, "store-name"),
        ("x.npy", {"chunk_rows": 10}, "chunks"),
        ("x.npy", {"compression": "gzip"}, "compression"),
        ("x.zarr", {"compression": "lzf"}, "compression"),
        ("x.arrow", {"compression": "snappy"}, "compression"),
        ("x.zarr", {"chunk_rows": 0}, "size"),
        ("x.fvecs", {"dtype": "uint8"}, "dtype"),
        ("x.bvecs", {"dtype": "float32"}, "dtype"),
        ("x.zarr", {"dtype": "int32"}, "dtype"),
        ("nowhere/x.zarr", {}, "directory-missing"),
        ("x.npy", {"memory": "plenty"}, "size"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(
    tmp_path: Path, name: str, options: dict, kind: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        convert(whole_numbers(), tmp_path / name, **options)
    assert caught.value.kind == kind
    assert files(tmp_path) == []


def test_too_little_memory_says_how_much_would_do(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"take .* at least") as caught:
        convert(whole_numbers(4000), tmp_path / "x.zarr", memory="64KiB", chunk_rows=4000)
    assert caught.value.kind == "memory"
    assert files(tmp_path) == []


def test_a_disk_that_is_too_small_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"needs 4\.76 KiB and 0\.98 KiB|needs .* and 1000 B") as caught:
        convert(whole_numbers(), tmp_path / "x.npy")
    assert caught.value.kind == "disk-full"
    assert files(tmp_path) == []
    # What is compressed may fit after all.
    seen: list[events.Event] = []
    convert(whole_numbers(), tmp_path / "x.zarr", compression="zstd", observer=seen.append)
    assert [e.kind for e in seen if isinstance(e, events.Note)] == ["disk-full"]


def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    """Private memory of conversions of 46 MB in a process of its own."""
    script = """
import sys, threading, time
import numpy as np, ooc
from ooc.mapping import private_bytes
from ooc.stores.convert import convert
src, dst, mid = sys.argv[1:]
with ooc.create_store(src, d=128, compression="zstd", chunk_rows=4096) as writer:
    rows = np.random.default_rng(0).standard_normal((10_000, 128), dtype=np.float32)
    for _ in range(9):
        writer.append(rows)
convert(src, mid, memory="20MiB")     # imports and pools are paid for
before, peak, done = private_bytes(), 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, private_bytes())
thread = threading.Thread(target=watch); thread.start()
convert(mid, dst, memory="20MiB", dtype="float16")
done.set(); thread.join()
print(peak - before)
"""
    out = subprocess.run(
        [sys.executable, "-c", script, *(str(tmp_path / name) for name in ("a.zarr", "b.npy", "c.h5"))],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert int(out) <= 20 << 20


CONVERTER = """
import sys, time
from ooc import events
from ooc.stores import convert as module, write_raw
write_raw._FLUSH_BYTES = module._BLOCK_BYTES = 64 * 1024
module._RECORD_BYTES = 128 * 1024
src, dst, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
def tell(event):
    if isinstance(event, (events.StageStarted, events.Progress)):
        print(event.done, flush=True)
        time.sleep(0.003)  # so that it is not done before it is killed
print(module.convert(src, dst, observer=tell, **options)["resumed_rows"], flush=True)
"""


@pytest.mark.parametrize(
    ("name", "options", "resumable"),
    [
        ("x.zarr", {"chunk_rows": 512}, True),
        ("x.zarr::/g/e", {"chunk_rows": 512, "compression": "zstd"}, True),
        ("x.h5", {}, True),
        ("x.h5", {"chunk_rows": 512, "compression": "gzip"}, True),
        ("x.fvecs", {}, True),
        ("x.parquet", {"chunk_rows": 512}, False),
    ],
)
def test_a_killed_conversion_goes_on_and_ends_equal(
    tmp_path: Path, name: str, options: dict, resumable: bool
) -> None:
    rows = np.random.default_rng(1).standard_normal((20_000, 32)).astype(np.float32)
    np.save(tmp_path / "src.npy", rows)
    begun: list[int] = []
    for wait in (2, 8, 10):
        child = subprocess.Popen(
            [sys.executable, "-c", CONVERTER, str(tmp_path / "src.npy"), str(tmp_path / name), repr(options)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        begun.append(int(child.stdout.readline()))
        for _ in range(wait):
            if not child.stdout.readline():
                break
        time.sleep(0.003)
        child.send_signal(signal.SIGKILL)
        child.stdout.close()
        child.wait()
    figures = convert(tmp_path / "src.npy", tmp_path / name, **options)
    if resumable:
        assert begun == sorted(begun)
        assert figures["resumed_rows"] >= begun[-1]
        assert figures["resumed_rows"] > 0
    np.testing.assert_array_equal(read_all(str(tmp_path / name)), rows)
    assert files(tmp_path) == ["src.npy", name.partition("::")[0]]


@pytest.mark.parametrize("where", ["before the rename", "after the rename"])
@pytest.mark.parametrize("name", ["x.npy", "x.zarr", "x.parquet"])
def test_a_kill_around_the_last_step_is_mended_without_copying(
    tmp_path: Path, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = convert_module.replace

    def killed(source: Path, target: Path) -> None:
        if where == "after the rename":
            real(source, target)
        raise KeyboardInterrupt

    rows = whole_numbers()
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(rows, tmp_path / name)
    assert record_name(tmp_path / name).exists()
    seen: list[events.Event] = []
    figures = convert(rows, tmp_path / name, observer=seen.append)
    assert figures["resumed_rows"] == N
    assert not [e for e in seen if isinstance(e, events.Progress)]
    np.testing.assert_array_equal(read_all(tmp_path / name), rows)
    assert files(tmp_path) == [name]
