"""The header of an ``.npy`` file, read from bytes that nobody vouches for.

numpy's own reader takes seconds for some damaged headers of a few kB: where Python's parser refuses one, it
goes on with a tokenizer that looks at each blank again and again.
"""

from __future__ import annotations

import ast
import re
import struct
from typing import Any, NamedTuple

import numpy as np

__all__ = ["NpyHeader", "read_npy_header"]

_MAGIC = b"\x93NUMPY"
#: Of each version, how the length of the header is written.
_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
#: Longer ones are of records with thousands of fields, which are no vectors; numpy refuses them too.
_MOST_BYTES = 10_000
#: Whole numbers as Python 2 wrote them.
_LONG = re.compile(r"(?<=[0-9])L\b")


class NpyHeader(NamedTuple):
    """What a header says, and the byte where the values begin."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int


def read_npy_header(data: bytes) -> NpyHeader:
    """The header that the first bytes of a file hold.

    Raises
    ------
    ValueError
        They hold none, or not all of one.
    """
    if data[:6] != _MAGIC or len(data) < 8:
        raise ValueError("it does not begin as an npy file")
    code = _LENGTHS.get((data[6], data[7]))
    if code is None:
        raise ValueError(f"format version {data[6]}.{data[7]}")
    begin = 8 + struct.calcsize(code)
    if len(data) < begin:
        raise ValueError("its header is cut off")
    (length,) = struct.unpack_from(code, data, 8)
    text = data[begin : begin + length]
    if len(text) < length:
        raise ValueError("its header is cut off")
    if len(stripped := text.strip()) > _MOST_BYTES:
        raise ValueError(f"its header has {len(stripped)} bytes")
    try:
        said = ast.literal_eval(_LONG.sub("", stripped.decode("latin-1")))
        shape, fortran = said["shape"], said["fortran_order"]
        dtype = np.lib.format.descr_to_dtype(said["descr"])
    except Exception as error:  # Python's parser raises many kinds
        raise ValueError(f"its header cannot be parsed: {error}") from error
    whole = isinstance(shape, tuple) and all(type(one) is int and one >= 0 for one in shape)
    if len(said) != 3 or not whole or not isinstance(fortran, bool):
        raise ValueError(f"its header says shape {shape!r}, Fortran order {fortran!r}")
    return NpyHeader(shape, fortran, dtype, begin + length)
