"""Whether a store holds the vectors that an index was made of: its codes know."""

from __future__ import annotations

import numpy as np

from ooc.engine import Foreign
from ooc.errors import ConflictError
from ooc.index.lists import ID_BYTES
from ooc.stores import Store
from ooc.stores.base import as_float32
from ooc.types import BytesArray, IntArray
from ooc.vectors import evenly, normalise

__all__ = ["see_vectors"]

#: Entries that are looked at, and the share of them that must be nearer to their own row than to others'.
_LOOKED_AT, _MOST = 128, 0.5


def see_vectors(foreign: Foreign, data: BytesArray, store: Store) -> None:
    """See that what the codes of some ids stand for is nearer to their rows than to other rows.

    Of another store, or one in another order, it is nearest to its own row as often as to any other.

    Raises
    ------
    ConflictError
        The store holds other vectors.
    """
    codec = foreign.codec
    lists, places = _some(foreign.sizes)
    codes, ids = _entries(foreign, data, lists, places)
    rows = as_float32(store.take(np.unique(ids)))[np.searchsorted(np.unique(ids), ids)]
    if foreign.metric == "cosine":
        rows = normalise(rows)[0]
    y, meant = codec.transform(rows), codec.decode(codes, lists)
    far = ((meant[:, None] - y[None]) ** 2).sum(axis=2) if len(y) else np.zeros((0, 0))
    own = far.diagonal()
    # Rows that are equal are as near.
    right = own <= far.min(axis=1) * (1 + 1e-5)
    if len(y) > 1 and right.mean() < _MOST:
        raise ConflictError(
            f"{store.describe()} does not hold the vectors of the index: of {len(y)} rows that were compared "
            f"with their codes {int((~right).sum())} are others",
            kind="store-changed",
            hint="Row i of the store must be the vector of id i; leave the store out to search by codes.",
        )


def _some(sizes: IntArray) -> tuple[IntArray, IntArray]:
    """Lists and places of entries from all over the lists."""
    ends = np.cumsum(sizes)
    picked = evenly(int(ends[-1]), _LOOKED_AT)
    lists = np.searchsorted(ends, picked, side="right")
    return lists, picked - (ends - sizes)[lists]


def _entries(
    foreign: Foreign, data: BytesArray, lists: IntArray, places: IntArray
) -> tuple[BytesArray, IntArray]:
    """Codes and ids of entries."""
    size = foreign.codec.code_size
    codes = foreign.codes_at[lists] + places * size
    ids = foreign.ids_at[lists] + places * ID_BYTES
    return (
        np.stack([data[at : at + size] for at in codes.tolist()]),
        np.concatenate([data[at : at + ID_BYTES] for at in ids.tolist()]).view(np.int64),
    )
