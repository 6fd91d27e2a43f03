"""More work never finds less: what is found at a setting is found at every larger one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ooc
from ooc.types import FloatArray, IntArray, Metric
from tests.helpers import embeddings, exact_search

K = 10
#: Indexes by code, true neighbours, queries.
Opened = tuple[list[ooc.Index], IntArray, FloatArray]

CODES = ("HR,RaBitQ", "HR,EDEN2", "SQ8", "PQ8x4")
WHICH = st.integers(0, len(CODES) - 1)


@pytest.fixture(
    scope="module", params=[("l2", "off"), ("ip", "off"), ("cosine", "off"), ("l2", "on")], ids=str
)
def indexes(
    request: pytest.FixtureRequest, x: FloatArray, xq: FloatArray, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    metric, spill = request.param
    root = tmp_path_factory.mktemp("rises")
    opened = []
    for code in CODES:
        ooc.build(x, root / code, metric=metric, factory=code, spill=spill)
        opened.append(ooc.open_index(root / code, store=x))
    yield opened, exact_search(x, xq, K, metric)[1], xq
    for index in opened:
        index.close()


def found(index: ooc.Index, xq: FloatArray, truth: IntArray, nprobe: int, rerank: int) -> IntArray:
    """How many true neighbours of each query."""
    ids = index.search(xq, K, nprobe=nprobe, rerank=rerank)[1]
    return np.array([len(np.intersect1d(a, b)) for a, b in zip(ids, truth, strict=True)])


@given(
    which=WHICH,
    nprobe=st.integers(1, 160),
    fewer=st.integers(K, 3000),
    data=st.data(),
)
def test_with_more_candidates(
    indexes: tuple[list[ooc.Index], IntArray, FloatArray],
    which: int,
    nprobe: int,
    fewer: int,
    data: st.DataObject,
) -> None:
    opened, truth, xq = indexes
    more = data.draw(st.integers(fewer, 5000))
    some, others = (found(opened[which], xq, truth, nprobe, rerank) for rerank in (fewer, more))
    assert (some <= others).all()


@given(which=WHICH, fewer=st.integers(1, 160), data=st.data())
def test_with_more_lists_and_all_candidates(
    indexes: Opened, which: int, fewer: int, data: st.DataObject
) -> None:
    opened, truth, xq = indexes
    more = data.draw(st.integers(fewer, 256))
    some, others = (found(opened[which], xq, truth, nprobe, len(truth) * 1000) for nprobe in (fewer, more))
    assert (some <= others).all()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_lists_that_a_sketch_finds(metric: Metric, tmp_path: Path) -> None:
    """Of many lists each number of them holds those that a smaller one does, but for one in thousands."""
    x = embeddings(40_000, 512, topics=300)
    index = tmp_path / "i"
    ooc.build(x, index, metric=metric, factory="HR,IVF1024,RaBitQ")
    with ooc.open_index(index, store=x) as opened:
        assert (index / "generations" / "1.sketch.faiss").exists()
        xq = embeddings(40_100, 512, topics=300)[-100:]
        truth = opened.search(xq, K, recall=1)[1]
        each = [
            found(opened, xq, truth, nprobe, 40_000).mean()
            for nprobe in (*range(1, 20), 24, 32, 64, 128, 512)
        ]
    assert all(a <= b for a, b in itertools.pairwise(each)), each
