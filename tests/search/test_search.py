"""Searching, held against exact search by numpy."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ooc
from ooc import build
from ooc.search.best import best
from ooc.search.queries import as_queries
from ooc.types import FloatArray
from tests.helpers import embeddings, exact_search, recall


@pytest.fixture(scope="module", params=["l2", "ip", "cosine"])
def made(request: pytest.FixtureRequest, npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index for each metric."""
    path = tmp_path_factory.mktemp("index") / "i"
    build(npy, path, memory="400MiB", metric=request.param)
    return path


@pytest.fixture(scope="module")
def l2(npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("l2") / "i"
    build(npy, path, memory="400MiB", factory="IVF64,SQ8")
    return path


@settings(max_examples=40)
@given(data=st.data())
def test_search_equals_exact_search_over_the_probed_lists(
    made: Path, x: FloatArray, xq: FloatArray, data: st.DataObject
) -> None:
    """With as many candidates as rows, the answer is that of numpy over the rows of the probed lists."""
    with ooc.open_index(made) as index:
        nprobe = data.draw(st.integers(1, index.nlist + 5))
        k = data.draw(st.sampled_from([1, 3, 10, 200]))
        queries = xq[data.draw(st.lists(st.integers(0, len(xq) - 1), min_size=1, max_size=4))]
        found, ids = index.search(queries, k, nprobe=nprobe, rerank=len(x))
        segment = index._view().segments
        probed = segment.coarse(
            segment.transform(as_queries(queries, index.d, index.metric)), min(nprobe, index.nlist)
        )[1]
        for query, its_found, its_ids, lists in zip(queries, found, ids, probed, strict=True):
            rows = np.sort(segment.ids(lists))
            exact, _ = exact_search(x[rows], query[None], k, index.metric)
            count = min(k, len(rows))
            assert np.isin(its_ids[:count], rows).all()
            assert len(np.unique(its_ids[:count])) == count
            # Rows whose distances differ by less than float32 tells apart may change places.
            np.testing.assert_allclose(its_found[:count], exact[0, :count], rtol=1e-4, atol=1e-5)
            theirs, _ = exact_search(x[its_ids[:count]], query[None], count, index.metric)
            np.testing.assert_allclose(theirs, exact[:, :count], rtol=1e-4, atol=1e-5)
            # So many lists were asked for, and these alone are looked into.
            assert (its_ids[count:] == -1).all()
            assert np.isinf(its_found[count:]).all()


@given(data=st.data())
def test_best_is_a_sort(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    nq, m, k = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 400)), data.draw(st.integers(1, 30))
    metric = data.draw(st.sampled_from(["l2", "ip"]))
    found = rng.integers(0, data.draw(st.sampled_from([3, 50, 10**6])), (nq, m)).astype(np.float32)  # ties
    ids = np.stack([rng.permutation(m) for _ in range(nq)]).astype(np.int64)
    ids[rng.random((nq, m)) < 0.1] = -1
    top, top_ids = best(found.copy(), ids.copy(), k, metric)  # type: ignore[arg-type]
    for row in range(nq):
        pairs = sorted(
            (d if metric == "l2" else -d, i) for d, i in zip(found[row], ids[row], strict=True) if i >= 0
        )[:k]
        assert top_ids[row].tolist() == [i for _, i in pairs] + [-1] * (k - len(pairs))
        expected = [d if metric == "l2" else -d for d, _ in pairs]
        assert top[row, : len(pairs)].tolist() == expected


def test_defaults_find_nearly_all(made: Path, x: FloatArray, xq: FloatArray) -> None:
    with ooc.open_index(made) as index:
        _, rows = exact_search(x, xq, 10, index.metric)
        assert recall(index.search(xq)[1], rows) >= 0.9


def test_one_at_a_time_equals_a_batch(made: Path, xq: FloatArray) -> None:
    with ooc.open_index(made) as index:
        found, ids = index.search(xq, 10)
        for i in range(5):
            one, one_ids = index.search(xq[i], 10)
            np.testing.assert_array_equal(one_ids[0], ids[i])
            np.testing.assert_array_equal(one[0], found[i])


def test_many_queries_are_searched_in_bounded_parts(l2: Path, x: FloatArray) -> None:
    with ooc.open_index(l2) as index:
        _, ids = index.search(x[:3000], 1, nprobe=4)
        assert (ids[:, 0] == np.arange(3000)).mean() > 0.99


@pytest.mark.parametrize("radius", [0.01, 25.0, 60.0])
def test_range_search_is_exact_when_all_lists_are_probed(
    l2: Path, x: FloatArray, xq: FloatArray, radius: float
) -> None:
    with ooc.open_index(l2) as index:
        lims, found, ids = index.range_search(xq[:10], radius, nprobe=index.nlist)
        code_lims, _, _ = index.range_search(xq[:10], radius, nprobe=index.nlist, rerank=False)
    assert lims.dtype == ids.dtype == np.int64
    assert found.dtype == np.float32
    for i in range(10):
        exact = ((x.astype(np.float64) - xq[i]) ** 2).sum(axis=1)
        near = np.flatnonzero(exact < radius)
        got = ids[lims[i] : lims[i + 1]]
        np.testing.assert_array_equal(np.sort(got), near)
        np.testing.assert_allclose(found[lims[i] : lims[i + 1]], exact[got], rtol=1e-4)
        assert (np.diff(found[lims[i] : lims[i + 1]]) >= 0).all()
    assert abs(int(code_lims[-1]) - int(lims[-1])) <= 0.1 * lims[-1] + 5


def test_range_search_by_similarity(x: FloatArray, xq: FloatArray, tmp_path: Path) -> None:
    build(x, tmp_path / "i", memory="400MiB", metric="cosine")
    with ooc.open_index(tmp_path / "i") as index:
        lims, found, ids = index.range_search(xq[:5], 0.8, nprobe=index.nlist)
        empty = index.range_search(np.empty((0, 48)), 0.8)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in range(5):
        near = np.flatnonzero(unit @ (xq[i] / np.linalg.norm(xq[i])) > 0.8)
        np.testing.assert_array_equal(np.sort(ids[lims[i] : lims[i + 1]]), near)
    assert (found > 0.8).all()
    assert empty[0].tolist() == [0]


def test_queries_of_every_kind_give_the_same_answer(l2: Path, xq: FloatArray) -> None:
    wide = np.zeros((len(xq), 96), np.float32)
    wide[:, ::2] = xq
    wide.setflags(write=False)
    with ooc.open_index(l2) as index:
        expected = index.search(xq, 5)[1]
        for queries in (wide[:, ::2], np.asfortranarray(xq), xq.astype(np.float64), xq.tolist()):
            np.testing.assert_array_equal(index.search(queries, 5)[1], expected)  # type: ignore[arg-type]
        assert recall(index.search(xq.astype(np.float16), 5)[1], expected) > 0.95
        before = xq.copy()
        index.search(xq, 5)
        np.testing.assert_array_equal(xq, before)


@pytest.mark.parametrize("shape", [(0, 48), (0,)])
def test_no_queries_give_no_answers(l2: Path, shape: tuple[int, ...]) -> None:
    with ooc.open_index(l2) as index:
        found, ids = index.search(np.empty(shape, np.float32), 7)
    assert found.shape == ids.shape == (0, 7)


@pytest.mark.parametrize(
    ("queries", "kind"),
    [
        (np.zeros((3, 47), np.float32), "query-shape"),
        (np.zeros((3, 48, 1), np.float32), "query-shape"),
        (np.zeros(12, np.float32), "query-shape"),
        (np.zeros((3, 48), np.complex64), "query-dtype"),
        (np.full((3, 48), "x"), "query-dtype"),
        (np.zeros((3, 48), bool), "query-dtype"),
        (np.full((3, 48), np.nan, np.float32), "query-values"),
        (np.full((3, 48), 1e300), "query-values"),
    ],
)
def test_queries_that_cannot_be_searched_are_refused(l2: Path, queries: Any, kind: str) -> None:
    with ooc.open_index(l2) as index, pytest.raises(ooc.DataError) as error:
        index.search(queries)
    assert error.value.kind == kind


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_numbers_of_numpy_are_numbers(l2: Path, xq: FloatArray, tmp_path: Path, kind: Any) -> None:
    k, nprobe, rerank = kind(3), kind(4), kind(20)
    with ooc.open_index(l2) as index:
        want = index.search(xq, 3, nprobe=4, rerank=20)
        for one, other in zip(index.search(xq, k, nprobe=nprobe, rerank=rerank), want, strict=True):
            np.testing.assert_array_equal(one, other)
        index.search(xq, k)
        index.explain(xq[0], k, nprobe=nprobe, rerank=rerank)
        index.range_search(xq[:2], 1.0, nprobe=nprobe)
        out = tmp_path / "hits.npz"
        told = index.search_to(xq, out, k=k, nprobe=nprobe, rerank=rerank, first=kind(9), batch=kind(4))
        assert (told["nq"], told["k"], told["nprobe"], told["rerank"]) == (9, 3, 4, 20)
    ooc.exact(xq, xq[:3], k=k, threads=kind(2))
    assert ooc.plan(xq, seed=kind(3), threads=kind(2)) == ooc.plan(xq, seed=3, threads=2)
    ooc.evaluate(l2, xq[:20], k=k, count=kind(9), seed=kind(1), nprobe=[nprobe], candidates=[rerank])


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (lambda index, xq: index.search(xq, 2**63), "k"),
        (lambda index, xq: index.search(xq, 3, nprobe=2**63), "nprobe"),
        (lambda index, xq: index.range_search(xq, "5"), "radius"),
        (lambda index, xq: index.search([[1.0], [1.0, 2.0]], 3), "query-shape"),
        (lambda index, xq: ooc.exact(xq, xq, k=2**63), "k"),
        (lambda index, xq: ooc.open_index(None), "index"),
        (lambda index, xq: ooc.plan(xq, threads="2"), "threads"),
        (lambda index, xq: ooc.plan(xq, factory=5), "factory"),
    ],
)
def test_what_is_no_such_thing_is_refused(l2: Path, xq: FloatArray, wrong: Any, kind: str) -> None:
    with ooc.open_index(l2) as index, pytest.raises(ooc.OocError) as caught:
        wrong(index, xq)
    assert caught.value.kind == kind


@pytest.mark.parametrize("wrong", [{"k": 0}, {"k": 2.5}, {"nprobe": 0}, {"rerank": -1}, {"k": True}])
def test_arguments_out_of_range_are_refused(l2: Path, xq: FloatArray, wrong: dict[str, Any]) -> None:
    with ooc.open_index(l2) as index, pytest.raises(ooc.ArgumentError):
        index.search(xq, **wrong)


def test_as_many_as_are_asked_for_are_found(l2: Path, xq: FloatArray) -> None:
    options: tuple[dict[str, Any], ...] = ({}, {"rerank": 0}, {"recall": 0.8})
    with ooc.open_index(l2) as index, warnings.catch_warnings():
        warnings.simplefilter("ignore", ooc.RecallWarning)
        for more in options:
            for queries in (xq[:1], xq[:7]):
                found, ids = index.search(queries, 3000, **more)
                assert (ids >= 0).all()
                assert all(len(np.unique(row)) == 3000 for row in ids)
                assert (np.diff(found, axis=1) >= 0).all()


def test_k_beyond_all_rows_pads(l2: Path, x: FloatArray, xq: FloatArray) -> None:
    with ooc.open_index(l2) as index:
        found, ids = index.search(xq[:2], len(x) + 5, nprobe=10**9)
        codes, code_ids = index.search(xq[:2], len(x) + 5, nprobe=10**9, rerank=0)
    for some_ids, some in ((ids, found), (code_ids, codes)):
        np.testing.assert_array_equal(np.sort(some_ids[:, :-5], axis=1), [np.arange(len(x))] * 2)
        assert (some_ids[:, -5:] == -1).all()
        assert np.isposinf(some[:, -5:]).all()


def test_several_threads_search_at_once(made: Path, xq: FloatArray) -> None:
    with ooc.open_index(made) as index:
        expected = index.search(xq, 10)
        barrier = threading.Barrier(8)

        def work(_: int) -> bool:
            barrier.wait()
            return all(
                np.array_equal(got, wanted)
                for _ in range(10)
                for got, wanted in zip(index.search(xq, 10), expected, strict=True)
            )

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


def test_reconstruct_gives_the_rows_as_stored(made: Path, x: FloatArray) -> None:
    with ooc.open_index(made) as index:
        np.testing.assert_array_equal(index.reconstruct(np.array([3, 4999, 3])), x[[3, 4999, 3]])
        with pytest.raises(ooc.ArgumentError):
            index.reconstruct(np.array([5000]))
        with pytest.raises(ooc.ArgumentError):
            index.reconstruct(np.array([-1]))


def test_an_index_that_was_moved_answers_as_before(l2: Path, xq: FloatArray, tmp_path: Path) -> None:
    with ooc.open_index(l2) as index:
        expected = index.search(xq)
    shutil.copytree(l2, tmp_path / "elsewhere/i")
    with ooc.open_index(tmp_path / "elsewhere/i") as index:
        np.testing.assert_array_equal(index.search(xq)[1], expected[1])


@pytest.fixture
def public_path() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_read_only_index_is_searched_by_a_user_who_may_not_write(
    xq: FloatArray, x: FloatArray, public_path: Path
) -> None:
    tmp_path = public_path
    np.save(tmp_path / "x.npy", x)
    build(tmp_path / "x.npy", tmp_path / "i", memory="400MiB", factory="IVF64,SQ8")
    for path in [tmp_path / "i", *(tmp_path / "i").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    np.save(tmp_path / "xq.npy", xq)
    code = (
        "import os, sys, numpy as np, ooc\n"
        "xq = np.load(sys.argv[2])\n"
        "with ooc.open_index(sys.argv[1]) as index: index.search(xq)\n"  # all is imported
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "with ooc.open_index(sys.argv[1]) as index: np.save(sys.stdout.buffer, index.search(xq)[1])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "i"), str(tmp_path / "xq.npy")],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr.decode()
    import io

    with ooc.open_index(tmp_path / "i") as index:
        np.testing.assert_array_equal(np.load(io.BytesIO(run.stdout)), index.search(xq)[1])


class TestWhereTheRowsAre:
    @pytest.fixture
    def built(self, x: FloatArray, tmp_path: Path) -> Path:
        np.save(tmp_path / "x.npy", x)
        build(tmp_path / "x.npy", tmp_path / "i", memory="400MiB", factory="IVF64,SQ8")
        return tmp_path

    def test_a_store_that_is_gone_is_said_and_codes_alone_still_work(
        self, built: Path, x: FloatArray, xq: FloatArray
    ) -> None:
        (built / "x.npy").unlink()
        with ooc.open_index(built / "i") as index:
            with pytest.raises(ooc.StoreError, match=r"x\.npy") as error:
                index.search(xq)
            assert error.value.kind == "store-missing"
            assert "store=" in str(error.value)
            _, rows = exact_search(x, xq, 10, "l2")
            assert recall(index.search(xq, rerank=0, nprobe=64)[1], rows) > 0.9
            assert index.info()["store"]["reachable"] is False

    def test_a_store_that_moved_is_pointed_to(self, built: Path, x: FloatArray, xq: FloatArray) -> None:
        with ooc.open_index(built / "i") as index:
            expected = index.search(xq)[1]
        (built / "x.npy").rename(built / "y.npy")
        for store in (built / "y.npy", x):
            with ooc.open_index(built / "i", store=store) as index:
                np.testing.assert_array_equal(index.search(xq)[1], expected)

    @pytest.mark.parametrize("change", ["other", "fewer", "wider"])
    def test_a_store_of_other_rows_is_refused(
        self, built: Path, x: FloatArray, xq: FloatArray, change: str
    ) -> None:
        other = {"other": x[::-1], "fewer": x[:4000], "wider": np.hstack([x, x])}[change]
        np.save(built / "x.npy", other)
        with ooc.open_index(built / "i") as index, pytest.raises(ooc.ConflictError) as error:
            index.search(xq)
        assert error.value.kind == "store-changed"
        with pytest.raises(ooc.ConflictError):
            ooc.open_index(built / "i", store=np.ascontiguousarray(other))

    def test_a_store_that_grew_is_the_same_store(self, built: Path, x: FloatArray, xq: FloatArray) -> None:
        np.save(built / "x.npy", np.vstack([x, embeddings(100, 48, 9)]))
        with ooc.open_index(built / "i") as index:
            assert index.search(xq)[1].max() < 5000


def test_opening_is_light_and_closing_gives_everything_back(l2: Path, xq: FloatArray) -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    with ooc.open_index(l2) as index:
        index.search(xq)
    before = open_files()
    for _ in range(20):
        with ooc.open_index(l2) as index:
            index.search(xq)
        index.close()
    assert open_files() <= before + 1
    with pytest.raises(ooc.ArgumentError, match="closed"):
        index.search(xq)


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".zarr"])
def test_closing_lets_go_of_everything_at_once(
    x: FloatArray, xq: FloatArray, tmp_path: Path, suffix: str
) -> None:
    store = tmp_path / f"x{suffix}"
    ooc.convert(x, store)
    build(store, tmp_path / "i", factory="IVF16,SQ8", copy_vectors="never")

    def held() -> list[str]:
        files = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]  # noqa: PTH115
        return [one for one in (*files, *Path("/proc/self/maps").read_text().split()) if str(tmp_path) in one]

    index = ooc.open_index(tmp_path / "i", follow=True)
    index.search(xq)
    index.search(xq[0], filter=range(100), return_vectors=True)
    index.explain(xq)
    index.range_search(xq, 1.0)
    index.info()
    with pytest.raises(ooc.DataError):
        index.search(xq[:, 1:])
    assert held()
    gc.disable()  # nothing waits for a collection
    try:
        index.close()
        assert held() == []
    finally:
        gc.enable()


def test_an_index_is_closed_while_others_search_it(l2: Path, xq: FloatArray, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", xq)
    code = """
import sys, threading, time
import numpy as np, ooc
path, queries = sys.argv[1], np.load(sys.argv[2])
ways = [
    lambda index: index.search(queries[:1]),
    lambda index: index.search(queries, recall=1),
    lambda index: index.search(queries, filter=range(0, 5000, 2), return_vectors=True),
    lambda index: index.range_search(queries, 20.0),
    lambda index: index.explain(queries),
    lambda index: index.search_to(queries, f"{sys.argv[2]}.npz", batch=5, overwrite=True),
    lambda index: (index.reconstruct(range(2000)), index.info()),
]
wrong = []
def go_on(index, way):
    try:
        while True:
            way(index)
    except ooc.ArgumentError as error:
        if error.kind != "closed":
            wrong.append(error)
    except BaseException as error:
        wrong.append(error)
for round in range(60):
    index = ooc.open_index(path, follow=round % 2 == 0)
    some = [ways[round % len(ways)], ways[round // 2 % len(ways)]]
    if some[0] is some[1]:
        some.pop()  # one file is written by one
    threads = [threading.Thread(target=go_on, args=(index, way)) for way in some]
    for thread in threads:
        thread.start()
    time.sleep(0.01)
    index.close()
    for thread in threads:
        thread.join()
sys.exit(repr(wrong) if wrong else 0)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(l2), str(tmp_path / "q.npy")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_a_search_process_holds_little_memory_and_loads_little(
    l2: Path, xq: FloatArray, tmp_path: Path
) -> None:
    np.save(tmp_path / "q.npy", xq)
    code = (
        "import sys, numpy as np, ooc; from ooc.mapping import private_bytes\n"
        "with ooc.open_index(sys.argv[1]) as index:\n"
        "    [index.search(q) for q in np.load(sys.argv[2])]\n"
        "    print(private_bytes(), [m for m in ('zarr', 'h5py', 'rich', 'pyarrow') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(l2), str(tmp_path / "q.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    private, loaded = run.stdout.split(" ", 1)
    assert int(private) < 100 * 1024**2
    assert loaded.strip() == "[]"
