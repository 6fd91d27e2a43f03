"""What an index must answer, kept in memory: vectors and keys by id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

import ooc
from ooc.types import FloatArray, IntArray
from tests.helpers import exact_search

Key: TypeAlias = int | str


class Model:
    """Live vectors by id, exact search over them by numpy, and which id has a key."""

    def __init__(self, x: FloatArray, metric: str, keys: Sequence[Key] = ()) -> None:
        self.metric = metric
        self.vectors: dict[int, FloatArray] = dict(enumerate(x))
        self.id_end = len(x)
        #: By id; those of rows that were deleted are not among them.
        self.keys: dict[int, Key] = dict(enumerate(keys))

    def append(self, x: FloatArray, keys: Sequence[Key] = ()) -> None:
        self.vectors.update(enumerate(x, self.id_end))
        self.keys.update(enumerate(keys, self.id_end))
        self.id_end += len(x)

    def delete(self, ids: IntArray) -> None:
        for one in ids.tolist():
            self.vectors.pop(one, None)
            self.keys.pop(one, None)

    def upsert(self, ids: IntArray, x: FloatArray) -> None:
        self.vectors.update(zip(ids.tolist(), x, strict=True))

    def ids_of(self, keys: Sequence[Key]) -> IntArray:
        """As ``Index.ids_of``."""
        known = {key: one for one, key in self.keys.items()}
        return np.array([known.get(key, -1) for key in keys], np.int64)

    def delete_keys(self, keys: Sequence[Key]) -> int:
        """How many were there."""
        ids = self.ids_of(keys)
        self.delete(ids[ids >= 0])
        return int((ids >= 0).sum())

    def upsert_keys(self, keys: Sequence[Key], x: FloatArray) -> None:
        """Keys that no row has get new ids, in the order given."""
        for key, one, vector in zip(keys, self.ids_of(keys).tolist(), x, strict=True):
            if one < 0:
                one = self.id_end
                self.id_end += 1
            self.vectors[one], self.keys[one] = vector, key

    def same_as(self, other: Model) -> None:
        """See that it is the same rows under the same ids and keys."""
        assert (self.keys, self.id_end) == (other.keys, other.id_end)
        np.testing.assert_array_equal(self.ids, other.ids)
        for one, vector in self.vectors.items():
            np.testing.assert_array_equal(vector, other.vectors[one])

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

    def check_keys(self, index: ooc.Index, others: Iterable[Key]) -> None:
        """The index knows the key of each live row and the row of each key, and none of ``others``."""
        keys = [*self.keys.values(), *(key for key in others if key not in set(self.keys.values()))]
        np.testing.assert_array_equal(index.ids_of(keys), self.ids_of(keys))
        ids = np.array([*self.keys, -1], np.int64)
        missing = -1 if index.key_kind == "int64" else None
        assert index.keys(ids).tolist() == [*self.keys.values(), missing]

    def check_at(self, path: Path, xq: FloatArray, k: int = 10) -> None:
        with ooc.open_index(path) as index:
            self.check(index, xq, k)
