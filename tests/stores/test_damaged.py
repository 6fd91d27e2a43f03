"""Headers and metadata that lie: each ends in an error of ours, soon and in little memory."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

import ooc

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")

X = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


def use(path: Path) -> None:
    with ooc.open_store(path) as store:
        store.read(0, min(store.n, 50))
        store.take(np.array([0, store.n - 1]))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        pytest.param(
            "x.npy",
            b"\x93NUMPY\x01\x00\x50\x00"
            + b"{'descr':'<f4','fortran_order':False,'shape':(1000000000000000000000,4)}".ljust(80),
            id="rows beyond number",
        ),
        pytest.param(
            "x.npy",
            b"\x93NUMPY\x01\x00\x50\x00{'descr':'<f4','fortran_order':False,'shape':(-3,4)}".ljust(2000),
            id="rows below zero",
        ),
        pytest.param(
            "x.npy", b"\x93NUMPY\x01\x00\x20\x00{'descr':" + b"(" * 100, id="header that ends early"
        ),
        pytest.param("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 100, id="header of 4 GiB"),
        pytest.param("x.npy", b"\x93NUMPY\x09\x00" + b" " * 100, id="unknown version"),
        pytest.param("x.fvecs", struct.pack("<i", -1) + b"\0" * 400, id="row of -1 numbers"),
        pytest.param("x.fvecs", struct.pack("<i", 2**31 - 1) + b"\0" * 400, id="row of 2^31 numbers"),
        pytest.param("x.bvecs", struct.pack("<i", 0) + b"\0" * 400, id="row of no numbers"),
        pytest.param("x.fbin", struct.pack("<II", 2**32 - 1, 2**32 - 1) + b"\0" * 400, id="2^64 numbers"),
        pytest.param("x.u8bin", b"abc", id="no header"),
    ],
)
def test_a_lying_header_is_a_store_error(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ooc.StoreError, match="x"):
        use(tmp_path / name)


GRID, INNER = ("chunk_grid", "configuration", "chunk_shape"), ("codecs", 0, "configuration", "chunk_shape")


@pytest.mark.parametrize(
    "changes",
    [
        {("shape",): [10**12, 16], GRID: [1, 16]},
        {("shape",): [10**9, 10**9], GRID: [1, 1]},
        {("shape",): [10**30, 16], GRID: [10**29, 16]},
        {("shape",): [-3, 16]},
        {("shape",): [3.5, 16]},
        {("shape",): "ab"},
        {("shape",): None},
        {GRID: [0, 16]},
        {GRID: [-5, 16]},
        {GRID: [1.5, 16]},
        {GRID: [5]},
        {GRID: [10**18, 16]},
        {("data_type",): "int99"},
        {("codecs",): []},
        {("codecs",): None},
        {("chunk_key_encoding",): None},
        {("chunk_key_encoding", "configuration"): {"separator": "../"}},
        "[" * 100_000,
        "[]",
        "{",
    ],
    ids=str,
)
@pytest.mark.parametrize("compressors", [None, "auto"], ids=["raw", "compressed"])
def test_lying_zarr_metadata_is_an_error_of_ours(tmp_path: Path, changes: Any, compressors: Any) -> None:
    path = make_zarr(tmp_path, changes, compressors=compressors)
    with pytest.raises((ooc.StoreError, ooc.ResourceError), match=r"x\.zarr"):
        use(path)


@pytest.mark.parametrize(
    "changes",
    [
        {INNER: [0, 16]},
        {INNER: [-1, 16]},
        {INNER: [70, 16]},
        {INNER: [10**12, 16]},
        {("codecs", 0, "configuration", "index_codecs"): []},
        {("shape",): [10**13, 16], GRID: [10**12, 16], INNER: [1, 16]},
    ],
    ids=str,
)
def test_lying_shards_are_an_error_of_ours(tmp_path: Path, changes: Any) -> None:
    path = make_zarr(tmp_path, changes, compressors=None, shards=(200, 16))
    with pytest.raises((ooc.StoreError, ooc.ResourceError), match=r"x\.zarr"):
        use(path)


def make_zarr(tmp_path: Path, changes: Any, **options: Any) -> Path:
    path = tmp_path / "x.zarr"
    zarr.create_array(path, shape=X.shape, chunks=(100, 16), dtype="f4", **options)[:] = X
    record = path / "zarr.json"
    if isinstance(changes, str):
        record.write_text(changes)
        return path
    meta = json.loads(record.read_text())
    for keys, value in changes.items():
        place = meta
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
    record.write_text(json.dumps(meta))
    return path


@pytest.mark.parametrize("shape", [(10**15, 16), (10**12, 16)])
def test_a_sparse_hdf5_dataset_of_too_many_chunks_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a", shape=shape, chunks=(1, 16), dtype="f4")
    with pytest.raises(ooc.StoreError, match="chunks") as caught:
        use(tmp_path / "x.h5")
    assert caught.value.kind == "store-chunks"


def test_damaged_bytes_in_a_footer_are_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    table = pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), 16)})
    pq.write_table(table, tmp_path / "x.parquet")
    feather.write_feather(table, tmp_path / "x.arrow", compression="uncompressed")
    rng = np.random.default_rng(1)
    refused = 0
    for path in (tmp_path / "x.parquet", tmp_path / "x.arrow"):
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for at in rng.integers(len(data) - 1500, len(data), 3).tolist():
                data[at] = int(rng.integers(256))
            path.write_bytes(data)
            try:
                use(path)
            except ooc.OocError:
                refused += 1
    assert refused


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(ooc.StoreError, match="pipe"):
        ooc.open_store(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["", "::/emb"])
def test_a_name_without_a_path_is_refused(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    np.save(tmp_path / "x.npy", X)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ooc.ArgumentError, match="names no store"):
        ooc.open_store(name)
