"""Sets of allowed ids as faiss asks them, while it scans lists."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from ooc.types import BytesArray, IntArray

__all__ = ["Selector"]


class Selector:
    """A set of allowed ids. Made by one of its ``of`` functions; safe from several threads.

    Attributes
    ----------
    native : faiss.IDSelector
        For ``faiss.SearchParametersIVF(sel=...)``, which keeps it alive; valid as long as this object,
        which holds the memory that it points into.
    """

    __slots__ = ("_memory", "native")

    def __init__(self, native: Any, memory: object = None) -> None:
        self.native = native
        self._memory = memory

    @classmethod
    def of_range(cls, first: int, stop: int) -> Selector:
        """Ids ``first`` to ``stop - 1``. Their place is found by bisection: ids ascend within a list."""
        return cls(faiss.IDSelectorRange(first, stop, True))

    @classmethod
    def of_bits(cls, bits: BytesArray) -> Selector:
        """Ids whose bit is 1: id ``i`` is bit ``i % 8``, from the lowest, of byte ``i // 8``. No copy.

        Ids beyond the bits are not allowed.
        """
        bits = np.ascontiguousarray(bits, dtype=np.uint8)
        return cls(faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)), bits)

    @classmethod
    def of_other_bits(cls, bits: BytesArray) -> Selector:
        """Ids whose bit is 0, and those beyond the bits. No copy."""
        listed = cls.of_bits(bits)
        return cls(faiss.IDSelectorNot(listed.native), listed)

    @classmethod
    def of_ids(cls, ids: IntArray) -> Selector:
        """The given ids, copied to a hash table behind a Bloom filter: some 50 bytes an id."""
        ids = np.ascontiguousarray(ids, dtype=np.int64)
        return cls(faiss.IDSelectorBatch(len(ids), faiss.swig_ptr(ids)))
