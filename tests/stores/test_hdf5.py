"""HDF5: which datasets are mapped, how one is chosen, and what is said when it cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ooc.errors import MissingExtraError, OocError, ResourceError, StoreError
from ooc.stores import hdf5, open_store
from ooc.types import AnyArray

X = np.random.default_rng(6).standard_normal((200, 6)).astype(np.float32)


def written(path: Path, **datasets: AnyArray) -> Path:
    with h5py.File(path, "w") as file:
        for name, x in datasets.items():
            file[name.replace("__", "/")] = x
    return path


def refused(spec: object, kind: str, cls: type[OocError] = StoreError) -> str:
    with pytest.raises(cls) as caught:
        open_store(str(spec))
    assert caught.value.kind == kind
    return str(caught.value)


def test_only_dataset_that_fits_need_not_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.h5", labels=np.arange(200), ids=np.ones((200, 2), np.int64), deep__emb=X)
    with open_store(path) as store:
        assert store.uri == f"{path}::/deep/emb"
    with open_store(f"{path}::deep/emb") as store:
        assert store.uri == f"{path}::/deep/emb"


def test_several_datasets_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path / "x.h5", a=X, deep__b=X[:3])
    text = refused(path, "dataset-missing")
    assert "/a (200 x 6 float32), /deep/b (3 x 6 float32)" in text
    assert f"{path}::/a" in text


def test_dataset_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = written(tmp_path / "x.h5", deep__b=X, labels=np.arange(3))
    for name in ("c", "/deep", "labels/x"):
        text = refused(f"{path}::{name}", "dataset-missing")
        assert repr(name) in text
        assert "/deep/b (200 x 6 float32)" in text
        assert "labels" not in text.split("it holds")[1]


def test_file_without_vectors_says_what_it_holds(tmp_path: Path) -> None:
    path = written(tmp_path / "x.h5", labels=np.arange(3), images=np.zeros((3, 2, 2), np.uint8))
    assert "/images (3 x 2 x 2 uint8), /labels (3 int64)" in refused(path, "dataset-missing")
    assert "nothing" in refused(written(tmp_path / "empty.h5"), "dataset-missing")
    assert "3-d (3, 2, 2)" in refused(f"{path}::images", "store-shape")


def test_dataset_without_a_shape_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["void"] = h5py.Empty("f4")
        file["text"] = "words"
        file["scalar"] = 3.0
    for name in ("void", "text", "scalar"):
        refused(f"{tmp_path}/x.h5::{name}", "store-shape")


def test_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.h5", emb=X)
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut off" in refused(path, "store-format")
    path.write_bytes(b"hello")
    refused(path, "store-format")


def test_chunks_that_were_never_written_hold_the_fill_value(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, byteorder in (("little", "<"), ("big", ">")):
            emb = file.create_dataset(name, X.shape, f"{byteorder}f4", chunks=(16, 4), fillvalue=2.5)
            emb[50:90] = X[50:90]
    expected = np.full_like(X, 2.5)
    expected[50:90] = X[50:90]
    rows = np.random.default_rng(0).integers(0, 200, 300)
    # Chunks that are written in part hold the fill value by themselves.
    for name in ("little", "big"):
        with open_store(f"{tmp_path}/x.h5::{name}") as store:
            assert store.mapped
            np.testing.assert_array_equal(store.read(0, 200), expected)
            np.testing.assert_array_equal(store.take(rows), expected[rows])
            np.testing.assert_array_equal(store.take(np.array([3, 1])), expected[[3, 1]])


def test_dataset_that_was_never_written_is_decoded(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("emb", (50, 3), "f4", fillvalue=1)
    with open_store(tmp_path / "x.h5") as store:
        assert not store.mapped
        np.testing.assert_array_equal(store.read(0, 50), np.ones((50, 3)))


@pytest.mark.parametrize("options", [{}, {"chunks": (16, 6)}])
def test_offsets_that_do_not_give_the_rows_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("emb", data=X, **options)
    honest = hdf5._raw_tiles

    def shifted(*args: Any) -> Any:
        tiles = honest(*args)
        assert tiles is not None
        tiles.offset[...] -= 8
        return tiles

    monkeypatch.setattr(hdf5, "_raw_tiles", shifted)
    with open_store(tmp_path / "x.h5") as store:
        assert not store.mapped
        np.testing.assert_array_equal(store.read(0, 200), X)


def test_appended_rows_are_seen_when_opened_again(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("emb", data=X[:100], chunks=(16, 6), maxshape=(None, 6))
    with open_store(tmp_path / "x.h5") as store:
        first = store.fingerprint()
        # A mapped store holds no HDF5 handle that would keep a writer out.
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file["emb"].resize((200, 6))
            file["emb"][100:] = X[100:]
        np.testing.assert_array_equal(store.read(0, 96), X[:96])
    with open_store(tmp_path / "x.h5") as store:
        assert store.fingerprint(100) == first
        np.testing.assert_array_equal(store.read(0, 200), X)


def test_missing_filter_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("emb", data=X, chunks=(16, 6), compression="lzf")
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda code: False)
    text = refused(tmp_path / "x.h5", "store-format") if _has_plugins() else ""
    assert not text or "neither h5py nor hdf5plugin" in text
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = refused(tmp_path / "x.h5", "missing-extra", MissingExtraError)
    assert "filter 32000 (lzf)" in text
    assert "pip install 'ooc[hdf5plugin]'" in text


def _has_plugins() -> bool:
    import importlib.util

    return importlib.util.find_spec("hdf5plugin") is not None


def test_damaged_chunk_is_named_by_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        emb = file.create_dataset("emb", data=X, chunks=(50, 6), compression="gzip", fletcher32=True)
        chunk = emb.id.get_chunk_info_by_coord((100, 0))
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 20] ^= 255
    path.write_bytes(data)
    with open_store(path) as store:
        np.testing.assert_array_equal(store.read(0, 100), X[:100])
        with pytest.raises(ResourceError, match="rows 100 to 150") as caught:
            store.take(np.array([120]))
        assert caught.value.kind == "store-unreadable"
