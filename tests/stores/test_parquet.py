"""Parquet and Arrow columns: which is chosen, what is checked, what is not copied."""

from __future__ import annotations

import builtins
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

import ooc
from ooc.errors import DataError, MissingExtraError, ResourceError, StoreError
from ooc.stores.convert import convert
from ooc.stores.parquet import ArrowStore, ParquetStore

N, D = 100, 6
ROWS = np.random.default_rng(5).standard_normal((N, D)).astype(np.float32)
TYPES = {"float32": pa.float32(), "float16": pa.float16(), "float64": pa.float64(), "int8": pa.int8()}


def fixed(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def lists(rows: np.ndarray | list, type_: pa.DataType | None = None) -> pa.Array:
    return pa.array(list(rows), type=pa.list_(type_ or pa.float32()))


def large(rows: np.ndarray) -> pa.Array:
    return lists(rows).cast(pa.large_list(pa.float32()))


def save(path: Path, columns: dict[str, Any], *, chunk: int = 32, compression: str = "zstd") -> Path:
    table = pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=chunk, compression=compression)
    else:
        name = "uncompressed" if compression == "none" else compression
        feather.write_feather(table, path, chunksize=chunk, compression=name)
    return path


BOTH = pytest.mark.parametrize("name", ["x.parquet", "x.feather"])


@BOTH
@pytest.mark.parametrize("make", [fixed, lists, large])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_column_is_read_chunk_by_chunk(tmp_path: Path, name: str, make: Any, compression: str) -> None:
    ids = pa.array(range(N))
    path = save(
        tmp_path / name, {"id": ids, "emb": make(ROWS), "word": ids.cast("string")}, compression=compression
    )
    with ooc.open_store(path) as store:
        assert isinstance(store, ParquetStore | ArrowStore)
        assert (store.n, store.d, store.dtype.name, store.mapped) == (N, D, "float32", False)
        assert store.chunk_starts.tolist() == [0, 32, 64, 96, 100]
        assert store.uri == f"{path}::emb"
        np.testing.assert_array_equal(store.read(0, N), ROWS)
        np.testing.assert_array_equal(store.read(30, 70), ROWS[30:70])
        picked = np.random.default_rng(1).integers(0, N, 300)
        np.testing.assert_array_equal(store.take(picked), ROWS[picked])
        blocks = np.concatenate([np.array(block.rows) for block in store.blocks(7)])
        np.testing.assert_array_equal(blocks, ROWS)
        with ooc.open_store(store.uri) as again:
            assert again.fingerprint() == store.fingerprint()


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8"])
def test_every_dtype(tmp_path: Path, name: str, dtype: str) -> None:
    rows = (np.abs(ROWS) * 20).astype(dtype)
    with ooc.open_store(save(tmp_path / name, {"emb": fixed(rows)})) as store:
        assert store.dtype == rows.dtype
        np.testing.assert_array_equal(store.read(0, N), rows)


def test_an_uncompressed_arrow_batch_is_not_copied(tmp_path: Path) -> None:
    rows = np.zeros((4096, 64), np.float32)
    path = save(tmp_path / "x.arrow", {"emb": fixed(rows)}, chunk=4096, compression="none")
    before = pa.total_allocated_bytes()
    with ooc.open_store(path) as store:
        first, second = store.read(0, 4096), store.read(0, 4096)
        assert np.shares_memory(first, second)
        assert pa.total_allocated_bytes() == before
        assert not first.flags.writeable


def test_several_threads_may_read(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.feather"):
        with ooc.open_store(save(tmp_path / name, {"emb": fixed(ROWS)})) as store:
            wrong: list[int] = []

            def work(seed: int, store: ooc.stores.Store = store, wrong: list[int] = wrong) -> None:
                picked = np.random.default_rng(seed).integers(0, N, 20)
                for _ in range(10):
                    if not np.array_equal(store.take(picked), ROWS[picked]):
                        wrong.append(seed)

            threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert wrong == []


@BOTH
def test_the_column_is_named_where_more_than_one_could_be_meant(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, {"a": fixed(ROWS), "b": lists(ROWS + 1), "id": pa.array(range(N))})
    with pytest.raises(StoreError) as caught:
        ooc.open_store(path)
    assert caught.value.kind == "dataset-missing"
    assert "a, b" in str(caught.value)
    with ooc.open_store(f"{path}::b") as store:
        np.testing.assert_array_equal(store.read(0, N), ROWS + 1)
    for column, kind in (("c", "dataset-missing"), ("id", "store-dtype")):
        with pytest.raises(StoreError) as caught:
            ooc.open_store(f"{path}::/{column}")
        assert caught.value.kind == kind
        assert "a, b" in str(caught.value)


@BOTH
def test_a_file_without_vectors_says_what_it_has(tmp_path: Path, name: str) -> None:
    words = lists([["a"]] * N, pa.string())
    path = save(tmp_path / name, {"id": pa.array(range(N)), "words": words})
    with pytest.raises(StoreError, match="no columns of vectors") as caught:
        ooc.open_store(path)
    assert caught.value.kind == "dataset-missing"
    assert "id, words" in str(caught.value)


@BOTH
def test_a_row_of_another_length_is_named_when_it_is_read(tmp_path: Path, name: str) -> None:
    rows = [list(row) for row in ROWS]
    rows[70], rows[71] = rows[70][:5], rows[71][:4]
    with ooc.open_store(save(tmp_path / name, {"emb": lists(rows)})) as store:
        np.testing.assert_array_equal(store.read(0, 64), ROWS[:64])
        with pytest.raises(DataError, match=r"row 70 .* has 5 values; the first row has 6") as caught:
            store.read(64, 80)
    assert caught.value.kind == "rows-shape"


@BOTH
@pytest.mark.parametrize("where", ["row", "value"])
@pytest.mark.parametrize("size", [-1, D])
def test_nulls_are_refused_with_their_row(tmp_path: Path, name: str, where: str, size: int) -> None:
    rows: list[Any] = [list(row) for row in ROWS]
    if where == "row":
        rows[40] = None
    else:
        rows[40][3] = None
    column = pa.array(rows, type=pa.list_(pa.float32(), size))
    with ooc.open_store(save(tmp_path / name, {"emb": column})) as store:
        np.testing.assert_array_equal(store.read(0, 32), ROWS[:32])
        with pytest.raises(DataError, match="row 40 ") as caught:
            store.take(np.array([41]))
    assert caught.value.kind == "null-row"


@BOTH
def test_a_null_first_row_and_an_empty_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="row 0 "):
        ooc.open_store(save(tmp_path / name, {"emb": lists([None, [1.0]])}))
    for column in (lists([]), fixed(ROWS[:0])):
        with pytest.raises(StoreError) as caught:
            ooc.open_store(save(tmp_path / name, {"emb": column}))
        assert caught.value.kind == "store-empty"


def test_empty_batches_are_passed_over(tmp_path: Path) -> None:
    batch = pa.record_batch({"emb": fixed(ROWS)})
    with pa.ipc.new_file(tmp_path / "x.arrow", batch.schema) as writer:
        for begin, end in ((0, 0), (0, 10), (10, 10), (10, N)):
            writer.write_batch(batch.slice(begin, end - begin))
    with ooc.open_store(tmp_path / "x.arrow") as store:
        assert store.chunk_starts.tolist() == [0, 10, N]
        np.testing.assert_array_equal(store.read(0, N), ROWS)


@BOTH
def test_a_file_that_is_cut_off_or_foreign_is_told(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, {"emb": fixed(ROWS)})
    whole = path.read_bytes()
    for data in (whole[:-100], whole[:20], whole[:4], b"", b"not at all", b"x" * 1000):
        path.write_bytes(data)
        with pytest.raises(StoreError) as caught:
            ooc.open_store(path)
        assert caught.value.kind == "store-format"


def test_an_arrow_stream_is_told_from_a_file(tmp_path: Path) -> None:
    batch = pa.record_batch({"emb": fixed(ROWS)})
    with pa.ipc.new_stream(tmp_path / "x.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(StoreError, match="stream") as caught:
        ooc.open_store(tmp_path / "x.arrow")
    assert caught.value.kind == "store-format"


def test_damage_inside_is_told_with_the_rows(tmp_path: Path) -> None:
    path = save(tmp_path / "x.parquet", {"emb": fixed(ROWS)})
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    data[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    with ooc.open_store(path) as store:
        np.testing.assert_array_equal(store.read(0, 32), ROWS[:32])
        with pytest.raises(ResourceError, match="rows 32 to 63") as caught:
            store.read(32, 64)
    assert caught.value.kind == "store-unreadable"


@BOTH
def test_a_closed_store_says_so(tmp_path: Path, name: str) -> None:
    store = ooc.open_store(save(tmp_path / name, {"emb": fixed(ROWS)}))
    store.close()
    store.close()
    with pytest.raises(StoreError) as caught:
        store.read(0, 1)
    assert caught.value.kind == "store-closed"


@BOTH
def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / name, {"emb": fixed(ROWS)})
    real = builtins.__import__

    def missing(module: str, *args: Any, **options: Any) -> Any:
        if module.partition(".")[0] == "pyarrow":
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return real(module, *args, **options)

    monkeypatch.delitem(sys.modules, "ooc.stores.parquet")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'ooc\[parquet\]'"):
        ooc.open_store(path)
    with pytest.raises(MissingExtraError, match=r"pip install 'ooc\[parquet\]'"):
        convert(ROWS, tmp_path / f"new{path.suffix}")
