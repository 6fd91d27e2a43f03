"""Exact distances between pairs of vectors, computed where the vectors lie."""

from __future__ import annotations

import faiss
import numpy as np

from ooc.types import FloatArray, IntArray, Metric

__all__ = ["pairs"]


def pairs(x: FloatArray, ix: IntArray, y: FloatArray, iy: IntArray, metric: Metric) -> FloatArray:
    """Distances ``(p,)`` of the pairs ``x[ix[i]], y[iy[i]]``: squared for l2, else products.

    Nothing is copied: ``y`` may be a mapped file of any size.

    Parameters
    ----------
    x, y : (m, d) and (n, d) float32
        C-contiguous.
    ix, iy : (p,) int64
        Row numbers, all within ``x`` and ``y``: nothing is checked.
    """
    ix, iy = np.ascontiguousarray(ix, dtype=np.int64), np.ascontiguousarray(iy, dtype=np.int64)
    found = np.empty(len(ix), np.float32)
    compute = faiss.pairwise_indexed_L2sqr if metric == "l2" else faiss.pairwise_indexed_inner_product
    compute(
        x.shape[1],
        len(ix),
        faiss.swig_ptr(x),
        faiss.swig_ptr(ix),
        faiss.swig_ptr(y),
        faiss.swig_ptr(iy),
        faiss.swig_ptr(found),
    )
    return found
