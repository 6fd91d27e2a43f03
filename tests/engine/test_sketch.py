"""The sketch by which a search finds lists, held against comparing all centroids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc.durable import read_json
from ooc.engine import DiskLists, Handicap, Sketch, sketched
from ooc.index.layout import Layout
from ooc.index.order import Order
from ooc.types import FloatArray, IntArray, Metric
from tests.helpers import embeddings, unsealed

NLIST, D = 1024, 512


def nearest(centroids: FloatArray, xq: FloatArray, count: int, metric: Metric) -> IntArray:
    scores = -2 * xq @ centroids.T
    if metric == "l2":
        scores += np.einsum("ij,ij->i", centroids, centroids)
    return np.argsort(scores, axis=1, kind="stable")[:, :count]


def share(found: IntArray, wanted: IntArray) -> float:
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, wanted, strict=True))
    return hits / wanted.size


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_nearest_are_among_the_proposed_and_a_file_keeps_it(metric: Metric, tmp_path: Path) -> None:
    assert sketched(NLIST, D)
    centroids, xq = embeddings(NLIST, D), embeddings(200, D, seed=1)
    if metric == "cosine":
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    sketch = Sketch.make(centroids, metric)
    for count in (8, 32):
        proposed = sketch.candidates(xq, 3 * count + 16)
        assert share(proposed, nearest(centroids, xq, count, metric)) > 0.98
    checksums = sketch.save(tmp_path / "s")
    read = Sketch.load(tmp_path / "s", NLIST, D)
    np.testing.assert_array_equal(read.candidates(xq, 100), sketch.candidates(xq, 100))
    assert Sketch.make(centroids, metric).save(tmp_path / "again") == checksums


@pytest.mark.parametrize(("nlist", "d"), [(NLIST + 1, D), (NLIST, D + 1)])
def test_a_sketch_of_other_centroids_is_refused(nlist: int, d: int, tmp_path: Path) -> None:
    Sketch.make(embeddings(NLIST, D), "l2").save(tmp_path / "s")
    with pytest.raises(ooc.IndexDirError) as error:
        Sketch.load(tmp_path / "s", nlist, d)
    assert error.value.kind == "index-damaged"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sketched")
    np.save(path / "x.npy", embeddings(9000, D))
    ooc.build(path / "x.npy", path / "i", metric="cosine", factory=f"HR,IVF{NLIST},RaBitQ")
    return path / "i"


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_sketch_with_a_handicap_proposes_in_its_order(metric: Metric) -> None:
    centroids, xq = embeddings(NLIST, D), embeddings(200, D, seed=1)
    spread = np.random.default_rng(0).uniform(0.5, 1.5, NLIST).astype(np.float32)
    handicap = Handicap(spread, 0.5, metric)
    products = xq @ centroids.T
    found = np.square(xq[:, None] - centroids[None, :]).sum(axis=2) if metric == "l2" else products
    wanted = np.argsort(handicap.key(found), axis=1)[:, :32]
    proposed = Sketch.make(centroids, metric, handicap).candidates(xq, 3 * 32 + 16)
    assert share(proposed, wanted) > 0.97
    assert share(Sketch.make(centroids, metric).candidates(xq, 3 * 32 + 16), wanted) < share(proposed, wanted)


def order_of(layout: Layout) -> dict[str, object]:
    return dict(read_json(layout.generation(1), what="record")["order"])


def test_an_index_of_many_lists_has_a_sketch_and_finds_them_by_it(built: Path) -> None:
    layout = Layout.of(built)
    assert order_of(layout)["sketch"] is True
    assert "1.sketch.faiss" in {path.name for path in layout.sketch(1).parent.iterdir()}
    segment = layout.segment("s1")
    record = read_json(layout.generation(1), what="record")
    order = Order.read(layout, 1, record, "cosine")
    by_sketch = DiskLists(segment.header, segment.lists, order.sketch, order.handicap)
    exact = DiskLists(segment.header, segment.lists, None, order.handicap)
    y = exact.transform(embeddings(1500, D, seed=2))
    for nprobe in (1, 16, 64, 400, NLIST):
        for ahead in (False, True):
            found, numbers = by_sketch.coarse(y, nprobe, ahead=ahead)
            distances, all_compared = exact.coarse(y, nprobe)
            assert found.shape == numbers.shape == (len(y), nprobe)
            assert share(numbers, all_compared) > 0.98
            key = found if order.handicap is None else order.handicap.key(found, numbers)
            assert (np.diff(key, axis=1) >= -1e-6).all()
            same = numbers == all_compared
            np.testing.assert_allclose(found[same], distances[same], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.sort(by_sketch.coarse(y, NLIST)[1]), [np.arange(NLIST)] * len(y))
    assert by_sketch.coarse(y[:0], 16)[1].shape == (0, 16)


def test_an_index_without_its_sketch_says_so_and_an_older_one_needs_none(built: Path) -> None:
    layout = Layout.of(built)
    xq = embeddings(20, D, seed=3)
    with ooc.open_index(built) as index:
        expected = index.search(xq, nprobe=64)[1]
    sketch, generation = layout.sketch(1), layout.generation(1)
    data, record = sketch.read_bytes(), generation.read_bytes()
    try:
        sketch.write_bytes(data[: len(data) // 2])
        with pytest.raises(ooc.IndexDirError) as error:
            ooc.open_index(built)
        assert error.value.kind == "index-damaged"
        sketch.unlink()
        with pytest.raises(ooc.IndexDirError, match=r"sketch\.faiss") as error:
            ooc.open_index(built)
        assert error.value.kind == "index-damaged"
        without = unsealed(generation)
        del without["order"]
        generation.write_text(json.dumps(without))
        with ooc.open_index(built) as index:
            assert share(index.search(xq, nprobe=64)[1], expected) > 0.95
    finally:
        sketch.write_bytes(data)
        generation.write_bytes(record)
