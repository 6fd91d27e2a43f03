"""What measuring recall needs to know of an index beside its lists: a plan says it, and so does an index."""

from __future__ import annotations

from typing import Protocol

from ooc.types import Metric

__all__ = ["Searched"]


class Searched(Protocol):
    """Of an index that is searched.

    Attributes
    ----------
    n : int
        Rows that were considered.
    metric : {"l2", "ip", "cosine"}
    lists_per_row : int
        How many lists a row is in.
    row_bytes : int
        Bytes of a row where a search reads it.
    threads : int
        How many may be used.
    """

    @property
    def n(self) -> int: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def lists_per_row(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...
