"""The order in which lists are looked into: chosen by a build, kept by a search, refused where damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc.durable import read_json
from ooc.index.layout import Layout
from ooc.index.order import Order
from ooc.index.segment import Segments
from ooc.types import FloatArray, IntArray, Metric
from tests.helpers import embeddings, rewrite, unsealed

D, N = 32, 12_000


def rows(seed: int, n: int, metric: Metric) -> FloatArray:
    """Clusters of very different width, far more dimensions than neighbours can fill."""
    rng, drawn = np.random.default_rng(5), np.random.default_rng(seed)
    centres = rng.standard_normal((120, D)).astype(np.float32)
    wide = rng.uniform(0.2, 1.4, 120).astype(np.float32)
    of = drawn.integers(0, 120, n)
    x = centres[of] + wide[of, None] * drawn.standard_normal((n, D)).astype(np.float32)
    return x * rng.uniform(0.5, 2, 120).astype(np.float32)[of, None] if metric == "ip" else x


def exact(x: FloatArray, q: FloatArray, metric: Metric) -> IntArray:
    if metric == "cosine":
        x, q = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, q))
    near = q @ x.T
    if metric == "l2":
        near = 2 * near - np.square(x).sum(axis=1)
    return np.argsort(-near, axis=1)[:, :10]


@pytest.fixture(scope="module", params=["l2", "ip", "cosine"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Metric]:
    metric: Metric = request.param
    path = tmp_path_factory.mktemp("order")
    np.save(path / "x.npy", rows(0, N, metric))
    ooc.build(path / "x.npy", path / "i", metric=metric, factory="IVF200,Flat")
    return path / "i", metric


def found_for_bytes(path: Path, metric: Metric, entries: int) -> float:
    """The share of true neighbours in the lists that come first, up to so many entries a query."""
    x, q = np.load(path.parent / "x.npy"), rows(1, 400, metric)
    truth = exact(x, q, metric)
    with ooc.open_index(path) as index:
        segment = index._view().segments
        y = q / np.linalg.norm(q, axis=1, keepdims=True) if metric == "cosine" else q
        order = segment.coarse(segment.transform(y.astype(np.float32)), segment.nlist)[1]
        hits = 0
        for lists, wanted in zip(order, truth, strict=True):
            last = int(np.searchsorted(np.cumsum(segment.sizes[lists]), entries))
            hits += len(np.intersect1d(segment.ids(lists[:last]), wanted))
    return hits / truth.size


def test_the_chosen_order_finds_more_for_the_same_bytes(built: tuple[Path, Metric]) -> None:
    path, metric = built
    generation = Layout.of(path).generation(1)
    text = generation.read_text()
    order = unsealed(generation)["order"]
    if not order["handicap"]:
        assert metric == "cosine"  # elsewhere it saves some bytes
    chosen = found_for_bytes(path, metric, N // 40)
    order["handicap"] = 0
    try:
        rewrite(generation, order=order)
        plain = found_for_bytes(path, metric, N // 40)
    finally:
        generation.write_text(text)
    assert chosen > plain + 0.05 if metric == "ip" else chosen >= plain - 0.002


def test_all_ways_of_finding_lists_keep_the_order(built: tuple[Path, Metric]) -> None:
    path, metric = built
    layout = Layout.of(path)
    record = read_json(layout.generation(1), what="record") | {"order": {"handicap": 0.5, "sketch": False}}
    handicap = Order.read(layout, 1, record, metric).handicap
    assert handicap is not None
    segment = Segments([layout.segment("s1")], 1, Order(handicap))
    y = segment.transform(rows(2, 50, metric))
    wanted, _ = segment.order(y)
    for nprobe in (1, 7, segment.nlist):
        for some in (y, y[:3]):  # many by a matrix product, few one by one
            distances, numbers = segment.coarse(some, nprobe)
            assert (numbers == wanted[: len(some), :nprobe]).mean() > 0.999  # but for rounding
            c = segment.centroids[numbers]
            plain = (
                np.square(some[:, None] - c).sum(axis=2)
                if metric == "l2"
                else (some[:, None] * c).sum(axis=2)
            )
            np.testing.assert_allclose(distances, plain, rtol=1e-3, atol=1e-3)
    segment.close()


def test_a_damaged_order_is_refused(built: tuple[Path, Metric]) -> None:
    path, metric = built
    layout = Layout.of(path)
    generation, spread = layout.generation(1), layout.spread_file
    text, data = generation.read_text(), spread.read_bytes()
    try:
        for order in (
            {"handicap": 7, "sketch": False},
            {"handicap": 0.5},
            {"handicap": "x", "sketch": False},
            3,
        ):
            rewrite(generation, order=order)
            with pytest.raises(ooc.IndexDirError, match="order of the lists") as error:
                ooc.open_index(path)
            assert error.value.kind == "index-damaged"
        rewrite(generation, order={"handicap": 0.5, "sketch": False})
        np.save(spread, np.full(200, np.nan, np.float32))
        with pytest.raises(ooc.IndexDirError, match=r"spread\.npy"):
            ooc.open_index(path)
        np.save(spread, np.ones(199, np.float32))
        with pytest.raises(ooc.IndexDirError, match="199"):
            ooc.open_index(path)
        np.save(spread, np.empty(0, np.float32))
        with pytest.raises(ooc.IndexDirError, match=r"spread\.npy"):
            ooc.open_index(path)
        for damaged in (data[:40], b""):
            spread.write_bytes(damaged)
            with pytest.raises(ooc.IndexDirError, match=r"spread\.npy"):
                ooc.open_index(path)
        spread.unlink()
        with pytest.raises(ooc.IndexDirError, match=r"spread\.npy"):
            ooc.open_index(path)
    finally:
        generation.write_text(text)
        spread.write_bytes(data)
    with ooc.open_index(path) as index:
        assert (index.search(rows(0, N, metric)[:20], 1)[1][:, 0] >= 0).all()


def test_a_graph_keeps_the_order_too(tmp_path: Path) -> None:
    x = rows(0, N, "ip")
    np.save(tmp_path / "x.npy", x)
    ooc.build(tmp_path / "x.npy", tmp_path / "i", metric="ip", factory="IVF200_HNSW16,Flat")
    with ooc.open_index(tmp_path / "i") as index:
        segment = index._view().segments
        order = index._view().record["order"]
        assert order["handicap"] > 0
        assert not order["sketch"]
        y = embeddings(100, D, seed=9)
        numbers, wanted = segment.coarse(y, 10)[1], segment.order(y)[0][:, :10]
        hits = sum(len(np.intersect1d(a, b)) for a, b in zip(numbers, wanted, strict=True))
        assert hits / wanted.size > 0.9


def test_rows_of_zeros_have_no_witnesses_and_the_nearest_list_comes_first(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2000, D), np.float32))
    ooc.build(tmp_path / "x.npy", tmp_path / "i", metric="cosine", factory="IVF8,Flat")
    with ooc.open_index(tmp_path / "i") as index:
        assert index._view().record["order"] == {"handicap": 0, "sketch": False}
        assert index.promise is None
        assert (index.search(embeddings(3, D), 5, nprobe=8)[1] >= 0).all()
