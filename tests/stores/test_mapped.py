"""Mapped stores: what is a view, what is held, and how little is open at a time."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from ooc.errors import StoreError
from ooc.mapping import PAGE, MapPool, private_bytes
from ooc.stores import open_store
from ooc.stores.base import even_starts
from ooc.stores.mapped import MappedStore, Tiles
from ooc.types import AnyArray

X = np.random.default_rng(2).standard_normal((300, 7)).astype(np.float32)


def many_files(directory: Path, *, rows: int) -> Path:
    zarr.create_array(str(directory / "x.zarr"), data=X, chunks=(rows, 7), compressors=None)
    return directory / "x.zarr"


def open_files() -> int:
    directory = Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")
    return len(list(directory.iterdir()))


def test_rows_of_one_tile_are_a_read_only_view(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with open_store(tmp_path / "x.npy") as store:
        rows = store.read(10, 200)
        assert not rows.flags.owndata
        assert not rows.flags.writeable
        assert np.shares_memory(rows, store.read(199, 250))


def test_rows_within_a_chunk_are_a_view_and_across_chunks_a_copy(tmp_path: Path) -> None:
    with open_store(many_files(tmp_path, rows=64)) as store:
        assert not store.read(64, 128).flags.owndata
        assert store.read(63, 128).flags.owndata
        assert store.chunk_starts.tolist() == [0, 64, 128, 192, 256, 300]


def test_unaligned_rows_are_copied(tmp_path: Path) -> None:
    path = tmp_path / "x.raw"
    path.write_bytes(b"\0" * 3 + X.tobytes())
    tiles = Tiles(
        rows=300,
        cols=7,
        stride=28,
        files=(str(path),),
        file=np.zeros((1, 1), np.int64),
        offset=np.full((1, 1), 3, np.int64),
    )
    with MappedStore(uri="", format="raw", shape=X.shape, dtype=X.dtype, tiles=tiles) as store:
        assert store.read(5, 9).flags.aligned
        np.testing.assert_array_equal(store.read(5, 9), X[5:9])
        np.testing.assert_array_equal(store.take(np.array([299, 0])), X[[299, 0]])


def test_no_more_files_are_mapped_than_the_pool_holds(tmp_path: Path) -> None:
    with open_store(many_files(tmp_path, rows=3)) as store:
        assert isinstance(store, MappedStore)
        store.share(pool := MapPool(random=True, limit=8))
        before = open_files()
        np.testing.assert_array_equal(store.take(np.arange(300)[::-1]), X[::-1])
        np.testing.assert_array_equal(store.read(0, 300), X)
        store.will_need(0, 300)
        store.forget(0, 300)
        assert open_files() - before <= 8
        pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
def test_a_process_that_may_open_few_files_maps_fewer(tmp_path: Path) -> None:
    path = many_files(tmp_path, rows=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_store(path) as store:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 8, hard))
        try:
            np.testing.assert_array_equal(store.take(np.arange(300)), X)
            np.testing.assert_array_equal(np.concatenate([b.rows for b in store.blocks(7)]), X)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_advice_on_a_file_that_was_moved_is_no_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with open_store(tmp_path / "x.npy") as store:
        store.read(0, 10)
        (tmp_path / "x.npy").rename(tmp_path / "y.npy")
        store.will_need(0, 300)
        store.forget(0, 300)
        np.testing.assert_array_equal(store.read(0, 300), X)


def test_parts_share_one_bound_on_mappings(tmp_path: Path) -> None:
    for i in range(300):
        np.save(tmp_path / f"{i}.npy", X[i : i + 1])
    before = open_files()
    with open_store(tmp_path) as store:
        np.testing.assert_array_equal(store.take(np.arange(300)), X)
        assert open_files() - before <= 256
    assert open_files() <= before


def test_chunk_that_vanishes_is_an_error_not_zeros(tmp_path: Path) -> None:
    path = many_files(tmp_path, rows=64)
    with open_store(path) as store:
        (path / "c" / "1" / "0").unlink()
        np.testing.assert_array_equal(store.read(0, 64), X[:64])
        with pytest.raises(StoreError, match="is gone") as caught:
            store.take(np.array([70]))
        assert caught.value.kind == "store-missing"


def test_closed_store_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    store = open_store(tmp_path / "x.npy")
    store.close()
    with pytest.raises(StoreError, match="was closed") as caught:
        store.read(0, 1)
    assert caught.value.kind == "store-closed"


def test_blocks_hold_no_private_memory_for_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(1 << 14, 1024))
    out[:, 0] = np.arange(1 << 14)
    out.flush()
    del out
    with open_store(path) as store:
        before, total = private_bytes(), 0.0
        for block in store.blocks(1024):
            total += float(block.rows[:, 0].sum(dtype=np.float64))
            assert private_bytes() - before < 16 << 20
        assert total == (1 << 14) * ((1 << 14) - 1) / 2


@pytest.mark.skipif(sys.platform != "linux", reason="advice about cached pages is Linux's")
def test_forgotten_rows_leave_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.ones((64 * PAGE // 4, 4), np.float32))
    with path.open("rb") as file:
        os.fsync(file.fileno())

    def resident() -> int:
        pages = Path("/proc/self/smaps").read_text().split(str(path))[1]
        return int(next(line for line in pages.splitlines() if line.startswith("Rss:")).split()[1])

    with open_store(path) as store:
        store.read(0, store.n).sum()
        full = resident()
        store.forget(0, store.n)
        assert resident() < full / 4


@st.composite
def layouts(draw: st.DrawFn) -> tuple[AnyArray, Tiles, list[bytes]]:
    """An array, its tiles scattered in any order over a few files with some missing, and the files."""
    n, d = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    rows, cols = draw(st.integers(1, 45)), draw(st.integers(1, 10))
    dtype = np.dtype(draw(st.sampled_from(["<f4", ">f4", "<f2", ">f8", "i1", "u1"])))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    gap = draw(st.integers(0, 2)) * dtype.itemsize
    down, across = -(-n // rows), -(-d // cols)
    padded = rng.integers(0, 100, (down * rows, across * cols)).astype(dtype)
    fill = draw(st.sampled_from([0.0, 3.0]))
    count = draw(st.integers(1, 3))
    files = [bytearray(rng.bytes(draw(st.integers(1, 9)))) for _ in range(count)]
    file, offset = np.full((down, across), -1, np.int64), np.zeros((down, across), np.int64)
    for at in rng.permutation(down * across).tolist():
        i, j = divmod(at, across)
        tile = padded[i * rows : (i + 1) * rows, j * cols : (j + 1) * cols]
        if rng.random() < 0.2:
            tile[...] = fill
            continue
        file[i, j] = which = int(rng.integers(count))
        offset[i, j] = len(files[which])
        for row in tile:
            files[which] += row.tobytes() + b"?" * gap
    tiles = Tiles(
        rows=rows,
        cols=cols,
        stride=cols * dtype.itemsize + gap,
        files=[str(i) for i in range(count)],
        file=file,
        offset=offset,
        fill=fill,
    )
    return padded[:n, :d], tiles, [bytes(data) for data in files]


@settings(max_examples=80)
@given(layout=layouts(), data=st.data())
def test_any_layout_of_tiles_reads_as_the_array(
    tmp_path_factory: pytest.TempPathFactory, layout: tuple[AnyArray, Tiles, list[bytes]], data: st.DataObject
) -> None:
    x, tiles, files = layout
    directory = tmp_path_factory.mktemp("layout")
    for i, content in enumerate(files):
        (directory / str(i)).write_bytes(content)
    tiles = replace(tiles, files=[str(directory / name) for name in tiles.files])
    n = len(x)
    with MappedStore(uri="x", format="raw", shape=x.shape, dtype=x.dtype, tiles=tiles) as store:
        np.testing.assert_array_equal(store.read(0, n), x)
        start, stop = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        rows = store.read(start, stop)
        assert rows.dtype.isnative
        np.testing.assert_array_equal(rows, x[start:stop])
        wanted = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=60)), np.int64)
        np.testing.assert_array_equal(store.take(wanted), x[wanted])
        store.will_need(start, stop)
        store.forget(start, stop)
        blocks = list(store.blocks(data.draw(st.integers(1, n + 1))))
        np.testing.assert_array_equal(np.concatenate([b.rows for b in blocks]), x)


def test_even_starts_end_with_n() -> None:
    assert even_starts(10, 4).tolist() == [0, 4, 8, 10]
    assert even_starts(8, 4).tolist() == [0, 4, 8]
    assert even_starts(3, 4).tolist() == [0, 3]
