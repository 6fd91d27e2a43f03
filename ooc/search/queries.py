"""What a caller asks, checked: queries as a search takes them, and numbers in their range."""

from __future__ import annotations

import math

import numpy as np

from ooc.errors import ArgumentError, DataError
from ooc.stores.base import as_float32
from ooc.types import AnyArray, FloatArray, Metric
from ooc.vectors import normalise

__all__ = ["as_queries", "check_at_least"]

#: Over so few values numpy keeps Python's lock. Letting go of it wakes other threads that search, which
#: takes longer than the sum.
_PIECE = 500


def as_queries(xq: AnyArray, d: int, metric: Metric) -> FloatArray:
    """Queries as ``(nq, d)`` float32, of unit length where the metric is cosine.

    Raises
    ------
    DataError
        Of another shape or dtype, or with NaN or infinity.
    """
    array = np.asarray(xq)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise DataError(f"queries must be numbers, not {array.dtype}", kind="query-dtype")
    if array.ndim == 1:
        array = array[None] if array.size else array.reshape(0, d)
    if array.ndim != 2 or (array.shape[1] != d and array.size):
        raise DataError(
            f"queries have shape {array.shape}; this index takes (nq, {d})",
            kind="query-shape",
            hint="Use the model that made the indexed vectors.",
        )
    queries = as_float32(array.reshape(-1, d))
    if len(queries) == 1 and _sums_up(queries[0]):
        return normalise(queries)[0] if metric == "cosine" else queries
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise DataError(
            f"query {int(np.flatnonzero(~finite)[0])} holds NaN or infinity "
            f"({int((~finite).sum())} of {len(queries)} queries do)",
            kind="query-values",
        )
    return normalise(queries)[0] if metric == "cosine" else queries


def _sums_up(query: FloatArray) -> bool:
    """Whether all values are finite; where they are so large that their sum is not, False too."""
    with np.errstate(over="ignore", invalid="ignore"):
        pieces = range(0, len(query), _PIECE)
        return all(math.isfinite(np.add.reduce(query[at : at + _PIECE])) for at in pieces)


def check_at_least(name: str, value: int, least: int) -> None:
    """See that a number is whole and large enough.

    Raises
    ------
    ArgumentError
        When it is not; its kind is the name.
    """
    whole: object = value
    if isinstance(whole, bool) or not isinstance(whole, int | np.integer) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}", kind=name)
