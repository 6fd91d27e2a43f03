"""What a caller asks, checked: queries as a search takes them, and numbers in their range."""

from __future__ import annotations

import numpy as np

from ooc.errors import ArgumentError, DataError
from ooc.stores.base import as_float32
from ooc.types import AnyArray, FloatArray, Metric
from ooc.vectors import LEAST_SQUARE, MOST_SQUARE, normalise

__all__ = ["as_queries", "check_at_least", "check_given"]

#: Over so few values numpy keeps Python's lock. Letting go of it wakes other threads that search, which
#: takes longer than the division.
_PIECE = 500
#: The largest number that is stored.
_MOST = 2**63 - 1


def as_queries(xq: AnyArray, d: int, metric: Metric) -> FloatArray:
    """Queries as ``(nq, d)`` float32, of unit length where the metric is cosine.

    Raises
    ------
    DataError
        Of another shape or dtype, of no shape at all, or with NaN or infinity.
    """
    try:
        array = np.asarray(xq)
    except ValueError as error:
        raise DataError(f"queries are no array (nq, {d}): {error}", kind="query-shape") from error
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
    if len(queries) == 1:
        square = np.einsum("ij,ij->i", queries, queries)
        if LEAST_SQUARE < square[0] < MOST_SQUARE:  # then no value is NaN or infinite
            return _divided(queries, np.sqrt(square[0])) if metric == "cosine" else queries
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise DataError(
            f"query {int(np.flatnonzero(~finite)[0])} holds NaN or infinity "
            f"({int((~finite).sum())} of {len(queries)} queries do)",
            kind="query-values",
        )
    return normalise(queries)[0] if metric == "cosine" else queries


def _divided(query: FloatArray, length: np.float32) -> FloatArray:
    """A query ``(1, d)`` divided by its length."""
    unit = np.empty_like(query)
    for at in range(0, query.shape[1], _PIECE):
        np.divide(query[:, at : at + _PIECE], length, out=unit[:, at : at + _PIECE])
    return unit


def check_at_least(name: str, value: int, least: int) -> int:
    """A whole number, large enough and of 64 bits, as a Python ``int``: numpy's have ways of their own.

    Raises
    ------
    ArgumentError
        When it is not; its kind is the name.
    """
    whole: object = value
    if isinstance(whole, bool) or not isinstance(whole, int | np.integer) or value < least:
        raise ArgumentError(f"{name} must be a whole number of at least {least}, not {value!r}", kind=name)
    number = int(value)
    if number > _MOST:
        raise ArgumentError(f"{name} must be at most {_MOST}, not {value!r}", kind=name)
    return number


def check_given(name: str, value: int | None, least: int) -> int | None:
    """As ``check_at_least``, of a number that need not be given."""
    return None if value is None else check_at_least(name, value, least)
