"""The code that an index gets where none is named, and what it was chosen by."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc.build import draw
from ooc.build.choose import Compared, choose_code
from ooc.build.factory import CODES
from ooc.build.glance import Glance
from ooc.stores import open_store
from ooc.types import AnyArray, Metric
from tests.helpers import embeddings, tree


def chosen(compared: tuple[Compared, ...]) -> Compared:
    (one,) = (one for one in compared if one.chosen)
    return one


def compared_for(
    store: object, metric: Metric = "l2", *, seed: int = 0, threads: int = 1
) -> tuple[Compared, ...]:
    with open_store(store) as opened:  # type: ignore[arg-type]
        rows = Glance(opened, metric, seed).rows
        return choose_code(rows, metric, seed, threads, n=opened.n, row_bytes=opened.row_bytes)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_the_choice_depends_on_nothing_but_rows_metric_and_seed(
    metric: Metric, npy: Path, tmp_path: Path
) -> None:
    x = np.load(npy)
    ooc.convert(npy, tmp_path / "x.zarr")
    first = compared_for(npy, metric)
    assert compared_for(npy, metric, threads=3) == first
    assert compared_for(x, metric) == first
    assert chosen(compared_for(tmp_path / "x.zarr", metric)).code in CODES


def test_sizes_rise_and_one_is_chosen(npy: Path) -> None:
    compared = compared_for(npy)
    sizes = [one.code_size for one in compared]
    assert sizes == sorted(set(sizes))
    best = chosen(compared)
    for one in compared:
        assert one.candidates >= 10
        assert one.list_bytes > 0
        # A smaller code is kept where a larger one saves little.
        assert best.read_bytes <= one.read_bytes / 0.9


def test_more_bits_where_few_dimensions_tell_little() -> None:
    """Of vectors that fill few dimensions one bit each would take many candidates; of many it is enough."""
    rng = np.random.default_rng(0)
    few = rng.standard_normal((20_000, 24)).astype(np.float32)
    many = embeddings(8_000, 768)
    assert chosen(compared_for(few)).code_size > 3 * 24 / 8 + 4
    assert chosen(compared_for(many)).code == "HR,RaBitQ"


@pytest.mark.parametrize("shape", [(20_000, 24), (20_000, 64), (6_000, 512)])
def test_no_other_code_reads_much_less(shape: tuple[int, int], tmp_path: Path) -> None:
    """The code that was chosen against all of them, by what their builds measured."""
    x = embeddings(*shape)
    read = {}
    for code in CODES:
        ooc.build(x, tmp_path / code, factory=code)
        with ooc.open_index(tmp_path / code, store=x) as index:
            assert index.promise is not None
            setting, kept = index.promise.setting(0.95, 10)
            assert kept
            read[code] = setting.list_bytes + setting.row_bytes
    assert read[chosen(compared_for(x)).code] <= 1.3 * min(read.values()), read


def test_rows_that_cannot_be_indexed_do_not_count(npy_of: Callable[[AnyArray], Path]) -> None:
    x = embeddings(4000, 32)
    x[::2] = np.nan
    x[1::8] = 0
    assert chosen(compared_for(npy_of(x), "cosine")).candidates >= 10
    nothing = chosen(compared_for(npy_of(np.full((4000, 32), np.nan, np.float32))))
    assert nothing.code == "SQ8"


@pytest.mark.parametrize("d", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("n", [1, 2, 60, 200, 1000])
def test_few_rows_of_few_dimensions(n: int, d: int) -> None:
    assert chosen(compared_for(embeddings(n, d))).code in CODES


def test_rows_that_are_all_alike() -> None:
    assert chosen(compared_for(np.ones((3000, 20), np.float32))).code in CODES


def test_queries_that_are_unlike_the_rows_are_asked_for(npy: Path, x: AnyArray) -> None:
    with open_store(npy) as store:
        rows, n = Glance(store, "l2", 0).rows, store.n
    far = x[:50] + np.float32(5)
    of_queries = choose_code(rows, "l2", 0, 1, n=n, row_bytes=x[0].nbytes, queries=far)
    assert choose_code(rows, "l2", 0, 1, n=n, row_bytes=x[0].nbytes) != of_queries


def test_what_was_chosen_is_kept(npy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that goes on does not choose again, and one that is there is recognised."""
    index = tmp_path / "i"
    ooc.build(npy, tmp_path / "whole")
    ooc.train(npy, index)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("chosen again")

    monkeypatch.setattr(sys.modules["ooc.build.plan"], "choose_code", refuse)
    ooc.build(npy, index)
    assert ooc.build(npy, index)["already_built"]
    assert tree(index) == tree(tmp_path / "whole")


def test_what_was_compared_is_in_the_report_of_a_build_that_went_on(npy: Path, tmp_path: Path) -> None:
    ooc.train(npy, tmp_path / "i")
    ooc.build(npy, tmp_path / "i")
    ooc.build(npy, tmp_path / "whole")
    reports = []
    for name in ("i", "whole"):
        with ooc.open_index(tmp_path / name) as index:
            reports.append(index.info()["report"]["plan"])
    assert reports[0]["compared"]
    assert reports[0]["compared"] == reports[1]["compared"]


def test_a_code_that_was_named_is_not_taken_for_one_that_was_chosen(npy: Path, tmp_path: Path) -> None:
    ooc.build(npy, tmp_path / "i", factory="SQ4")
    with pytest.raises(ooc.ConflictError, match="SQ4"):
        ooc.build(npy, tmp_path / "i")


def test_a_store_in_chunks_is_not_decoded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = embeddings(20_000, 16)
    with ooc.create_store(tmp_path / "x.zarr", d=16, chunk_rows=100, compression="zstd") as writer:
        writer.append(x)
    monkeypatch.setattr(draw, "_CHUNKS", 6)
    with open_store(tmp_path / "x.zarr") as store:
        asked: list[AnyArray] = []
        gather = store.gather
        monkeypatch.setattr(store, "gather", lambda rows: (asked.append(rows), gather(rows))[1])
        glance = Glance(store, "l2", 0)
        assert glance.rows is glance.rows
    (rows,) = asked
    assert len(rows) > 500
    assert len(np.unique(rows // 100)) <= 6
