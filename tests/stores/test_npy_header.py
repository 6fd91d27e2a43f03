"""Headers of npy files are read as numpy reads them, and what is none is refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest

from ooc.stores.npy_header import read_npy_header


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "|i1", "<u4", "|V2"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_as_numpy_reads_them(dtype: str, shape: tuple[int, ...], version: tuple[int, int]) -> None:
    array = np.zeros(shape, dtype)
    if array.ndim == 2:
        array = np.asfortranarray(array)
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    found = read_npy_header(file.getvalue())
    file.seek(8)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    assert found[:3] == read(file)
    assert found.begin == file.tell()


def header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    data = text.encode("latin-1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(data))
    return b"\x93NUMPY" + bytes(version) + length + data


def test_numbers_of_python_2() -> None:
    found = read_npy_header(header("{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L), }\n"))
    assert found.shape == (3, 4)


SOUND: dict[str, Any] = {"descr": "<f4", "fortran_order": False, "shape": (3, 4)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPX\x01\x00" + b" " * 100,
        header(repr(SOUND), (2, 0))[:-3],
        header(repr(SOUND)).replace(b"\x01\x00", b"\x03\x00", 1),
        *(header(repr({**SOUND, "shape": shape})) for shape in ((-1, 4), (True, 4), (1.5, 4), [3, 4], None)),
        *(header(repr({**SOUND, "descr": descr})) for descr in ("x", None, 3, {"a": 1})),
        header(repr({**SOUND, "fortran_order": 1})),
        header(repr({**SOUND, "more": 1})),
        header(repr({"descr": "<f4"})),
        header("[" * 20_000),
        header("__import__('os')"),
        header(repr(SOUND)[:-1] + " " * 5000),  # numpy's own reader goes through the blanks one by one
        header("{" + "'a': 1, " * 2000 + "}"),
    ],
)
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it |header|version"):
        read_npy_header(data)
