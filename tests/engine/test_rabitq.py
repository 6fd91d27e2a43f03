"""1-bit codes that numpy encodes are those of faiss."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from ooc.engine import rabitq
from tests.helpers import embeddings


@pytest.mark.parametrize("metric", [faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT])
@pytest.mark.parametrize("d", [8, 50, 64, 129])
def test_codes_are_those_of_faiss(metric: int, d: int) -> None:
    x = embeddings(700, d)
    centroids, rows = x[:32].copy(), x[32:].copy()
    rows[0] = centroids[0]  # no residual
    rows[1] = 0
    quantizer = (faiss.IndexFlatL2 if metric == faiss.METRIC_L2 else faiss.IndexFlatIP)(d)
    quantizer.add(centroids)
    theirs_index = faiss.IndexIVFRaBitQ(quantizer, d, 32, metric)
    lists = np.arange(len(rows)) % 32
    theirs = np.empty((len(rows), theirs_index.code_size), np.uint8)
    theirs_index.encode_vectors(
        len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(lists), faiss.swig_ptr(theirs)
    )
    ours = rabitq.encode(rows, lists, centroids, l2=metric == faiss.METRIC_L2)
    bits = -(-d // 8)
    np.testing.assert_array_equal(ours[:, :bits], theirs[:, :bits])
    a, b = (codes[:, bits:].copy().view(np.float32) for codes in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float((rows**2).sum(axis=1).max()))
    np.testing.assert_array_equal(a[0, 1], 0)
