"""Decoded stores: each chunk decoded once, errors handed on, memory bounded."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from ooc.errors import StoreError
from ooc.mapping import drop_file
from ooc.stores import open_store
from ooc.stores.base import even_starts
from ooc.stores.chunked import ChunkedStore
from ooc.types import AnyArray

X = np.random.default_rng(4).standard_normal((100, 3)).astype(np.float32)


class Counting(ChunkedStore):
    """Decodes from memory and counts; chunk ``broken`` raises."""

    def __init__(self, broken: int = -1) -> None:
        super().__init__(
            uri="counting", format="test", shape=X.shape, dtype=X.dtype, chunk_starts=even_starts(100, 8)
        )
        self.decoded: list[int] = []
        self.broken = broken

    def _decode(self, index: int) -> AnyArray:
        if index == self.broken:
            raise ValueError("no such luck")
        self.decoded.append(index)
        return X[self.chunk_starts[index] : self.chunk_starts[index + 1]].copy()


@pytest.mark.parametrize("rows", [1, 3, 5, 8, 13, 16, 40, 200])
def test_consecutive_blocks_decode_each_chunk_once(rows: int) -> None:
    with Counting() as store:
        np.testing.assert_array_equal(np.concatenate([b.rows for b in store.blocks(rows)]), X)
        assert store.decoded == list(range(13))


def test_take_decodes_each_chunk_once_and_no_other() -> None:
    with Counting() as store:
        rows = np.array([99, 0, 17, 16, 99, 23, 1])
        np.testing.assert_array_equal(store.take(rows), X[rows])
        assert store.decoded == [0, 2, 12]


def test_chunk_bytes_are_those_of_the_largest_chunk() -> None:
    with Counting() as store:
        assert store.chunk_bytes == 8 * 3 * 4


def test_decoded_rows_are_read_only() -> None:
    with Counting() as store:
        rows = store.read(1, 3)
        assert not rows.flags.writeable


def test_error_while_reading_ahead_reaches_the_reader() -> None:
    with Counting(broken=3) as store:
        blocks = store.blocks(8)
        for i in range(3):
            assert next(blocks).start == 8 * i
        with pytest.raises(ValueError, match="no such luck"):
            next(blocks)
        assert "ooc-read-ahead" not in {t.name for t in threading.enumerate()}


def test_closed_store_says_so() -> None:
    store = Counting()
    store.close()
    for call in (lambda: store.read(0, 1), lambda: store.take(np.array([1]))):
        with pytest.raises(StoreError, match="was closed"):
            call()


def test_memory_is_that_of_a_few_blocks(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", shape=(1 << 15, 512), dtype="f4", chunks=(1024, 512), compression="gzip")
        file["x"][::1024, 0] = 1
    with open_store(tmp_path / "x.h5") as store:
        assert store.nbytes == 64 << 20
        tracemalloc.start()
        try:
            total = sum(float(block.rows[:, 0].sum()) for block in store.blocks(1500))
            store.take(np.arange(0, store.n, 999))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert total == 32
        # Three blocks of 3 MiB, the kept chunk and the one being decoded of 2 MiB each.
        assert peak < 16 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="mincore and its page cache")
@pytest.mark.parametrize("cols", [64, 24], ids=["whole rows", "split rows"])
@pytest.mark.parametrize("kind", ["hdf5", "hdf5 user block", "zarr 2", "zarr 3", "zarr shards"])
def test_blocks_leave_nothing_in_the_page_cache(tmp_path: Path, kind: str, cols: int) -> None:
    rows = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    if kind.startswith("hdf5"):
        path = tmp_path / "x.h5"
        with h5py.File(path, "w", userblock_size=512 if "block" in kind else 0) as file:
            file.create_dataset("a", data=rows, chunks=(256, cols), compression="lzf")
        files = [path]
    else:
        path = tmp_path / "x.zarr"
        zarr.create_array(
            path,
            shape=rows.shape,
            dtype="f4",
            chunks=(256, cols),
            shards=(1024, cols * 3) if "shards" in kind else None,
            zarr_format=2 if "2" in kind else 3,
        )[:] = rows
        files = [p for p in path.rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr"))]
    with open_store(path) as store:
        assert not store.mapped
        for file in files:
            written(file)
            drop_file(file)
        if resident_bytes(files):
            pytest.skip("this file system keeps its files in memory")
        store.read(0, store.n)
        assert resident_bytes(files) >= rows.nbytes / 2
        for block in store.blocks(300):
            np.testing.assert_array_equal(block.rows, rows[block.start : block.start + len(block.rows)])
        assert resident_bytes(files) <= 128 * 1024


def written(path: Path) -> None:
    """Dirty pages stay where they are."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def resident_bytes(files: Iterable[Path]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    total = 0
    for path in files:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            pages = (ctypes.c_ubyte * -(-len(data) // mmap.PAGESIZE))()
            view = np.frombuffer(data, np.uint8)
            assert libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(data)), pages) == 0
            del view
            total += sum(page & 1 for page in pages) * mmap.PAGESIZE
    return total
