"""npy, fvecs/bvecs and big-ann files that are damaged, foreign or empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ooc.errors import DataError, MissingExtraError, StoreError
from ooc.stores import open_store

X = np.arange(60, dtype=np.float32).reshape(12, 5)


def refused(path: Path, kind: str) -> str:
    with pytest.raises(StoreError) as caught:
        open_store(path)
    assert caught.value.kind == kind
    assert str(path) in str(caught.value)
    return str(caught.value)


def fvecs(x: np.ndarray) -> bytes:
    dims = np.full((len(x), 1), x.shape[1], "<i4")
    return np.hstack([dims.view(np.float32), x]).tobytes()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npy_of_each_header_version(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "x.npy").open("wb") as out:
        np.lib.format.write_array(out, X, version=version)
    with open_store(tmp_path / "x.npy") as store:
        np.testing.assert_array_equal(store.read(0, 12), X)


def test_npy_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "x.npy", np.array([[Trap()]], object), allow_pickle=True)
    refused(tmp_path / "x.npy", "store-dtype")
    assert not (tmp_path / "sprung").exists()


def test_npy_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, X)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert f"need {len(whole)} bytes, the file has {len(whole) - 1}" in refused(path, "store-format")
    for length in (0, 5, 9, 60):
        path.write_bytes(whole[:length])
        refused(path, "store-format")


def test_npy_with_a_foreign_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY\x09\x00" + b" " * 120)
    assert "9" in refused(path, "store-format")
    np.save(path, X)
    path.write_bytes(path.read_bytes().replace(b"(12, 5)", b"(-1, 5)"))
    refused(path, "store-format")


@pytest.mark.parametrize("suffix", [".fvecs", ".bvecs"])
def test_vecs_that_make_no_sense_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    refused(path, "store-empty")
    for first in (b"\x05", b"\0\0\0\0" * 9, b"\xff\xff\xff\xff" * 9, b"\x00\x00\x00\x10" * 9):
        path.write_bytes(first)
        refused(path, "store-format")


def test_fvecs_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.fvecs"
    path.write_bytes(fvecs(X)[:-3])
    assert "11 rows of 24 bytes and 21 bytes more" in refused(path, "store-format")


def test_fvecs_row_of_another_dimension_is_named(tmp_path: Path) -> None:
    data = bytearray(fvecs(X))
    data[7 * 24 : 7 * 24 + 4] = (6).to_bytes(4, "little")
    path = tmp_path / "x.fvecs"
    path.write_bytes(data)
    with open_store(path) as store:
        np.testing.assert_array_equal(store.read(0, 7), X[:7])
        np.testing.assert_array_equal(store.take(np.array([11, 3])), X[[11, 3]])
        for call in (
            lambda: store.read(5, 9),
            lambda: store.take(np.array([2, 7, 1])),
            lambda: list(store.blocks(4)),
        ):
            with pytest.raises(DataError, match="row 7 says that it has 6 dimensions") as caught:
                call()
            assert caught.value.kind == "row-dimension"


@pytest.mark.parametrize("suffix", [".fbin", ".u8bin", ".i8bin", ".f16bin", ".bf16bin"])
def test_bin_that_does_not_fit_its_header_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"\x01\0\0\0")
    refused(path, "store-format")
    path.write_bytes(np.array([0, 5], "<u4").tobytes())
    refused(path, "store-empty")
    path.write_bytes(np.array([12, 5], "<u4").tobytes() + b"\0" * 59)
    assert "12 x 5" in refused(path, "store-format")
    path.write_bytes(np.array([2**32 - 1, 2**32 - 1], "<u4").tobytes() + b"\0" * 59)
    refused(path, "store-format")


def test_bfloat16_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.bf16bin"
    path.write_bytes(np.array([1, 2], "<u4").tobytes() + b"\0" * 4)
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ooc\[bfloat16\]'"):
        open_store(path)
