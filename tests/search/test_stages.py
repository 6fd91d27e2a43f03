"""The stages of a search: what is read, in which parts, and that parts change no answer."""

from __future__ import annotations

import dataclasses
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest

import ooc
from ooc.cli.main import main
from ooc.mapping import PAGE, MappedFile, Residency
from ooc.search import stages
from ooc.search.budget import Budget
from ooc.search.rerank import distances
from ooc.stores import open_store
from ooc.types import FloatArray, IntArray, Metric
from tests.helpers import embeddings, exact_search

SMALL = Budget(batch_bytes=1 << 16, group_bytes=1 << 13, wave_bytes=1 << 12, keep_bytes=0)


@pytest.fixture(scope="module", params=["off", "on"])
def made(request: pytest.FixtureRequest, npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stages") / "i"
    ooc.build(npy, path, metric="cosine", factory="IVF64,SQ8", spill=request.param)
    return path


def narrow(index: ooc.Index, budget: Budget = SMALL) -> None:
    """Make an open index go in small parts."""
    index._budget = index._view().stages._budget = budget


class Asked:
    """Records what is asked of mapped files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pages: dict[str, list[IntArray]] = {}
        self.reads = 0
        real, real_each = MappedFile.will_need_spans, MappedFile.will_need_each
        rows = False

        def will_need_spans(mapped: MappedFile, begins: IntArray, ends: IntArray) -> int:
            if not rows:
                self.add(mapped, list(zip(begins.tolist(), ends.tolist(), strict=True)))
            count = real(mapped, begins, ends)
            self.reads += count
            return count

        def will_need_each(mapped: MappedFile, offsets: IntArray, length: int) -> int:
            nonlocal rows
            self.add(mapped, [(offset, offset + length) for offset in offsets.tolist()])
            rows = True
            try:
                return real_each(mapped, offsets, length)
            finally:
                rows = False

        monkeypatch.setattr(MappedFile, "will_need_spans", will_need_spans)
        monkeypatch.setattr(MappedFile, "will_need_each", will_need_each)

    def add(self, mapped: MappedFile, spans: list[tuple[int, int]]) -> None:
        for begin, end in spans:
            self.pages.setdefault(mapped.path.name, []).append(np.arange(begin // PAGE, -(-end // PAGE)))

    def of(self, name: str) -> IntArray:
        return np.concatenate(self.pages.get(name, [np.empty(0, np.int64)]))


@pytest.mark.parametrize("rerank", [0, 60])
def test_parts_change_no_answer(made: Path, x: FloatArray, xq: FloatArray, rerank: int) -> None:
    queries = np.concatenate([xq, x[:300]])
    with ooc.open_index(made) as index:
        expected = index.search(queries, 10, nprobe=9, rerank=rerank)
        narrow(index)
        found, ids = index.search(queries, 10, nprobe=9, rerank=rerank)
        one, one_ids = zip(*(index.search(q, 10, nprobe=9, rerank=rerank) for q in queries[:30]), strict=True)
    np.testing.assert_allclose(found, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(ids, expected[1])
    np.testing.assert_array_equal(np.concatenate(one_ids), ids[:30])
    np.testing.assert_allclose(np.concatenate(one), found[:30], rtol=1e-6)


def test_a_batch_asks_for_each_list_and_row_once_and_in_order(
    made: Path, xq: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ooc.open_index(made) as index:
        index.search(xq)  # the store is opened and looked at
        narrow(index, dataclasses.replace(SMALL, batch_bytes=1 << 30, keep_bytes=None))
        asked = Asked(monkeypatch)
        told = index.explain(xq, 10, nprobe=12, rerank=40)
        segment = index._view().segments
        lists = np.unique(segment.coarse(segment.transform(xq / np.linalg.norm(xq, axis=1)[:, None]), 12)[1])
        monkeypatch.undo()
    pages = asked.of("lists.ivfdata")
    begins = [spans[0] for spans in asked.pages["lists.ivfdata"]]
    assert begins == sorted(begins)
    # Neighbouring pieces share a page at the most.
    assert len(pages) <= len(np.unique(pages)) + len(begins)
    assert told.list_bytes == segment.list_bytes(lists).sum()
    assert told.list_bytes / PAGE <= len(np.unique(pages)) <= told.list_bytes / PAGE + 2 * len(lists)
    rows = [spans[0] for spans in asked.pages["x.npy"]]
    assert rows == sorted(rows)
    assert len(rows) == told.rows
    assert told.row_bytes == told.rows * 4 * index.d
    assert told.list_reads + told.row_reads == asked.reads > 0
    assert told.candidates == 40 * len(xq)
    assert told.lists == 12 * len(xq)


def test_counted_lists_are_not_asked_for_twice(
    made: Path, xq: FloatArray, x: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ooc.search.searcher.compares_all", lambda *_, **__: False)
    with ooc.open_index(made) as index:
        segment = index._view().segments
        asked: list[tuple[str, IntArray]] = []
        real = segment.will_need

        def will_need(numbers: IntArray, part: str = "all") -> int:
            asked.append((part, np.unique(numbers[numbers >= 0])))
            return real(numbers, part)  # type: ignore[arg-type]

        monkeypatch.setattr(segment, "will_need", will_need)
        index.search(xq, nprobe=8, filter=np.arange(len(x)) % 3 == 0)
    assert {part for part, _ in asked} == {"ids", "codes"}
    for part in ("ids", "codes"):
        numbers = np.concatenate([some for kind, some in asked if kind == part])
        assert len(numbers) == len(np.unique(numbers))


def test_what_lies_in_memory_is_not_asked_for(
    made: Path, xq: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = [0]
    monkeypatch.setattr("ooc.mapping._reads", lambda: (reads[0], 0))
    with ooc.open_index(made) as index:
        assert index.explain(xq[0]).list_reads > 0
        for _ in range(Residency.LEAST):
            index.search(xq[0])
        told = index.explain(xq[0])
        assert (told.list_reads, told.row_reads) == (0, 0)
        assert told.list_bytes > 0 < told.row_bytes
        many = index.explain(xq[: stages._FEW_QUERIES + 1])  # lists of many queries always are
        assert many.list_reads > 0 == many.row_reads
        reads[0] += 1
        assert index.explain(xq[0]).list_reads > 0


def test_advice_that_was_missing_is_given_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = [0]
    monkeypatch.setattr("ooc.mapping._reads", lambda: (reads[0], 0))
    residency = Residency()

    def stages_advised() -> int:
        count = 0
        while residency.wants_advice():
            count += 1
        return count

    assert stages_advised() == Residency.LEAST - 1
    reads[0] += 1
    assert stages_advised() == 2 * Residency.LEAST
    for _ in range(20):
        reads[0] += 1
        assert stages_advised() <= Residency.MOST


def test_vectors_that_were_found_are_those_of_the_store(made: Path, x: FloatArray, xq: FloatArray) -> None:
    with ooc.open_index(made) as index:
        expected = index.search(xq, 7)
        for budget in (index._budget, SMALL):
            narrow(index, budget)
            found, ids, vectors = index.search(xq, 7, return_vectors=True)
            np.testing.assert_array_equal(ids, expected[1])
            np.testing.assert_allclose(found, expected[0], rtol=1e-6)
            np.testing.assert_array_equal(vectors, x[ids])
        _, ids, vectors = index.search(xq[0], 5, filter=[3, 9], return_vectors=True)
        assert vectors.shape == (1, 5, index.d)
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors[0, :2], x[ids[0, :2]])
        assert np.isnan(vectors[0, 2:]).all()


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_exact_distances_are_the_same_in_place_and_gathered(
    metric: Metric, dtype: str, tmp_path: Path
) -> None:
    rows = (embeddings(500, 24) * 20).astype(dtype)
    rows[7] = 0
    np.save(tmp_path / "x.npy", rows)
    xq = embeddings(9, 24, seed=1)
    if metric == "cosine":
        xq /= np.linalg.norm(xq, axis=1, keepdims=True)
    ids = np.random.default_rng(0).integers(-1, 500, (9, 50))
    ids[:, 0] = 7
    store = open_store(tmp_path / "x.npy")
    every = np.empty((9, 500), np.float32)
    for i in range(9):
        found, order = exact_search(rows, xq[i : i + 1], 500, metric)
        every[i, order[0]] = found[0]
    turns = itertools.cycle((True, False, False))
    for ahead in (lambda: False, lambda: True, lambda: next(turns)):
        for budget in (Budget.of(None), SMALL):
            got = distances(xq, ids, store, metric, budget=budget, ahead=ahead)
            wanted = np.where(ids >= 0, np.take_along_axis(every, np.maximum(ids, 0), 1), np.nan)
            assert (np.isinf(got) == (ids < 0)).all()
            there = ids >= 0
            np.testing.assert_allclose(got[there], wanted[there], rtol=1e-4, atol=1e-4)
    store.close()


def test_lengths_that_float32_cannot_square_are_compared_all_the_same(tmp_path: Path) -> None:
    rows = embeddings(40, 16)
    rows[:10] *= np.float32(1e-25)
    rows[10:20] *= np.float32(1e25)
    np.save(tmp_path / "x.npy", rows)
    xq = embeddings(3, 16, seed=1)
    xq /= np.linalg.norm(xq, axis=1, keepdims=True)
    with open_store(tmp_path / "x.npy") as store:
        got = distances(xq, np.tile(np.arange(40), (3, 1)), store, "cosine")
    wide = rows.astype(np.float64)
    wanted = xq @ (wide / np.linalg.norm(wide, axis=1, keepdims=True)).T
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["63MiB", 1, "much"])
def test_a_budget_that_cannot_be_kept_is_refused(made: Path, memory: int | str) -> None:
    with pytest.raises(ooc.ArgumentError):
        ooc.open_index(made, memory=memory)


def test_a_budget_bounds_what_is_done_at_once(made: Path, xq: FloatArray) -> None:
    budget = Budget.of("64MiB")
    in_flight = budget.batch_bytes + 2 * budget.group_bytes + 2 * budget.wave_bytes
    assert in_flight <= 32 * 2**20
    with ooc.open_index(made) as index, ooc.open_index(made, memory="64MiB") as held:
        np.testing.assert_array_equal(held.search(xq)[1], index.search(xq)[1])


def test_threads_search_at_once_and_leave_settings_alone(made: Path, x: FloatArray, xq: FloatArray) -> None:
    threads = faiss.omp_get_max_threads()
    with ooc.open_index(made) as index:
        expected = index.search(xq, 5)
        ranges = index.range_search(xq[:4], 0.2, rerank=False)

        def work(i: int) -> bool:
            if i % 4 == 3:
                again = index.range_search(xq[:4], 0.2, rerank=False)
                return all(np.array_equal(a, b) for a, b in zip(again, ranges, strict=True))
            queries = xq if i % 2 else xq[i : i + 1]
            wanted = expected if i % 2 else (expected[0][i : i + 1], expected[1][i : i + 1])
            found, ids = index.search(queries, 5)
            return np.array_equal(ids, wanted[1]) and np.allclose(found, wanted[0], rtol=1e-6)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(40)))
    assert faiss.omp_get_max_threads() == threads


def test_the_command_line_explains(
    made: Path, xq: FloatArray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "q.npy", xq)
    arguments = ["search", str(made), str(tmp_path / "q.npy"), "--explain", "--nprobe", "5", "--first", "7"]
    assert main([*arguments, "--json", "--memory", "128MiB"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["queries"], told["lists"], told["nprobe"]) == (7, 35, 5)
    assert told["seconds"]["total"] >= told["seconds"]["scan"] > 0
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for word in ("lists", "candidates", "re-rank", "total", " ms"):
        assert word in shown
    assert main([*arguments, "--out", str(tmp_path / "o.npz")]) == 2
