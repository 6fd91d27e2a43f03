"""Appending to stores: what is durable when, what is refused, and what a kill leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import ooc
from ooc.errors import ArgumentError, ConflictError, DataError, ResourceError
from ooc.stores.cast import WRITABLE, cast_rows
from ooc.stores.write import create_store, default_chunk_rows

ROWS = np.random.default_rng(7).integers(0, 100, (333, 6))

SETTINGS = [
    ("x.zarr", {}),
    ("x.zarr", {"zarr_format": 2}),
    ("x.zarr", {"compression": "zstd"}),
    ("x.zarr", {"compression": "gzip", "zarr_format": 2}),
    ("x.zarr", {"compression": "lz4"}),
    ("x.zarr", {"shard_rows": 128}),
    ("x.zarr::/group/emb", {}),
    ("x.h5", {}),
    ("x.h5::/group/emb", {"compression": "gzip"}),
    ("x.hdf5", {"compression": "lzf"}),
]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power: killed processes lose no write that the system took."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None, raising=False)


def files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def read_all(name: str) -> np.ndarray:
    with ooc.open_store(name) as store:
        return np.array(store.read(0, store.n))


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_appended_rows_read_back_in_order(tmp_path: Path, name: str, options: dict) -> None:
    rows = ROWS.astype(np.float32)
    with create_store(tmp_path / name, d=6, chunk_rows=64, **options) as writer:
        for begin, end in ((0, 1), (1, 100), (100, 100), (100, 112), (112, 333)):
            writer.append(rows[begin:end])
        assert writer.n == 333
        uri = writer.uri
    np.testing.assert_array_equal(read_all(str(tmp_path / name)), rows)
    np.testing.assert_array_equal(read_all(uri), rows)


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_whole_chunks_are_recorded_when_append_returns_and_the_rest_after_flush(
    tmp_path: Path, name: str, options: dict
) -> None:
    rows = ROWS.astype(np.float32)
    unit = options.get("shard_rows", 64)
    with create_store(tmp_path / name, d=6, chunk_rows=64, **options) as writer:
        writer.append(rows[:150])
        whole = 150 - 150 % unit
        assert (writer.n, writer.durable_n) == (150, whole)
        np.testing.assert_array_equal(read_all(str(tmp_path / name)), rows[:whole])
        writer.flush()
        assert writer.durable_n == 150
        np.testing.assert_array_equal(read_all(str(tmp_path / name)), rows[:150])
        writer.append(rows[150:200])
        writer.flush()
        np.testing.assert_array_equal(read_all(str(tmp_path / name)), rows[:200])


@pytest.mark.parametrize(("name", "options"), SETTINGS)
def test_a_store_that_is_there_can_be_gone_on_with(tmp_path: Path, name: str, options: dict) -> None:
    rows = ROWS.astype(np.int8)
    for end in (5, 64, 70, 333):
        with create_store(
            tmp_path / name, d=6, dtype="int8", chunk_rows=64, append=True, **options
        ) as writer:
            writer.append(rows[writer.n : end])
    np.testing.assert_array_equal(read_all(str(tmp_path / name)), rows)


@pytest.mark.parametrize("name", ["x.zarr", "x.h5"])
def test_an_uncompressed_store_is_mapped_zeros_included(tmp_path: Path, name: str) -> None:
    rows = np.zeros((100, 6), np.float32)
    rows[50] = 1
    with create_store(tmp_path / name, d=6, chunk_rows=64) as writer:
        writer.append(rows)
    with ooc.open_store(tmp_path / name) as store:
        assert store.mapped
        np.testing.assert_array_equal(store.read(0, 100), rows)


@pytest.mark.parametrize("name", ["x.zarr", "x.h5"])
def test_an_existing_store_is_left_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with create_store(path, d=6) as writer:
        writer.append(ROWS)
    with pytest.raises(ConflictError, match="exists") as caught:
        create_store(path, d=6)
    assert caught.value.kind == "store-exists"
    for other in ({"d": 7}, {"d": 6, "dtype": "float16"}):
        with pytest.raises(ConflictError) as caught:
            create_store(path, append=True, **other)
        assert caught.value.kind == "store-differs"
    np.testing.assert_array_equal(read_all(str(path)), ROWS)


def test_a_directory_or_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    (tmp_path / "x.zarr" / "notes.txt").write_text("mine")
    (tmp_path / "x.h5").write_text("mine")
    for name in ("x.zarr", "x.h5"):
        for append in (False, True):
            with pytest.raises(ConflictError):
                create_store(tmp_path / name, d=6, append=append)
    assert (tmp_path / "x.zarr" / "notes.txt").read_text() == (tmp_path / "x.h5").read_text() == "mine"


def test_an_hdf5_file_of_someone_else_grows_where_it_can_and_is_else_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("emb", data=ROWS.astype(np.float32), maxshape=(None, 6), chunks=(16, 6))
        file.create_dataset("rigid", data=ROWS.astype(np.float32))
        file["labels"] = np.arange(9)
    before = path.read_bytes()
    for name in ("rigid", "other"):
        with pytest.raises(ConflictError):
            create_store(f"{path}::/{name}", d=6, append=True)
    assert path.read_bytes() == before
    with create_store(f"{path}::/emb", d=6, append=True) as writer:
        writer.append(ROWS)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["emb"][:], np.tile(ROWS, (2, 1)))
        np.testing.assert_array_equal(file["rigid"][:], ROWS)
        np.testing.assert_array_equal(file["labels"][:], np.arange(9))
    assert files(tmp_path) == ["x.h5"]


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_every_cut_of_an_hdf5_commit_leaves_what_was_before_or_after(
    tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write to the file is cut in its middle once, as a kill or a power cut may."""
    rows = np.arange(400)[:, None] + np.zeros((1, 6), np.float32)
    real = os.pwrite
    cut, begun = 0, 0
    while begun >= cut:
        begun, cut = 0, cut + 1
        path = tmp_path / str(cut) / "x.h5"
        path.parent.mkdir()
        writer = create_store(path, d=6, chunk_rows=16, **options)
        writer.append(rows[:100])
        writer.flush()

        def torn(fd: int, data: memoryview, offset: int, cut: int = cut) -> int:
            nonlocal begun
            begun += 1
            if begun < cut:
                return real(fd, data, offset)
            if begun == cut:
                real(fd, data[: len(data) // 2], offset)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", torn)
            try:
                writer.append(rows[100:300])
                writer.flush()
            except KeyboardInterrupt:
                pass
            with contextlib.suppress(BaseException):
                writer.close()
        got = read_all(str(path))
        assert len(got) in (100, 112, 288, 300)
        np.testing.assert_array_equal(got, rows[: len(got)])
        with create_store(path, d=6, append=True) as again:
            again.append(rows[again.n :])
        np.testing.assert_array_equal(read_all(str(path)), rows)
        assert files(path.parent) == ["x.h5"]
    assert cut > 5


def test_the_journal_of_a_file_that_was_replaced_is_of_no_concern(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    writer = create_store(path, d=6, chunk_rows=16)
    writer.append(ROWS)
    journal = (tmp_path / ".x.h5.journal").read_bytes()
    writer.close()
    with h5py.File(path, "w") as file:
        file["mine"] = np.ones((5000, 6), np.float32)
    (tmp_path / ".x.h5.journal").write_bytes(journal)
    np.testing.assert_array_equal(read_all(str(path)), np.ones((5000, 6)))


def test_an_array_joins_a_zarr_group_unless_its_metadata_is_consolidated(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "x.zarr", attributes={"kept": 1})
    group.create_array("labels", data=np.arange(4))
    with create_store(tmp_path / "x.zarr::/emb", d=6) as writer:
        writer.append(ROWS)
    root = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert dict(root.attrs) == {"kept": 1}
    assert sorted(root.array_keys()) == ["emb", "labels"]
    file = tmp_path / "x.zarr" / "zarr.json"
    file.write_text(file.read_text().replace('"node_type"', '"consolidated_metadata": {"a": 1}, "node_type"'))
    with pytest.raises(ConflictError) as caught:
        create_store(tmp_path / "x.zarr::/more", d=6)
    assert caught.value.kind == "store-consolidated"


@pytest.mark.parametrize("name", ["x.zarr", "x.h5"])
def test_a_second_writer_is_refused(tmp_path: Path, name: str) -> None:
    with create_store(tmp_path / name, d=6) as writer:
        writer.append(ROWS)
        writer.flush()
        with pytest.raises(ConflictError) as caught:
            create_store(tmp_path / name, d=6, append=True)
        assert caught.value.kind == "store-busy"
    create_store(tmp_path / name, d=6, append=True).close()
    np.testing.assert_array_equal(read_all(str(tmp_path / name)), ROWS)


def test_known_length_lies_in_one_piece_and_appears_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with create_store(path, d=6, n=333) as writer:
        writer.append(ROWS[:200])
        assert not path.exists()
        writer.append(ROWS[200:])
    with h5py.File(path, "r") as file:
        assert file["vectors"].chunks is None
        np.testing.assert_array_equal(file["vectors"][:], ROWS)
    assert files(tmp_path) == ["x.h5"]


def test_known_length_that_is_not_kept_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with pytest.raises(DataError, match="200 of 333"), create_store(path, d=6, n=333) as writer:
        writer.append(ROWS[:200])
    with pytest.raises(DataError, match="more than the 10"), create_store(path, d=6, n=10) as writer:
        writer.append(ROWS[:11])
    with pytest.raises(KeyError), create_store(path, d=6, n=333) as writer:
        raise KeyError
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (np.zeros(6), "rows-shape"),
        (np.zeros((2, 5)), "rows-shape"),
        (np.zeros((2, 6), bool), "rows-dtype"),
        (np.zeros((2, 6), complex), "rows-dtype"),
        (np.array([["a"] * 6]), "rows-dtype"),
        (np.array([[0] * 6, [0, 0, 256, 0, 0, 0]]), "value-range"),
        (np.array([[0.0] * 6, [0, 0.5, 0, 0, 0, 0]]), "value-range"),
        (np.array([[0.0] * 6, [0, np.nan, 0, 0, 0, 0]]), "value-range"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_none_taken(tmp_path: Path, rows: np.ndarray, kind: str) -> None:
    with create_store(tmp_path / "x.zarr", d=6, dtype="uint8") as writer:
        writer.append(ROWS)
        with pytest.raises(DataError) as caught:
            writer.append(rows)
        assert caught.value.kind == kind
        if kind == "value-range":
            assert "row 334 " in caught.value.message
        writer.append(ROWS)
    np.testing.assert_array_equal(read_all(str(tmp_path / "x.zarr")), np.concatenate([ROWS, ROWS]))


@given(
    source=st.sampled_from(["float32", "float16", "float64", "int8", "uint8", "int64", "uint64", "bfloat16"]),
    target=st.sampled_from(WRITABLE),
    values=st.lists(
        st.one_of(st.integers(-300, 300), st.floats(width=32), st.sampled_from([65519, 65520, 2**63, 1e300])),
        min_size=1,
        max_size=8,
    ),
)
@settings(max_examples=300, deadline=None)
def test_a_cast_is_exact_for_integers_nearest_for_floats_or_refused(
    source: str, target: str, values: list
) -> None:
    if source == "bfloat16":
        source = pytest.importorskip("ml_dtypes").bfloat16
    with np.errstate(all="ignore"):
        rows = np.array([values], np.float64).astype(source)
    kind = np.dtype(target)
    wide = rows.astype(np.float32) if rows.dtype.name == "bfloat16" else rows
    exact = [v.item() for v in wide[0]]
    if kind.kind == "f":
        with np.errstate(all="ignore"):
            nearest = wide.astype(kind)
        fits = bool((np.isfinite(nearest) | ~np.isfinite(wide)).all())
    else:
        limits = np.iinfo(kind)
        fits = all(np.isfinite(v) and v == int(v) and limits.min <= v <= limits.max for v in exact)
        nearest = wide
    if fits:
        cast = cast_rows(rows, kind)
        assert cast.dtype == kind
        np.testing.assert_array_equal(cast.astype(np.float64), nearest.astype(np.float64))
    else:
        with pytest.raises(DataError):
            cast_rows(rows, kind)


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("x.npy", {}, "store-name"),
        ("x", {}, "store-name"),
        ("s3://bucket/x.zarr", {}, "store-name"),
        ("nowhere/x.zarr", {}, "directory-missing"),
        ("nowhere/x.h5", {}, "directory-missing"),
        ("x.zarr", {"d": 0}, "size"),
        ("x.zarr", {"chunk_rows": 0}, "size"),
        ("x.h5", {"n": -1}, "size"),
        ("x.zarr", {"dtype": "int64"}, "dtype"),
        ("x.zarr", {"dtype": "no such"}, "dtype"),
        ("x.zarr", {"compression": "lzf"}, "compression"),
        ("x.h5", {"compression": "zstd"}, "compression"),
        ("x.h5", {"shard_rows": 128}, "shards"),
        ("x.zarr", {"shard_rows": 64, "zarr_format": 2}, "shards"),
        ("x.zarr", {"shard_rows": 60, "chunk_rows": 16}, "shards"),
        ("x.zarr", {"zarr_format": 4}, "zarr-format"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(
    tmp_path: Path, name: str, options: dict, kind: str
) -> None:
    target = name if "://" in name else tmp_path / name
    with pytest.raises(ArgumentError) as caught:
        create_store(target, **{"d": 6, **options})
    assert caught.value.kind == kind
    assert files(tmp_path) == []


def test_a_closed_writer_takes_no_rows_and_closes_twice(tmp_path: Path) -> None:
    writer = create_store(tmp_path / "x.zarr", d=6)
    writer.append(ROWS)
    writer.close()
    writer.close()
    with pytest.raises(ArgumentError, match="closed"):
        writer.append(ROWS)
    with pytest.raises(ArgumentError, match="closed"):
        writer.flush()


def test_a_failed_write_keeps_the_durable_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create_store(tmp_path / "x.zarr", d=6, chunk_rows=64)
    writer.append(ROWS[:64])
    real = os.fsync

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        writer.append(ROWS[64:])
    assert caught.value.kind == "disk-full"
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(ResourceError) as caught:
        writer.append(ROWS[64:])
    assert caught.value.kind == "writer-failed"
    writer.close()
    np.testing.assert_array_equal(read_all(str(tmp_path / "x.zarr")), ROWS[:64])
    with create_store(tmp_path / "x.zarr", d=6, append=True) as again:
        again.append(ROWS[again.n :])
    np.testing.assert_array_equal(read_all(str(tmp_path / "x.zarr")), ROWS)


def test_zarr_chunks_are_flushed_before_their_names_and_the_record_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[str, int | str]] = []
    replace = os.replace

    def note_replace(source: Path, target: Path) -> None:
        assert steps[-1] == ("flushed", Path(source).stat().st_ino)
        steps.append(("named", Path(target).name))
        replace(source, target)

    writer = create_store(tmp_path / "x.zarr", d=6, chunk_rows=64, zarr_format=2)
    monkeypatch.setattr(os, "fsync", lambda fd: steps.append(("flushed", os.fstat(fd).st_ino)))
    monkeypatch.setattr(os, "replace", note_replace)
    writer.append(ROWS[:200])
    names = [step for step in steps if step[0] == "named"]
    assert names == [("named", "0.0"), ("named", "1.0"), ("named", "2.0"), ("named", ".zarray")]
    folder = (tmp_path / "x.zarr").stat().st_ino
    assert all(steps[steps.index(name) + 1] == ("flushed", folder) for name in names)
    writer.close()


def test_default_chunks_are_a_few_megabytes() -> None:
    for d, size in ((4, 2), (128, 4), (768, 4), (4096, 8), (3_000_000, 4)):
        chunk = default_chunk_rows(d * size) * d * size
        assert 4 * 2**20 <= chunk <= 8 * 2**20 or default_chunk_rows(d * size) == 1
    assert default_chunk_rows(64, n=10) == 10


APPENDER = """
import sys
import numpy as np
from ooc.stores.write import create_store
path, options = sys.argv[1], eval(sys.argv[2])
with create_store(path, d=64, chunk_rows=32, append=True, **options) as writer:
    print(writer.n, flush=True)
    while True:
        begin = writer.n
        writer.append(np.arange(begin, begin + 50)[:, None] + np.zeros(64))
        if writer.n % 350 == 0:
            writer.flush()
        print(writer.durable_n, flush=True)
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.zarr", {}),
        ("x.zarr::/g/emb", {"compression": "zstd", "shard_rows": 64}),
        ("x.h5", {}),
        ("x.h5", {"compression": "gzip"}),
    ],
)
def test_a_killed_writer_leaves_a_prefix_that_can_be_gone_on_with(
    tmp_path: Path, name: str, options: dict
) -> None:
    path = str(tmp_path / name)
    rng = np.random.default_rng(len(name))
    done = 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDER, path, repr(options)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        with child:
            begun = child.stdout.readline()
            time.sleep(rng.uniform(0.02, 0.25))
            child.send_signal(signal.SIGKILL)
            said = child.stdout.read().split("\n")[:-1]  # the last line may be cut
        assert int(begun) >= done
        done = max([done, *map(int, said)])
        if done == 0:
            continue
        rows = read_all(path)
        assert len(rows) >= done
        np.testing.assert_array_equal(rows, np.arange(len(rows))[:, None] + np.zeros((1, 64)))
    with create_store(path, d=64, append=True) as writer:
        begin = writer.n
        assert begin >= done > 0
        writer.append(np.arange(begin, begin + 100)[:, None] + np.zeros(64))
    np.testing.assert_array_equal(
        read_all(path), np.arange(begin + 100)[:, None] + np.zeros((1, 64), np.float32)
    )
