"""What an index must answer, kept in memory: vectors by id."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ooc
from ooc.types import FloatArray, IntArray
from tests.helpers import exact_search


class Model:
    """Live vectors by id, and exact search over them by numpy."""

    def __init__(self, x: FloatArray, metric: str) -> None:
        self.metric = metric
        self.vectors: dict[int, FloatArray] = dict(enumerate(x))
        self.id_end = len(x)

    def append(self, x: FloatArray) -> None:
        self.vectors.update(enumerate(x, self.id_end))
        self.id_end += len(x)

    def delete(self, ids: IntArray) -> None:
        for one in ids.tolist():
            self.vectors.pop(one, None)

    def upsert(self, ids: IntArray, x: FloatArray) -> None:
        self.vectors.update(zip(ids.tolist(), x, strict=True))

    @property
    def ids(self) -> IntArray:
        return np.array(sorted(self.vectors), np.int64)

    def search(self, xq: FloatArray, k: int) -> tuple[FloatArray, IntArray]:
        """As ``Index.search``."""
        ids = self.ids
        worst = np.inf if self.metric == "l2" else -np.inf
        found = np.full((len(xq), k), worst, np.float32), np.full((len(xq), k), -1, np.int64)
        if len(ids):
            x = np.stack([self.vectors[one] for one in ids.tolist()])
            distances, places = exact_search(x, xq, min(k, len(ids)), self.metric)
            found[0][:, : distances.shape[1]] = distances
            found[1][:, : distances.shape[1]] = ids[places]
        return found

    def check(self, index: ooc.Index, xq: FloatArray, k: int = 10) -> None:
        """The index answers as this does: by comparing all, and through all lists with all candidates."""
        expected, ids = self.search(xq, k)
        assert index.n == len(self.vectors)
        for options in ({"recall": 1.0}, {"nprobe": index.nlist, "rerank": max(index.n - 1, k)}):
            distances, found = index.search(xq, k, **options)  # type: ignore[call-overload]
            np.testing.assert_array_equal(found, ids, err_msg=str(options))
            there = ids >= 0
            np.testing.assert_allclose(distances[there], expected[there], rtol=2e-4, atol=2e-4)

    def check_at(self, path: Path, xq: FloatArray, k: int = 10) -> None:
        with ooc.open_index(path) as index:
            self.check(index, xq, k)
