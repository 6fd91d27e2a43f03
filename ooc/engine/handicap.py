"""In which order lists are looked into: the nearest centroid first is not the best order.

A list whose rows lie far from their centroid has few of them near to a query that lies near to the centroid,
and is read for little. How far lists are put back for that is a matter of the collection: in many dimensions
rows lie all around a centroid, as far from it as the list is wide, and in few they do not. So the strength is
chosen by what a build measures (``ooc.build.order``). With 0 the nearest centroid comes first.
"""

from __future__ import annotations

import numpy as np

from ooc.types import AnyArray, FloatArray, IntArray, Metric

__all__ = ["Handicap"]

#: Mean rows shorter than this part of the usual are taken to be as long: few rows tell little of a list.
_SHORTEST = 0.05


class Handicap:
    """How far each list is put back: distances grow by its spread, products shrink with the mean row.

    For ``l2`` the order is by ``|q - c|² + strength · s``, where ``s`` is the mean squared distance of the
    list's rows to the centroid: at strength 1 the mean squared distance of the query to them. For ``ip`` and
    ``cosine`` it is by ``q·c · (s / mean s) ** strength``, where ``c`` is of unit length and ``s`` the length
    of the mean row: at 1 the mean product with them.

    Parameters
    ----------
    spread : (nlist,) float32
        ``s`` of each list.
    strength : float
        From 0, the nearest centroid first, to 1.
    metric : {"l2", "ip", "cosine"}
    """

    def __init__(self, spread: FloatArray, strength: float, metric: Metric) -> None:
        self.strength, self._l2 = strength, metric == "l2"
        if self._l2:
            values = spread * np.float32(strength)
        else:
            usual = np.maximum(spread.mean(), np.finfo(np.float32).tiny)
            values = np.maximum(spread / usual, np.float32(_SHORTEST)) ** np.float32(strength)
        self._values: FloatArray = values.astype(np.float32)

    def __len__(self) -> int:
        """Of how many lists."""
        return len(self._values)

    def key(self, found: FloatArray, numbers: IntArray | None = None) -> FloatArray:
        """What to order lists by, the least first.

        Parameters
        ----------
        found : (m, c) float32
            Squared distances to centroids, or to all of them the same too few; else products.
        numbers : (m, c) int64, optional
            Which centroids, where not all in their order.
        """
        values = self._values if numbers is None else self._values[numbers]
        key: FloatArray = found + values if self._l2 else found * -values
        return key

    def folded(self, low: AnyArray, left: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Centroids ``low`` ``(k, m)`` that are nearest in this order by plain distances or products.

        And ``left`` ``(k,)``, the squares that for ``l2`` add to their distance to anything.
        """
        if self._l2:
            return low, left + self._values
        return low * self._values[:, None], left
