"""What a code makes of distances: rows encoded and scanned in memory, to see how good it would be."""

from __future__ import annotations

import itertools

import faiss
import numpy as np

from ooc.engine.codec import Codec
from ooc.types import FloatArray, IntArray, Metric

__all__ = ["code_distances"]

#: Beyond any distance, and below any similarity, in float32.
_FAR = 3e38


def code_distances(
    factory: str,
    metric: Metric,
    seed: int,
    centroids: FloatArray,
    x: FloatArray,
    list_nos: IntArray,
    xq: FloatArray,
) -> FloatArray:
    """Distances by code of queries ``(nq, d)`` to all rows ``(m, d)``: ``(nq, m)`` float32.

    Parameters
    ----------
    factory : str
        An ``IVF`` string with as many lists as there are centroids, and transforms that keep distances.
    metric : str
        ``cosine`` for rows and queries of unit length. Squared distances for ``l2``, else similarities.
    seed : int
        Of the rotation.
    centroids : (nlist, d) float32
        Before the transforms.
    list_nos : (m,) int64
        In which list each row is.
    """
    codec = Codec.create(factory, centroids.shape[1], metric, seed)
    c, y, q = codec.transform(centroids), codec.transform(x), codec.transform(xq)
    codec.set_centroids(c)
    if codec.code_needs_rows:
        codec.train_code(y)
    lists = faiss.ArrayInvertedLists(codec.nlist, codec.code_size)
    order = np.argsort(list_nos, kind="stable")
    codes = codec.encode(y, list_nos)[order]
    bounds = np.searchsorted(list_nos[order], np.arange(codec.nlist + 1)).tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if end > begin:
            ids, some = faiss.swig_ptr(order[begin:end]), faiss.swig_ptr(codes[begin:end])
            lists.add_entries(number, end - begin, ids, some)
    ivf = codec._ivf
    ivf.replace_invlists(lists, False)
    ivf.ntotal, ivf.is_trained = len(x), True
    if metric == "l2":
        coarse = np.square(q).sum(axis=1)[:, None] - 2 * (q @ c.T) + np.square(c).sum(axis=1)
    else:
        coarse = q @ c.T
    coarse = np.ascontiguousarray(coarse, np.float32)
    every = np.tile(np.arange(codec.nlist), (len(q), 1))
    found = faiss.RangeSearchResult(len(q))
    ivf.range_search_preassigned_c(
        len(q),
        faiss.swig_ptr(q),
        _FAR if metric == "l2" else -_FAR,
        faiss.swig_ptr(every),
        faiss.swig_ptr(coarse),
        found,
        False,
        faiss.SearchParametersIVF(nprobe=codec.nlist),
    )
    lims = faiss.rev_swig_ptr(found.lims, len(q) + 1).astype(np.int64)
    distances = np.full((len(q), len(x)), np.inf if metric == "l2" else -np.inf, np.float32)
    total = int(lims[-1])
    rows = faiss.rev_swig_ptr(found.labels, total)
    distances[np.repeat(np.arange(len(q)), np.diff(lims)), rows] = faiss.rev_swig_ptr(found.distances, total)
    return distances
