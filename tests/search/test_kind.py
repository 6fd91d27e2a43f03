"""Queries that are not of the kind by which recall was measured are noticed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc.types import FloatArray, Metric
from tests.helpers import embeddings

N, D = 20_000, 32
ALL = embeddings(N + 200, D, topics=400)


@pytest.fixture(scope="module", params=["l2", "ip", "cosine"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ooc.Index:
    directory = tmp_path_factory.mktemp(request.param)
    np.save(directory / "x.npy", ALL[:N])
    ooc.build(directory / "x.npy", directory / "i", metric=request.param, factory="IVF128,SQ8")
    return ooc.open_index(directory / "i")


@pytest.fixture
def opened(index: ooc.Index) -> ooc.Index:
    return ooc.open_index(index._layout.root)  # what was seen before is forgotten


def strangers(metric: Metric) -> FloatArray:
    """Long vectors far out for ``l2``, else any directions."""
    x = np.random.default_rng(0).standard_normal((200, D)).astype(np.float32)
    return 3 * x if metric == "l2" else x


def test_queries_like_the_rows_are_searched_in_silence(opened: ooc.Index) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.search(ALL[N:], 10)
        opened.search(1000 * ALL[N:] if opened.metric != "l2" else ALL[N:], 10)  # lengths do not matter


def test_queries_unlike_the_rows_are_told_of_once(opened: ooc.Index) -> None:
    with pytest.warns(ooc.RecallWarning, match="lie farther from the lists") as told:
        opened.search(strangers(opened.metric), 10)
    assert len(told) == 1
    assert "rows of the store" in str(told[0].message)
    assert "--queries" in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.search(strangers(opened.metric), 10)


def test_single_queries_add_up(opened: ooc.Index) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for query in strangers(opened.metric)[:63]:
            opened.search(query, 10)
    with pytest.warns(ooc.RecallWarning, match="of 64 queries"):
        opened.search(strangers(opened.metric)[63], 10)


def test_nothing_is_said_where_nothing_was_promised(opened: ooc.Index) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.search(strangers(opened.metric), 10, nprobe=8)
        opened.search(strangers(opened.metric), 10, filter=range(5000))


def test_given_queries_set_the_measure(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ALL[:N])
    queries = strangers("cosine")
    ooc.build(
        tmp_path / "x.npy", tmp_path / "i", metric="cosine", factory="IVF128,SQ8", queries=queries[:150]
    )
    with ooc.open_index(tmp_path / "i") as index, warnings.catch_warnings():
        warnings.simplefilter("error")
        index.search(np.random.default_rng(1).standard_normal((100, D)), 10, recall=0.8)
