"""From the dtype rows come in to the dtype a store holds: rounding where it is meant, never silence.

To a float dtype values are rounded to nearest; a finite value that would become infinite is refused.
To int8 or uint8 every value must be whole and in range. NaN and infinity pass between float dtypes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ooc.errors import ArgumentError, DataError
from ooc.types import AnyArray

__all__ = ["WRITABLE", "as_rows", "cast_rows", "writable_dtype"]

#: The dtypes that can be written, by name.
WRITABLE = ("float32", "float16", "float64", "int8", "uint8")


def writable_dtype(
    dtype: Any, *, allowed: tuple[str, ...] = WRITABLE, what: str = "a store"
) -> np.dtype[Any]:
    """The dtype, native and checked.

    Raises
    ------
    ArgumentError
        When it is not one of ``allowed``; ``what`` names what cannot hold it.
    """
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in allowed:
        raise ArgumentError(
            f"{what} cannot be written as {name}",
            kind="dtype",
            hint=f"It may hold {', '.join(allowed)}.",
        )
    found: np.dtype[Any] = np.dtype(name)
    return found


def as_rows(rows: Any, d: int) -> AnyArray:
    """The rows as a 2-d array of numbers with ``d`` columns; not copied where they are one already.

    Raises
    ------
    DataError
        When they are not 2-d, have another number of columns, or are not integers or floats.
    """
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] != d:
        raise DataError(
            f"the rows have the shape {array.shape}; this store takes (m, {d})",
            kind="rows-shape",
            hint="Hand over a 2-d array, one vector a row.",
        )
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise DataError(
            f"the rows are {array.dtype.name}; only integers and floats can be stored", kind="rows-dtype"
        )
    return array


def cast_rows(rows: AnyArray, dtype: np.dtype[Any], *, first: int = 0) -> AnyArray:
    """The rows in another dtype, by the rule of this module; the same array where it has it already.

    Parameters
    ----------
    rows : (m, d) array
        Integers or floats.
    dtype : numpy.dtype
        One of ``WRITABLE``.
    first : int
        Number of the first of the rows, for the message.

    Raises
    ------
    DataError
        When a value does not fit; the message names its row.
    """
    if rows.dtype == dtype:
        return rows
    if rows.dtype.name == "bfloat16":
        return cast_rows(rows.astype(np.float32), dtype, first=first)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = rows.astype(dtype)
    if dtype.kind == "f":
        if np.can_cast(rows.dtype, dtype):
            return cast
        bad = np.isinf(cast)
        if bad.any():
            bad &= np.isfinite(rows)
        rule = "beyond its range"
    else:
        # What is not whole, out of range or NaN comes back as another number.
        bad = cast != rows
        rule = "which holds whole numbers from {0.min} to {0.max} only".format(np.iinfo(dtype))
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        column = int(np.flatnonzero(bad[row])[0])
        raise DataError(
            f"row {first + row} holds {rows[row, column]!s} in column {column}, which {dtype.name} cannot "
            f"hold: it is {rule}"
            if dtype.kind == "f"
            else f"row {first + row} holds {rows[row, column]!s} in column {column}, which does not fit "
            f"{dtype.name}, {rule}",
            kind="value-range",
            hint="Choose a wider dtype, or scale the values first.",
        )
    return cast
