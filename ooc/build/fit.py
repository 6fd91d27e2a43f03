"""How well rows fit the template: how far they are from the centroids of their lists.

Rows of another kind than those that were trained on lie farther, and what recall was measured before them
says little of them (``ooc.index.drift``). Filling measures every sixteenth row, which costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from ooc.build.rows import Prepared
from ooc.build.shards import Shard
from ooc.build.train import Template
from ooc.index.drift import MEASURED
from ooc.types import IntArray

__all__ = ["assignment_error", "fit"]


def fit(template: Template, prepared: Prepared, list_nos: IntArray) -> tuple[float, int]:
    """The sum of squared distances to their centroids of some rows of a block, and of how many.

    Parameters
    ----------
    list_nos : (m,) int64
        The list of each row, the nearest one.
    """
    x = prepared.x[::MEASURED]  # a block begins at a multiple of it
    # Rows that hold NaN or infinity were set to zero, and a direction of zeros is none.
    some = x.any(axis=1)
    far = template.apart(x[some], list_nos[::MEASURED][some])
    far = far[np.isfinite(far)]  # squares of very large values are not
    return float(far.sum(dtype=np.float64)), len(far)


def assignment_error(shards: Iterable[Shard]) -> dict[str, float]:
    """What the record of a segment says: ``assignment_error``, the mean; nothing where no row was measured.

    The sum is exact but for one rounding, so how the rows were cut into shards does not show.
    """
    blocks = [block for shard in shards for block in shard.fit]
    count = sum(number for _, number in blocks)
    return {"assignment_error": math.fsum(total for total, _ in blocks) / count} if count else {}
