"""What ``open_store`` takes, how it tells formats apart, and what it says when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

import ooc
from ooc.errors import ArgumentError, MissingExtraError, OocError, ResourceError, StoreError
from ooc.stores import Store, open_store
from ooc.stores.formats import FORMATS, Format
from ooc.stores.opener import natural_key, split_dataset
from ooc.types import AnyArray

X = np.random.default_rng(5).standard_normal((60, 5)).astype(np.float32)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_holds(store: Store, x: AnyArray) -> None:
    with store:
        np.testing.assert_array_equal(store.read(0, store.n), x)


def refused(spec: object, kind: str, cls: type[OocError] = StoreError) -> str:
    with pytest.raises(cls) as caught:
        open_store(spec)  # type: ignore[arg-type]
    assert caught.value.kind == kind
    return str(caught.value)


def test_public_name_is_the_same_function() -> None:
    assert ooc.open_store is open_store


def test_relative_path_has_absolute_uri(here: Path) -> None:
    np.save("x.npy", X)
    with open_store("x.npy") as store:
        assert store.uri == str(here / "x.npy")
    with open_store(Path("x.npy")) as store:
        assert store.uri == str(here / "x.npy")
    with open_store(f"file://{here}/x.npy") as store:
        assert store.uri == str(here / "x.npy")


def test_home_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    np.save("x-1.npy", X)
    assert_holds(open_store("~/x-1.npy"), X)
    assert_holds(open_store("~/x-*.npy"), X)


def test_open_store_is_returned_as_it_is() -> None:
    store = open_store(X)
    assert open_store(store) is store


def test_array_is_not_copied() -> None:
    with open_store(X) as store:
        assert np.shares_memory(store.read(3, 9), X)
        assert not store.read(3, 9).flags.writeable
        assert X.flags.writeable


def test_format_is_told_by_content_before_suffix(here: Path) -> None:
    with h5py.File("vectors.dat", "w", userblock_size=2048) as file:
        file["emb"] = X
    with open_store("vectors.dat") as store:
        assert store.format == "hdf5"
    with Path("plain").open("wb") as out:
        np.save(out, X)
    with open_store("plain") as store:
        assert store.format == "npy"


def test_name_with_colons_or_brackets_is_a_path_where_it_exists(here: Path) -> None:
    for name in ("a::b.npy", "x[1].npy"):
        np.save(name, X)
        assert_holds(open_store(name), X)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x.h5", ("x.h5", None)),
        ("x.h5::/a/b", ("x.h5", "/a/b")),
        ("x.parquet::emb", ("x.parquet", "emb")),
        ("s3://b/x.zarr::/emb", ("s3://b/x.zarr", "/emb")),
        ("simplecache::s3://b/x.zarr", ("simplecache::s3://b/x.zarr", None)),
        ("simplecache::s3://b/x.zarr::/emb", ("simplecache::s3://b/x.zarr", "/emb")),
        ("x.h5::", ("x.h5", None)),
    ],
)
def test_dataset_is_split_off(text: str, parts: tuple[str, str | None]) -> None:
    assert split_dataset(text) == parts


def test_numbers_in_names_sort_by_value() -> None:
    names = ["p-10", "p-2", "p-1-b", "p-1-a", "p-02", "q"]
    assert sorted(names, key=natural_key) == ["p-1-a", "p-1-b", "p-2", "p-02", "p-10", "q"]


@pytest.mark.parametrize("how", ["glob", "directory"])
def test_parts_are_read_in_natural_order(here: Path, how: str) -> None:
    place = here / "p[a]rts"
    place.mkdir()
    for i in range(12):
        np.save(place / f"part-{i}.npy", X[i * 5 : i * 5 + 5])
    os.chdir(place)
    spec = "part-*.npy" if how == "glob" else "."
    with open_store(spec) as store:
        uri = store.uri
        assert_holds(store, X)
    os.chdir(here)
    assert_holds(open_store(uri), X)


def test_parts_of_a_list_keep_its_order(here: Path) -> None:
    np.save("a.npy", X[:10])
    np.save("b.npy", X[10:])
    assert_holds(open_store(["b.npy", "a.npy"]), np.concatenate([X[10:], X[:10]]))
    assert_holds(open_store(["a.npy"]), X[:10])
    with open_store([X[:10], X[10:]]) as store:
        assert store.uri == ""
        assert_holds(store, X)


def test_parts_can_be_datasets_and_zarr_directories(here: Path) -> None:
    for i in range(3):
        with h5py.File(f"p{i}.h5", "w") as file:
            file["a"], file["b"] = X[i * 20 : i * 20 + 20], X[:20]
        (here / "zarrs").mkdir(exist_ok=True)
        zarr.create_array(f"zarrs/{i}.zarr", data=X[i * 20 : i * 20 + 20])
    with open_store("p?.h5::/a") as store:
        assert store.uri == f"{here}/p?.h5::/a"
        assert_holds(store, X)
    assert_holds(open_store("zarrs"), X)


def test_parts_that_differ_are_refused(here: Path) -> None:
    np.save("a.npy", X)
    np.save("b.npy", X)
    np.save("c.npy", X[:, :4])
    np.save("d.npy", X.astype(np.float64))
    text = refused(["a.npy", "b.npy", "c.npy"], "store-shape")
    assert "a.npy" in text
    assert "c.npy" in text
    assert "5 and 4" in text
    assert "float32 and float64" in refused(["a.npy", "d.npy"], "store-dtype")


def test_h5py_and_zarr_objects_are_opened_by_name(here: Path) -> None:
    with h5py.File("x.h5", "w") as file:
        file["g/emb"] = X
    with h5py.File("x.h5") as file, open_store(file["g/emb"]) as store:  # type: ignore[arg-type]
        assert store.uri == f"{here}/x.h5::/g/emb"
        assert_holds(store, X)
    array = zarr.create_array("x.zarr", data=X, compressors=None)
    with open_store(array) as store:  # type: ignore[arg-type]
        assert store.mapped
        assert_holds(store, X)
    memory = zarr.create_array(zarr.storage.MemoryStore(), data=X)
    assert_holds(open_store(memory), X)  # type: ignore[arg-type]


def test_missing_path_is_named_with_the_nearest_name(here: Path) -> None:
    np.save("vectors.npy", X)
    text = refused("vector.npy", "store-missing")
    assert str(here / "vector.npy") in text
    assert f"Did you mean {here / 'vectors.npy'}?" in text
    assert "does not exist either" in refused("nowhere/x.npy", "store-missing")
    assert "no file matches" in refused("nothing-*.npy", "store-missing")
    refused("vector.h5::/emb", "store-missing")


def test_what_is_no_store_is_refused_with_the_formats_there_are(here: Path) -> None:
    Path("notes.txt").write_text("hello")
    (here / "folder").mkdir()
    for spec in ("notes.txt", "folder"):
        text = refused(spec, "store-format")
        for known in FORMATS:
            assert known.suffixes[0] in text


def test_directory_of_several_kinds_is_refused(here: Path) -> None:
    np.save("a.npy", X)
    (here / "b.fvecs").write_bytes(b"\0" * 40)
    text = refused(".", "store-format")
    assert ".fvecs, .npy" in text
    assert "*.fvecs" in text


def test_name_inside_a_format_without_names_is_refused(here: Path) -> None:
    np.save("a.npy", X)
    assert "'/emb'" in refused("a.npy::/emb", "dataset-missing")


@pytest.mark.parametrize("spec", [[], [[1.0, 2.0], [3.0, 4.0]], 7, b"x.npy", None, '["a", 3]', '["a"'])
def test_what_cannot_be_a_store_is_an_argument_error(spec: object) -> None:
    refused(spec, "store", ArgumentError)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.zeros(5, np.float32), "store-shape"),
        (np.zeros((2, 2, 2), np.float32), "store-shape"),
        (np.zeros((0, 3), np.float32), "store-empty"),
        (np.zeros((3, 0), np.float32), "store-empty"),
        (np.zeros((3, 3), np.int64), "store-dtype"),
        (np.zeros((3, 3), np.complex64), "store-dtype"),
        (np.array([["a", "b"]]), "store-dtype"),
        (np.array([[None, 1]], object), "store-dtype"),
    ],
)
@pytest.mark.parametrize("form", ["array", "npy", "hdf5", "zarr2", "zarr3"])
def test_arrays_that_are_not_vectors_are_refused(here: Path, form: str, array: AnyArray, kind: str) -> None:
    spec: object
    if form == "array":
        spec = array
    elif form == "npy":
        np.save("x.npy", array)
        spec = "x.npy"
    elif array.dtype.kind in "OU" or (form != "hdf5" and 0 in array.shape):
        return  # not what the library writes
    elif form == "hdf5":
        with h5py.File("x.h5", "w") as file:
            file["x"] = array
        spec = "x.h5"
    else:
        zarr.create_array("x.zarr", data=array, zarr_format=int(form[-1]))
        spec = "x.zarr"
    text = refused(spec, kind)
    assert "array" in text or str(here) in text


def test_unreadable_file_is_a_resource_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", X)

    def denied(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refused("x.npy", "store-unreadable", ResourceError)


@pytest.mark.skipif(os.name != "posix", reason="limits on names differ")
def test_name_the_system_cannot_take_is_a_resource_error() -> None:
    assert "too long" in refused("x" * 5000, "store-unreadable", ResourceError)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8"])
def test_each_dtype_in_each_format(here: Path, dtype: str) -> None:
    x = (X * 50 + 100).clip(0, 120).astype(dtype)
    np.save("x.npy", x)
    with h5py.File("x.h5", "w") as file:
        file["raw"] = x
        file.create_dataset("packed", data=x, chunks=(16, 5), compression="gzip")
    for zarr_format in (2, 3):
        zarr.create_array(f"raw{zarr_format}.zarr", data=x, zarr_format=zarr_format, compressors=None)
        zarr.create_array(f"packed{zarr_format}.zarr", data=x, zarr_format=zarr_format, chunks=(16, 5))
    specs = ["x.npy", "x.h5::raw", "raw2.zarr", "raw3.zarr", "x.h5::packed", "packed2.zarr", "packed3.zarr"]
    for spec in specs:
        with open_store(spec) as store:
            assert store.dtype == np.dtype(dtype)
            assert store.mapped is ("packed" not in spec)
            np.testing.assert_array_equal(store.take(np.arange(60)), x)


def test_missing_library_names_the_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "a_library_that_is_not_there", None)
    (here / "reader_of_something.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(here)
    record = Format(name="something", suffixes=(".s",), opener="reader_of_something:f", extra="parquet")
    with pytest.raises(MissingExtraError, match=r"pip install 'ooc\[parquet\]'"):
        record.open(here / "x.s", None)


def test_url_without_fsspec_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = refused("memory://x.zarr", "missing-extra", MissingExtraError)
    assert "pip install 'ooc[remote]'" in text


def test_no_format_library_is_imported_for_what_does_not_need_it(here: Path) -> None:
    np.save("x.npy", X)
    zarr.create_array("x.zarr", data=X, compressors=None)
    code = (
        "import sys; from ooc.stores import open_store\n"
        "for name in ('x.npy', 'x.zarr'): open_store(name).take([1, 2])\n"
        "print(sorted({'zarr', 'h5py', 'pyarrow', 'fsspec', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
