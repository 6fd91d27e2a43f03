"""One file that plain faiss opens: what it says of an index, its lists to follow as a stream.

faiss writes an index with its lists last: ``ilar``, the sizes, and then list after list its codes and its
ids. So all that comes before the data can be written by faiss itself, of the template, and the data in the
order of the lists, however much it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from ooc.durable import DurableFile
from ooc.engine.codec import Codec
from ooc.errors import ResourceError
from ooc.types import IntArray

__all__ = ["begin_single"]


def begin_single(file: DurableFile, codec: Codec, sizes: IntArray, *, nprobe: int, normalise: bool) -> None:
    """Write everything that comes before the lists.

    They follow one after the other in the order of their numbers, each as all its codes and then all its ids
    (int64).

    Parameters
    ----------
    file : DurableFile
        Nothing was written to it yet.
    codec : Codec
        The template; of no use afterwards.
    sizes : (nlist,) int64
        Entries of each list.
    nprobe : int
        What a search of the file probes where its caller sets nothing else.
    normalise : bool
        Whether the file brings vectors and queries to unit length itself.

    Raises
    ------
    ResourceError
        This version of faiss writes something else than is known here.
    """
    codec._ivf.ntotal = codec._index.ntotal = int(sizes.sum())
    codec._ivf.nprobe = nprobe
    top = _normalising(codec) if normalise else codec._index
    top.ntotal = int(sizes.sum())
    # What faiss writes of lists that are empty.
    nothing = _lists(codec, b"sprs", np.empty(0, np.int64))
    held = _HeldBack(file.write, len(nothing))
    writer = faiss.PyCallbackIOWriter(held)
    faiss.write_index(top, writer)
    del writer
    if held.end != nothing:
        raise ResourceError(
            f"faiss {faiss.__version__} writes lists in a way that is not known here", kind="engine"
        )
    there = np.flatnonzero(sizes)
    if len(there) > codec.nlist // 2:
        file.write(_lists(codec, b"full", sizes))
    else:
        file.write(_lists(codec, b"sprs", np.stack([there, sizes[there]], axis=1).reshape(-1)))


def _normalising(codec: Codec) -> Any:
    """The index behind a step that brings vectors to unit length."""
    step = faiss.NormalizationTransform(codec.d, 2.0)
    if hasattr(codec._index, "chain"):
        codec._index.prepend_transform(step)
        step.this.disown()  # the index frees what is in its chain
        return codec._index
    return faiss.IndexPreTransform(step, codec._index)


def _lists(codec: Codec, kind: bytes, sizes: IntArray) -> bytes:
    """The head of faiss's ``ArrayInvertedLists``."""
    head = b"ilar" + struct.pack("<QQ", codec.nlist, codec.code_size) + kind
    return head + struct.pack("<Q", len(sizes)) + sizes.astype("<u8").tobytes()


class _HeldBack:
    """Passes on what is written but for the last ``count`` bytes, which are kept as ``end``."""

    def __init__(self, write: Callable[[bytes], None], count: int) -> None:
        self._write, self._count = write, count
        self.end = b""

    def __call__(self, data: bytes) -> None:
        both = self.end + data
        self.end = both[-self._count :]
        self._write(both[: -self._count])
