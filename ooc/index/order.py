"""In which order a generation looks into its lists: a handicap of those that spread, and a sketch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ooc.durable import block_checksums
from ooc.engine import Handicap
from ooc.errors import IndexDirError
from ooc.index.arrays import read_array
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

    @property
    def record(self) -> dict[str, Any]:
        """What ``read`` reads, JSON-ready."""
        strength = 0.0 if self.handicap is None else self.handicap.strength
        said: dict[str, Any] = {"handicap": strength, "sketch": self.sketch is not None}
        if self.sketch is not None:
            said["sketch_checksums"] = block_checksums(self.sketch)
        return said

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
        strength = said.get("handicap") if isinstance(said, Mapping) else None
        has_sketch = said.get("sketch") if isinstance(said, Mapping) else None
        of = said.get("sketch_of", generation) if isinstance(said, Mapping) else None
        if (
            not isinstance(of, int)
            or isinstance(of, bool)
            or of < 1
            or not isinstance(strength, int | float)
            or not 0 <= strength <= 1
            or not isinstance(has_sketch, bool)
        ):
            raise IndexDirError(f"the order of the lists is damaged: {said!r}", kind="index-damaged")
        return cls(
            handicap=Handicap(read_spread(layout), float(strength), metric) if strength else None,
            # A generation that changed rows alone goes on with the sketch of an earlier one.
            sketch=layout.sketch(of) if has_sketch else None,
        )


def read_spread(layout: Layout) -> FloatArray:
    """How far the rows of each list spread, ``(nlist,)``, as the template says."""
    spread = read_array(layout.spread_file, np.float32, (None,))
    if not len(spread) or not (np.isfinite(spread) & (spread >= 0)).all():
        raise IndexDirError(f"{layout.spread_file} holds no spreads of lists", kind="index-damaged")
    return spread
