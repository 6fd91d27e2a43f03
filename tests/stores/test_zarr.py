"""Zarr: which arrays are mapped, what missing chunks hold, groups, and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec

from ooc.errors import OocError, ResourceError, StoreError
from ooc.stores import open_store
from ooc.stores.zarr import ZarrStore
from ooc.types import AnyArray

X = np.random.default_rng(9).standard_normal((200, 6)).astype(np.float32)


def refused(spec: object, kind: str, cls: type[OocError] = StoreError) -> str:
    with pytest.raises(cls) as caught:
        open_store(str(spec))
    assert caught.value.kind == kind
    return str(caught.value)


def assert_reads(path: Path, x: AnyArray, *, mapped: bool) -> None:
    rows = np.random.default_rng(0).integers(0, len(x), 300)
    with open_store(path) as store:
        assert store.mapped is mapped
        np.testing.assert_array_equal(store.read(0, len(x)), x)
        np.testing.assert_array_equal(store.take(rows), x[rows])
        np.testing.assert_array_equal(store.take(np.array([1])), x[[1]])


@pytest.mark.parametrize("fill", [0, 2.5, "NaN", "-Infinity"])
@pytest.mark.parametrize(
    "options", [{"zarr_format": 2}, {"zarr_format": 3}, {"zarr_format": 3, "shards": (64, 6)}]
)
def test_chunks_that_are_missing_hold_the_fill_value(
    tmp_path: Path, fill: Any, options: dict[str, Any]
) -> None:
    value = float(str(fill).replace("inity", ""))
    array = zarr.create_array(
        str(tmp_path / "x.zarr"),
        shape=X.shape,
        dtype="f4",
        chunks=(16, 3),
        compressors=None,
        fill_value=value,
        **options,
    )
    array[70:100] = X[70:100]
    expected = np.full_like(X, value)
    expected[70:100] = X[70:100]
    assert_reads(tmp_path / "x.zarr", expected, mapped=True)


def test_fill_value_null_is_zero(tmp_path: Path) -> None:
    array = zarr.create_array(
        str(tmp_path / "x.zarr"), shape=X.shape, dtype="f4", chunks=(50, 6), compressors=None, zarr_format=2
    )
    array[:50] = X[:50]
    path = tmp_path / "x.zarr" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fill_value": None}))
    assert_reads(tmp_path / "x.zarr", np.concatenate([X[:50], np.zeros((150, 6), np.float32)]), mapped=True)


@pytest.mark.parametrize("encoding", ["default/", "default.", "v2/", "v2."])
def test_names_of_chunks(tmp_path: Path, encoding: str) -> None:
    keys = {"name": encoding[:-1], "separator": encoding[-1]}
    zarr.create_array(
        str(tmp_path / "x.zarr"), data=X, chunks=(50, 4), compressors=None, chunk_key_encoding=keys
    )
    assert_reads(tmp_path / "x.zarr", X, mapped=True)


@pytest.mark.parametrize(
    "options",
    [
        {"filters": [TransposeCodec(order=(1, 0))], "compressors": None},
        {"compressors": [Crc32cCodec()]},
        {"compressors": [GzipCodec()]},
        {"serializer": BytesCodec(endian="big"), "compressors": [GzipCodec()], "shards": (100, 6)},
        {"filters": [TransposeCodec(order=(1, 0))], "compressors": None, "shards": (100, 6)},
    ],
)
def test_what_codecs_change_is_decoded(tmp_path: Path, options: dict[str, Any]) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=X, chunks=(50, 3), **options)
    assert_reads(tmp_path / "x.zarr", X, mapped=False)


def test_chunk_that_is_cut_off_is_named(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=X, chunks=(50, 6), compressors=None)
    chunk = tmp_path / "x.zarr" / "c" / "2" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-4])
    text = refused(tmp_path / "x.zarr", "store-format")
    assert str(chunk) in text
    assert "needs 1200 bytes, the file has 1196" in text


def test_damaged_chunk_is_named_by_its_rows(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=X, chunks=(50, 6))
    (tmp_path / "x.zarr" / "c" / "2" / "0").write_bytes(b"nonsense")
    with open_store(tmp_path / "x.zarr") as store:
        np.testing.assert_array_equal(store.read(0, 100), X[:100])
        with pytest.raises(ResourceError, match="rows 100 to 150") as caught:
            store.take(np.array([120]))
        assert caught.value.kind == "store-unreadable"


def test_metadata_that_is_damaged_is_refused(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=X)
    meta = tmp_path / "x.zarr" / "zarr.json"
    for text in ("{", '{"zarr_format": 3, "node_type": "array"}', '{"zarr_format": 7, "node_type": "array"}'):
        meta.write_text(text)
        assert str(tmp_path / "x.zarr") in refused(tmp_path / "x.zarr", "store-format")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_groups_are_searched_for_the_array(tmp_path: Path, zarr_format: Any) -> None:
    path = tmp_path / "x.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    group.create_array("labels", data=np.arange(200))
    group.create_array("deep/emb", data=X)
    with open_store(path) as store:
        assert store.uri == f"{path}::/deep/emb"
    for name in ("nope", "/deep"):
        text = refused(f"{path}::{name}", "dataset-missing")
        assert "it holds /deep/emb (200 x 6 float32)" in text
    assert "1-d" in refused(f"{path}::labels", "store-shape")
    group.create_array("second", data=X)
    text = refused(path, "dataset-missing")
    assert "/deep/emb (200 x 6 float32)" in text
    assert "/second (200 x 6 float32)" in text


def test_name_within_an_array_is_refused(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=X)
    assert "it holds / (200 x 6 float32)" in refused(f"{tmp_path}/x.zarr::emb", "dataset-missing")


def test_directory_named_zarr_without_zarr_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").mkdir()
    refused(tmp_path / "x.zarr", "store-format")


def test_url_is_opened_by_zarr_and_named_as_given(tmp_path: Path) -> None:
    group = zarr.open_group("memory://ooc-test/x.zarr", mode="w")
    group.create_array("emb", data=X, chunks=(50, 6))
    with open_store("memory://ooc-test/x.zarr") as store:
        assert isinstance(store, ZarrStore)
        assert store.uri == "memory://ooc-test/x.zarr::/emb"
        np.testing.assert_array_equal(store.read(0, 200), X)
    with open_store("memory://ooc-test/x.zarr/emb") as store:
        np.testing.assert_array_equal(store.read(0, 200), X)
    refused("memory://ooc-test/nothing.zarr", "store-missing")
    assert "/emb (200 x 6 float32)" in refused("memory://ooc-test/x.zarr::/other", "dataset-missing")
    refused("no-such-protocol://x.zarr", "store-format")


def test_many_chunks_are_decoded_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(str(tmp_path / "x.zarr"), data=X, chunks=(10, 6))
    monkeypatch.setattr("ooc.stores.zarr._BATCH_BYTES", 10 * 6 * 4 * 3)
    asked: list[tuple[int, int]] = []
    rows = ZarrStore._rows

    def noted(self: ZarrStore, first: int, last: int) -> AnyArray:
        asked.append((first, last))
        return rows(self, first, last)

    monkeypatch.setattr(ZarrStore, "_rows", noted)
    with open_store(tmp_path / "x.zarr") as store:
        np.testing.assert_array_equal(store.read(5, 95), X[5:95])
    assert asked == [(0, 1), (1, 4), (4, 7), (7, 9), (9, 10)]
