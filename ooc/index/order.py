"""In which order a generation looks into its lists: a handicap of those that spread, and a sketch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ooc.engine import Handicap
from ooc.errors import IndexDirError
from ooc.index.layout import Layout
from ooc.types import FloatArray, Metric

__all__ = ["Order", "read_spread"]


@dataclass(frozen=True, slots=True)
class Order:
    """How lists are found: without a handicap the nearest first, without a sketch by comparing all.

    Attributes
    ----------
    handicap : Handicap, optional
    sketch : Path, optional
        The file of it.
    """

    handicap: Handicap | None = None
    sketch: Path | None = None

    @classmethod
    def of(
        cls, record: Mapping[str, Any], spread: FloatArray, metric: Metric, sketch: Path | None = None
    ) -> Self:
        """What the record of an order says, of lists that spread so far; ``sketch`` is where one would be."""
        strength, has_sketch = record.get("handicap"), record.get("sketch")
        if (
            not isinstance(strength, int | float)
            or not 0 <= strength <= 1
            or not isinstance(has_sketch, bool)
        ):
            raise IndexDirError(f"the order of the lists is damaged: {dict(record)}", kind="index-damaged")
        return cls(
            handicap=Handicap(spread, float(strength), metric) if strength else None,
            sketch=sketch if has_sketch else None,
        )

    @classmethod
    def read(cls, layout: Layout, generation: int, record: Mapping[str, Any], metric: Metric) -> Self:
        """The order of a published generation; one without a record of it has neither.

        Raises
        ------
        IndexDirError
            The record, or what the template says of the lists, is missing or damaged.
        """
        said = record.get("order")
        if said is None:
            return cls()
        if not isinstance(said, Mapping):
            raise IndexDirError(f"the order of the lists is damaged: {said!r}", kind="index-damaged")
        spread = read_spread(layout) if said.get("handicap") else np.ones(1, np.float32)
        return cls.of(said, spread, metric, layout.sketch(generation))


def read_spread(layout: Layout) -> FloatArray:
    """How far the rows of each list spread, ``(nlist,)``, as the template says."""
    try:
        spread: FloatArray = np.load(layout.spread_file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexDirError(
            f"{layout.spread_file} cannot be read: {error}",
            kind="index-damaged",
            hint="Copy the whole directory anew, or remove it and build.",
        ) from error
    if spread.ndim != 1 or spread.dtype != np.float32 or not np.isfinite(spread).all() or spread.min() < 0:
        raise IndexDirError(f"{layout.spread_file} holds no spreads of lists", kind="index-damaged")
    return spread
