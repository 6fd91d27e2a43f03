"""Small indexes that have every kind of file, and what is asked of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import ooc
from ooc.types import AnyArray
from tests.helpers import embeddings

__all__ = ["D", "answers", "make_rich"]

D = 8


def make_rich(
    place: Path, *, factory: str = "HR,IVF4,RaBitQ", n: int = 300, keys: bool = False, **options: Any
) -> Path:
    """An index with several segments, own rows, ids of replaced rows, and dead ones; its directory.

    ``n`` rows, a seventh of it appended, a 25th replaced and a tenth deleted.
    """
    np.save(place / "x.npy", embeddings(n, D, seed=1))
    index = place / "i"
    more, other = n * 2 // 15, n // 25
    names = [f"row {i}" for i in range(n + more)]
    given: dict[str, Any] = {"keys": names[:n]} if keys else {}
    ooc.build(place / "x.npy", index, factory=factory, memory="400MiB", **given, **options)
    given = {"keys": names[n:]} if keys else {}
    ooc.append(index, embeddings(more, D, seed=2), memory="400MiB", **given)
    changed = {"keys": names[5 : 5 + other]} if keys else {"ids": np.arange(5, 5 + other)}
    ooc.upsert(index, changed.pop("ids", None), embeddings(other, D, seed=3), memory="400MiB", **changed)
    ooc.delete(index, np.arange(n // 3, n // 3 + n // 10))
    return index


def answers(path: Path) -> list[AnyArray]:
    """What an index answers, by codes and by vectors, through filters and without."""
    xq = embeddings(6, D, seed=4)
    with ooc.open_index(path) as index:
        found: list[AnyArray] = [*index.search(xq, 5, nprobe=index.nlist, rerank=50)]
        found += index.search(xq, 5, nprobe=2, rerank=0)
        found += index.search(xq, 5, recall=0.9)
        last = index.n - 1  # there are more than are alive
        found += index.search(xq, 3, nprobe=index.nlist, rerank=20, filter=range(10, last - 5))
        found += index.range_search(xq[:2], 4.0, nprobe=index.nlist)
        found.append(index.reconstruct(np.array([0, 5, last // 2, last])))
        if (path / "segments/s1/key_rows.npy").exists():
            found.append(np.asarray(index.keys(found[1])))
            found.append(index.ids_of(["row 3", "row 61"]))
        return found
