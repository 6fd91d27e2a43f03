"""Queries of the caller's, by which recall is measured in place of rows of the store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from ooc.build.rows import prepare
from ooc.build.sizes import most_witnesses
from ooc.durable import as_bytes
from ooc.errors import ConflictError, DataError
from ooc.stores import open_store
from ooc.types import FloatArray, Metric, StoreLike
from ooc.vectors import evenly

if TYPE_CHECKING:
    from ooc.build.plan import Plan

__all__ = ["fingerprint", "planned_queries", "read_queries"]


def read_queries(queries: StoreLike, *, d: int, metric: Metric, count: int) -> FloatArray:
    """Up to ``count`` of the queries, evenly spaced, ``(q, d)`` float32 prepared for the metric.

    Raises
    ------
    StoreError
        They cannot be read.
    DataError
        They have another width, or one that was chosen holds NaN or infinity.
    """
    with open_store(queries) as store:
        where = store.uri or "the array"
        if store.d != d:
            raise DataError(
                f"the queries in {where} have {store.d} dimensions, and the rows {d}",
                kind="query-shape",
                hint="Use the model that made the rows.",
            )
        some = evenly(store.n, count)
        prepared = prepare(store.take(some), metric)
    if len(prepared.bad):
        raise DataError(
            f"query {int(some[prepared.bad[0]])} of {where} holds NaN or infinity (numbers begin at 0)",
            kind="query-values",
            hint="Mend it, or leave it out.",
        )
    return np.ascontiguousarray(prepared.x, dtype=np.float32)


def planned_queries(queries: StoreLike, plan: Plan) -> FloatArray:
    """The queries that a plan was made with.

    Raises
    ------
    StoreError, DataError
        As ``read_queries``.
    ConflictError
        They are others.
    """
    x = read_queries(queries, d=plan.d, metric=plan.metric, count=most_witnesses(plan.n))
    if fingerprint(x) != plan.queries:
        raise ConflictError("the queries were changed since the build was planned", kind="store-changed")
    return x


def fingerprint(queries: FloatArray) -> str:
    """A short text that differs where queries do."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(as_bytes(queries))}"
