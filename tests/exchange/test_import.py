"""An index of plain faiss, taken over: it answers as it did, and goes on."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import ooc
from ooc.types import FloatArray, IntArray
from ooc.units import MIB
from tests.exchange.helpers import assert_same_answers
from tests.helpers import embeddings, exact_search, recall
from tests.update.model import Model

N, D = 2000, 24
METRICS = {"l2": faiss.METRIC_L2, "ip": faiss.METRIC_INNER_PRODUCT, "cosine": faiss.METRIC_INNER_PRODUCT}


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    return embeddings(N + 500, D, seed=8)


@pytest.fixture(scope="module")
def queries(rows: FloatArray) -> FloatArray:
    return rows[::173] + np.float32(0.02)


def made(rows: FloatArray, factory: str, metric: str = "l2", ids: IntArray | None = None) -> Any:
    """An index of faiss's; for cosine its first step normalises."""
    index = faiss.index_factory(D, f"L2norm,{factory}" if metric == "cosine" else factory, METRICS[metric])
    train_in_short(index)
    index.train(rows)
    index.add_with_ids(rows, np.arange(len(rows)) if ids is None else ids)
    return index


def train_in_short(index: Any) -> None:
    """Leave out most of what makes the codes of a product quantizer better, and takes many seconds."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    if hasattr(ivf, "pq"):
        ivf.do_polysemous_training = False
        ivf.pq.cp.niter = 5
    steps = getattr(index, "chain", None)
    for i in range(0 if steps is None else steps.size()):
        step = faiss.downcast_VectorTransform(steps.at(i))
        if isinstance(step, faiss.OPQMatrix):
            step.niter, step.niter_pq_0 = 3, 5


def written(tmp_path: Path, index: Any) -> Path:
    path = tmp_path / "theirs.faiss"
    faiss.write_index(index, str(path))
    return path


def with_lists_on_disk(tmp_path: Path, index: Any) -> Path:
    """With its lists in a file: the last one first, and room to spare in each."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    data, table = b"room", np.zeros((ivf.nlist, 3), np.uint64)
    for number in reversed(range(ivf.nlist)):
        size, room = ivf.invlists.list_size(number), 1 + number % 5
        codes = faiss.rev_swig_ptr(ivf.invlists.get_codes(number), size * ivf.code_size).tobytes()
        ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), size).tobytes()
        table[number] = size, size + room, len(data)
        data += codes + bytes(room * ivf.code_size) + ids + bytes(room * 8)
    (tmp_path / "theirs.ivfdata").write_bytes(data)
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size = ivf.nlist, ivf.code_size
    lists.filename, lists.totsize, lists.read_only = str(tmp_path / "theirs.ivfdata"), len(data), True
    lists.lists.resize(ivf.nlist)
    there = (ctypes.c_size_t * table.size).from_address(int(lists.lists.data().this))
    np.frombuffer(there, np.uint64)[:] = table.reshape(-1)
    ivf.replace_invlists(lists, False)
    path = written(tmp_path, index)
    again = faiss.read_index(str(path))
    assert again.ntotal == ivf.ntotal
    return path


@pytest.mark.parametrize(
    ("factory", "metric"),
    [
        ("IVF16,Flat", "l2"),
        ("IVF16,SQ8", "ip"),
        ("IVF16,SQ4", "cosine"),
        ("IVF16,SQfp16", "l2"),
        ("IVF16,PQ8", "l2"),
        ("IVF16,PQ8x4", "ip"),
        ("HR,IVF16,RaBitQ", "l2"),
        ("HR,IVF16,RaBitQ", "cosine"),
        ("RR,IVF16,RaBitQ3", "ip"),
        ("HR,IVF16,EDEN2", "cosine"),
        ("IVF16,EDEN4BIASED", "l2"),
        ("OPQ8_16,IVF16,PQ8", "l2"),
        ("PCA16,IVF16,SQ8", "ip"),
        ("ITQ16,IVF16,SQ6", "l2"),
        ("IVF16_HNSW8,SQ8", "l2"),
        ("IVF16_HNSW8,SQ8", "ip"),
    ],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_it_answers_as_it_did_and_grows(
    tmp_path: Path, rows: FloatArray, queries: FloatArray, factory: str, metric: str, on_disk: bool
) -> None:
    theirs = made(rows[:N], factory, metric)
    expected = {}
    for nprobe in (1, 3, 16):
        faiss.extract_index_ivf(theirs).nprobe = nprobe
        expected[nprobe] = theirs.search(queries, 10)
    path = with_lists_on_disk(tmp_path, theirs) if on_disk else written(tmp_path, theirs)
    index = tmp_path / "i.ooc"
    figures = ooc.import_index(path, index)
    assert (figures["rows"], figures["ids"], figures["metric"]) == (N, N, metric)
    assert not figures["vectors"]
    assert figures["factory"].split("IVF")[1] == factory.split("IVF")[1]
    assert {one.name for one in index.iterdir()} >= {"CURRENT", "ooc.json", "template", "segments"}
    assert not (index / "build").exists()
    with ooc.open_index(index) as ours:
        for nprobe, answers in expected.items():
            assert_same_answers(ours.search(queries, 10, nprobe=nprobe, rerank=0), answers, atol=2e-4)
        # By the codes, as there are no vectors.
        np.testing.assert_array_equal(ours.search(queries, 5)[1], ours.search(queries, 5, rerank=0)[1])
    assert ooc.append(index, rows[N : N + 50])["first_id"] == N
    ooc.delete(index, np.arange(0, N, 3))
    with ooc.open_index(index) as ours:
        _, ids = ours.search(rows[N : N + 50], 10, nprobe=16)
        assert (ids == np.arange(N, N + 50)[:, None]).any(axis=1).mean() > (0.5 if metric == "ip" else 0.8)
        assert not np.isin(ids, np.arange(0, N, 3)).any()
    ooc.compact(index)
    out = tmp_path / "back.faiss"
    ooc.export(index, out)
    back = faiss.read_index(str(out))
    faiss.extract_index_ivf(back).nprobe = 16
    with ooc.open_index(index) as ours:
        assert_same_answers(ours.search(queries, 10, nprobe=16), back.search(queries, 10), atol=2e-4)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_with_a_store_it_re_ranks_exactly(
    tmp_path: Path, rows: FloatArray, queries: FloatArray, metric: str
) -> None:
    np.save(tmp_path / "x.npy", rows[:N])
    path = written(tmp_path, made(rows[:N], "HR,IVF16,RaBitQ", metric))
    index = tmp_path / "i.ooc"
    assert ooc.import_index(path, index, store=tmp_path / "x.npy")["vectors"]
    model = Model(rows[:N], metric)
    model.check_at(index, queries)
    with ooc.open_index(index) as ours:
        _, ids = ours.search(queries, 10, nprobe=16)
        assert recall(ids, exact_search(rows[:N], queries, 10, metric)[1]) > 0.95
        np.testing.assert_array_equal(ours.reconstruct(np.array([5, 0])), rows[[5, 0]])
    # The store grows, rows are replaced and deleted: as of an index that was built.
    np.save(tmp_path / "new.npy", rows[: N + 100])
    os.replace(tmp_path / "new.npy", tmp_path / "x.npy")
    assert ooc.append(index, tmp_path / "x.npy")["added"] == 100
    model.append(rows[N : N + 100])
    ooc.upsert(index, np.array([3, N + 2]), rows[N + 200 : N + 202])
    model.upsert(np.array([3, N + 2]), rows[N + 200 : N + 202])
    ooc.delete(index, np.arange(50))
    model.delete(np.arange(50))
    model.check_at(index, queries)
    ooc.compact(index)
    ooc.gc(index)
    model.check_at(index, queries)


def test_ids_that_are_missing_are_of_dead_rows(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    np.save(tmp_path / "x.npy", rows[:N])
    theirs = made(rows[:N], "IVF16,SQ8")
    gone = np.arange(0, N, 5)
    theirs.remove_ids(gone)
    path = written(tmp_path, theirs)
    model = Model(rows[:N], "l2")
    model.delete(gone)
    index = tmp_path / "i.ooc"
    assert ooc.import_index(path, index, store=tmp_path / "x.npy")["rows"] == N - len(gone)
    model.check_at(index, queries)
    with ooc.open_index(index) as ours:
        _, ids = ours.search(queries, 30, filter=np.arange(60))  # few: all are compared
        assert not np.isin(ids, gone).any()
        with pytest.raises(ooc.ArgumentError, match="deleted"):
            ours.reconstruct(gone[:1])
    assert ooc.delete(index, gone)["deleted"] == 0
    ooc.upsert(index, gone[:3], rows[N : N + 3])
    model.upsert(gone[:3], rows[N : N + 3])
    model.check_at(index, queries)
    without = tmp_path / "without.ooc"
    ooc.import_index(path, without)
    with ooc.open_index(without) as ours:
        assert (ours.n, ours.info()["ids"]) == (N - len(gone), N)


def test_any_ids(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    rng = np.random.default_rng(1)
    ids = rng.choice(2**40, N, replace=False)
    ids[7] = 2**61
    theirs = made(rows[:N], "HR,IVF16,RaBitQ", ids=ids)
    faiss.extract_index_ivf(theirs).nprobe = 16
    expected = theirs.search(queries, 10)
    index = tmp_path / "i.ooc"
    figures = ooc.import_index(written(tmp_path, theirs), index)
    assert (figures["rows"], figures["ids"]) == (N, 2**61 + 1)
    with ooc.open_index(index) as ours:
        assert_same_answers(ours.search(queries, 10, nprobe=16), expected)
        allowed = ids[:40]
        _, found = ours.search(queries, 40, filter=allowed)
        np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.sort(allowed), (len(queries), 1)))
        with pytest.raises(ooc.ArgumentError, match="never given"):
            ours.reconstruct(np.array([np.setdiff1d(np.arange(100), ids)[0]]))
    gone = ids[::2]
    assert ooc.delete(index, gone)["deleted"] == len(gone)
    assert ooc.append(index, rows[N : N + 20])["first_id"] == 2**61 + 1
    ooc.upsert(index, ids[1:2], rows[N + 30 : N + 31])
    ooc.compact(index)
    ooc.gc(index)
    with ooc.open_index(index) as ours:
        _, found = ours.search(rows[N : N + 20], 30, nprobe=16)
        assert not np.isin(found, gone).any()
        assert np.isin(np.arange(2**61 + 1, 2**61 + 21), found).all()
        _, found = ours.search(rows[N + 30 : N + 31], 5, nprobe=16)
        assert ids[1] in found
        assert ours.n == N - len(gone) + 20
    out = tmp_path / "back.faiss"
    ooc.export(index, out)
    again = tmp_path / "again.ooc"
    ooc.import_index(out, again)
    with ooc.open_index(index) as one, ooc.open_index(again) as other:
        assert_same_answers(
            one.search(queries, 10, nprobe=16), other.search(queries, 10, nprobe=16), atol=2e-4
        )


def test_without_vectors_searches_go_by_the_codes(
    tmp_path: Path, rows: FloatArray, queries: FloatArray
) -> None:
    index = tmp_path / "i.ooc"
    ooc.import_index(written(tmp_path, made(rows[:N], "IVF16,SQ8")), index)
    np.save(tmp_path / "x.npy", rows[:N])
    with ooc.open_index(index) as ours:
        info = ours.info()
        assert (info["vectors"], info["defaults"]["rerank"]) == (False, 0)
        assert info["imported"]["kind"] == "IndexIVFScalarQuantizer"
        distances, ids = ours.search(queries, 10)
        np.testing.assert_array_equal(ids, ours.search(queries, 10, rerank=0)[1])
        _, found, _ = ours.range_search(queries[:2], float(distances[:2, 4].max()))
        assert len(found)
        _, found = ours.search(queries, 10, filter=np.arange(20))
        assert ((found >= 0) & (found < 20)).all()
        for call in (
            lambda: ours.search(queries, 10, rerank=100),
            lambda: ours.search(queries, 10, recall=1.0),
            lambda: ours.reconstruct(np.array([1])),
            lambda: ours.range_search(queries, 1.0, rerank=True),
        ):
            with pytest.raises(ooc.StoreError) as caught:
                call()
            assert caught.value.kind == "no-vectors"
    with pytest.raises(ooc.StoreError, match="without its vectors"):
        ooc.open_index(index, store=tmp_path / "x.npy")
    # Rows that come later have vectors; all together cannot be compared still.
    ooc.append(index, rows[N : N + 10])
    with ooc.open_index(index) as ours:
        assert (ours.search(queries, 10)[1] >= 0).all()


def test_what_the_codes_alone_find_is_shown_by_true_neighbours(
    tmp_path: Path, rows: FloatArray, queries: FloatArray
) -> None:
    index = tmp_path / "i.ooc"
    ooc.build(rows, tmp_path / "built.ooc", factory="IVF16,SQ8")
    ooc.export(tmp_path / "built.ooc", tmp_path / "x.faiss")
    ooc.import_index(tmp_path / "x.faiss", index)
    _, truth = ooc.exact(rows, queries, k=10)
    page = tmp_path / "page.html"
    points = ooc.evaluate(index, queries, ground_truth=truth, html=page)["points"]
    assert {point["candidates"] for point in points} == {0}
    with ooc.open_index(index) as opened:
        _, ids = opened.search(queries, 10, nprobe=16, rerank=0)
    assert points[-1]["nprobe"] == 16
    assert points[-1]["recall"] == pytest.approx(recall(ids, truth))
    for given in (None, queries):
        with pytest.raises(ooc.StoreError) as caught:
            ooc.evaluate(index, given)
        assert caught.value.kind == "no-vectors"
        assert "--ground-truth" in str(caught.value.hint)


def test_what_refines_is_left_out_and_not_read(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    theirs = faiss.index_factory(D, "HR,IVF16,RaBitQ,RFlat")
    theirs.train(rows[:N])
    theirs.add(rows[:N])
    path = written(tmp_path, theirs)
    base = faiss.downcast_index(theirs.base_index)
    faiss.extract_index_ivf(base).nprobe = 16
    # Were the vectors read, this would be an error.
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - rows[:N].nbytes])
    figures = ooc.import_index(path, tmp_path / "i.ooc")
    assert "refine" in figures["left_out"]
    with ooc.open_index(tmp_path / "i.ooc") as ours:
        assert_same_answers(ours.search(queries, 10, nprobe=16), base.search(queries, 10))


def test_vectors_of_unit_length_may_be_taken_for_cosine(
    tmp_path: Path, rows: FloatArray, queries: FloatArray
) -> None:
    unit = rows[:N] / np.linalg.norm(rows[:N], axis=1, keepdims=True)
    np.save(tmp_path / "x.npy", rows[:N] * 3)
    path = written(tmp_path, made(unit, "IVF16,SQ8", "ip"))
    ooc.import_index(path, tmp_path / "i.ooc", metric="cosine", store=tmp_path / "x.npy")
    Model(rows[:N], "cosine").check_at(tmp_path / "i.ooc", queries)
    with pytest.raises(ooc.ArgumentError, match="metric ip, not l2"):
        ooc.import_index(path, tmp_path / "j.ooc", metric="l2")
    with pytest.raises(ooc.ArgumentError, match="one of"):
        ooc.import_index(path, tmp_path / "j.ooc", metric="l1")  # type: ignore[arg-type]


def test_centroids_that_were_compared_by_another_metric(
    tmp_path: Path, rows: FloatArray, queries: FloatArray
) -> None:
    unit = rows[:N] / np.linalg.norm(rows[:N], axis=1, keepdims=True)
    quantizer = faiss.IndexFlatL2(D)
    theirs = faiss.IndexIVFFlat(quantizer, D, 16, faiss.METRIC_INNER_PRODUCT)
    theirs.train(unit)
    theirs.add(unit)
    path = written(tmp_path, theirs)
    lengths = np.linalg.norm(quantizer.reconstruct_n(0, 16), axis=1)
    if np.ptp(lengths) > 1e-3:
        with pytest.raises(ooc.PlanError, match="another metric"):
            ooc.import_index(path, tmp_path / "i.ooc")
    centroids = quantizer.reconstruct_n(0, 16) / lengths[:, None]
    same = faiss.IndexFlatL2(D)
    same.add(centroids)
    theirs = faiss.IndexIVFFlat(same, D, 16, faiss.METRIC_INNER_PRODUCT)
    theirs.is_trained = True
    theirs.add(unit)
    theirs.nprobe = 3
    ooc.import_index(written(tmp_path, theirs), tmp_path / "i.ooc")
    with ooc.open_index(tmp_path / "i.ooc") as ours:
        assert_same_answers(ours.search(queries, 10, nprobe=3), theirs.search(queries, 10))


@pytest.mark.parametrize(
    "factory", ["Flat", "HNSW16", "IVF16,PQ8x4fs", "IVF16,RaBitQfs", "IDMap,Flat", "PCA8,HNSW8"]
)
def test_other_kinds_are_refused(tmp_path: Path, rows: FloatArray, factory: str) -> None:
    theirs = faiss.index_factory(D, factory)
    theirs.train(rows[:N])
    if factory.startswith("IDMap"):
        theirs.add_with_ids(rows[:N], np.arange(N))
    else:
        theirs.add(rows[:N])
    with pytest.raises(ooc.PlanError) as caught:
        ooc.import_index(written(tmp_path, theirs), tmp_path / "i.ooc")
    assert caught.value.kind == "faiss-kind"
    assert "IndexIVFFlat" in str(caught.value.hint)
    assert not (tmp_path / "i.ooc").exists()


@pytest.mark.parametrize(
    ("ids", "match"), [([-4], "-4"), ([5], "id 5 more than once"), ([2**50], "id 77 more than once")]
)
def test_ids_that_cannot_be_taken(tmp_path: Path, rows: FloatArray, ids: list[int], match: str) -> None:
    every = np.arange(N)
    every[100] = ids[0]
    if ids[0] > N:
        every[101] = 77
    path = written(tmp_path, made(rows[:N], "IVF16,SQ8", ids=every))
    with pytest.raises(ooc.DataError, match=match):
        ooc.import_index(path, tmp_path / "i.ooc")
    assert not (tmp_path / "i.ooc").exists()


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HR,IVF16,RaBitQ", "IVF16,PQ4"])
def test_a_store_of_other_vectors_is_refused(tmp_path: Path, rows: FloatArray, factory: str) -> None:
    path = written(tmp_path, made(rows[:N], factory))
    shifted = np.roll(rows[:N], 1, axis=0)
    for name, x in (("other", shifted), ("short", rows[: N - 1]), ("narrow", rows[:N, :8])):
        np.save(tmp_path / f"{name}.npy", x)
        with pytest.raises(ooc.ConflictError) as caught:
            ooc.import_index(path, tmp_path / "i.ooc", store=tmp_path / f"{name}.npy")
        assert caught.value.kind == "store-changed"
        assert not (tmp_path / "i.ooc").exists()
    # Rounded ones are the same.
    np.save(tmp_path / "half.npy", rows[: N + 3].astype(np.float16))
    assert ooc.import_index(path, tmp_path / "i.ooc", store=tmp_path / "half.npy")["rows"] == N


def test_lists_on_disk_are_looked_for(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    (tmp_path / "a").mkdir()
    path = with_lists_on_disk(tmp_path / "a", made(rows[:N], "IVF16,SQ8"))
    (tmp_path / "a").rename(tmp_path / "b")  # moved: beside the index, not where it says
    path = tmp_path / "b" / path.name
    ooc.import_index(path, tmp_path / "i.ooc")
    (tmp_path / "b" / "theirs.ivfdata").rename(tmp_path / "away.ivfdata")
    with pytest.raises(ooc.IndexDirError, match="no file is there"):
        ooc.import_index(path, tmp_path / "j.ooc")
    ooc.import_index(path, tmp_path / "j.ooc", lists=tmp_path / "away.ivfdata")
    with ooc.open_index(tmp_path / "i.ooc") as one, ooc.open_index(tmp_path / "j.ooc") as other:
        np.testing.assert_array_equal(one.search(queries, 5)[1], other.search(queries, 5)[1])
    with (tmp_path / "away.ivfdata").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ooc.IndexDirError, match="do not lie"):
        ooc.import_index(path, tmp_path / "k.ooc", lists=tmp_path / "away.ivfdata")


def test_an_index_with_a_direct_map(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    for kind in (faiss.DirectMap.Array, faiss.DirectMap.Hashtable):
        theirs = made(rows[:N], "IVF16,SQ8")
        theirs.set_direct_map_type(kind)
        theirs.nprobe = 16
        index = tmp_path / f"{kind}.ooc"
        ooc.import_index(written(tmp_path, theirs), index)
        with ooc.open_index(index) as ours:
            assert_same_answers(ours.search(queries, 10, nprobe=16), theirs.search(queries, 10))


def test_many_lists_are_found_through_a_sketch(tmp_path: Path, rows: FloatArray) -> None:
    x = embeddings(6000, 512, seed=4)
    theirs = faiss.index_factory(512, "IVF1024,SQ8")
    faiss.extract_index_ivf(theirs).cp.niter = 2
    theirs.train(x)
    theirs.add(x)
    index = tmp_path / "i.ooc"
    ooc.import_index(written(tmp_path, theirs), index)
    assert (index / "generations" / "1.sketch.faiss").exists()
    faiss.extract_index_ivf(theirs).nprobe = 32
    with ooc.open_index(index) as ours:
        found, expected = ours.search(x[::60], 10, nprobe=32)[1], theirs.search(x[::60], 10)[1]
    assert recall(found, expected) > 0.97


def test_nothing_is_left_where_it_cannot_be_done(tmp_path: Path, rows: FloatArray) -> None:
    path = written(tmp_path, made(rows[:N], "IVF16,SQ8"))
    index = tmp_path / "i.ooc"
    stop = threading.Event()
    stop.set()
    with pytest.raises(ooc.Stopped):
        ooc.import_index(path, index, stop=stop)
    assert not index.exists()
    short = tmp_path / "short.faiss"
    data = path.read_bytes()
    for length in (0, 3, 50, 700, len(data) - 1):
        short.write_bytes(data[:length])
        with pytest.raises((ooc.IndexDirError, ooc.PlanError)):
            ooc.import_index(short, index)
        assert not index.exists()
    with pytest.raises(ooc.ArgumentError):
        ooc.import_index(tmp_path / "none.faiss", index)
    ooc.import_index(path, index)
    with pytest.raises(ooc.ConflictError) as caught:
        ooc.import_index(path, index)
    assert caught.value.kind == "index-exists"
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(ooc.ConflictError):
        ooc.build(tmp_path / "x.npy", index)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "mine").write_text("x")
    with pytest.raises(ooc.ConflictError):
        ooc.import_index(path, tmp_path / "dir")
    assert (tmp_path / "dir" / "mine").exists()


def test_what_an_interrupted_import_left_is_gone_over(
    tmp_path: Path, rows: FloatArray, queries: FloatArray
) -> None:
    path = written(tmp_path, made(rows[:N], "IVF16,SQ8"))
    index = tmp_path / "i.ooc"
    ooc.import_index(path, index)
    expected = {one.name: one.read_bytes() for one in (index / "segments" / "s1").iterdir()}
    (index / "CURRENT").unlink()  # as if power had failed before the last step
    (index / "build" / "import").mkdir(parents=True)
    (index / "build" / "import" / "rubbish").write_text("x")
    ooc.import_index(path, index)
    assert {one.name: one.read_bytes() for one in (index / "segments" / "s1").iterdir()} == expected
    assert not (index / "build").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_lists_that_are_larger_than_memory_may_be(tmp_path: Path) -> None:
    n, d, nlist = 400_000, 192, 64
    quantizer = faiss.IndexFlatL2(d)
    quantizer.add(embeddings(nlist, d, seed=1))
    theirs = faiss.IndexIVFScalarQuantizer(quantizer, d, nlist, faiss.ScalarQuantizer.QT_fp16)
    theirs.is_trained = True
    block = embeddings(n // 100, d, seed=2)
    for first in range(0, n, len(block)):  # the same rows again and again, each under an id of its own
        theirs.add_with_ids(block, np.arange(first, first + len(block)) * 7 % n)
    index, back = tmp_path / "i.ooc", tmp_path / "back.faiss"
    path = written(tmp_path, theirs)
    for command in (["import", path, index], ["export", index, back]):
        call = [sys.executable, "-m", "ooc", *map(str, command), "--json", "--quiet"]
        figures = json.loads(subprocess.run(call, capture_output=True, check=True).stdout)
        assert figures["rows"] == n
        # Of the whole process, Python and faiss too; a copy of the lists would be half as much again.
        assert figures["peak_private_bytes"] < 100 * MIB < figures["bytes"]
