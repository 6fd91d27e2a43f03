"""An index as one file of plain faiss: it answers as the codes do."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest

import ooc
from ooc.cli.main import main
from ooc.types import FloatArray
from tests.exchange.helpers import assert_same_answers, nearest_first
from tests.helpers import embeddings, tree

N, D = 2000, 24


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    return embeddings(N + 500, D, seed=5)


@pytest.fixture(scope="module")
def queries(rows: FloatArray) -> FloatArray:
    return rows[::173] + np.float32(0.02)


def built(tmp_path: Path, rows: FloatArray, factory: str, metric: str, **options: str) -> Path:
    np.save(tmp_path / "base.npy", rows[:N])
    index = tmp_path / "i.ooc"
    ooc.build(tmp_path / "base.npy", index, metric=metric, factory=factory, **options)  # type: ignore[arg-type]
    return index


def changed(index: Path, rows: FloatArray) -> None:
    """Several segments, dead rows, ids that are not numbers of rows."""
    ooc.append(index, rows[N : N + 200])
    ooc.delete(index, np.arange(0, N, 9))
    ooc.upsert(index, np.array([9, 30, N + 5]), rows[N + 300 : N + 303])
    ooc.append(index, rows[N + 200 : N + 210])


def exported(index: Path, tmp_path: Path) -> Path:
    out = tmp_path / "e.faiss"
    with ooc.open_index(index) as opened:
        figures = ooc.export(index, out)
        assert (figures["rows"], figures["generation"]) == (opened.n, opened.generation)
    assert figures["bytes"] == out.stat().st_size
    return out


@pytest.mark.parametrize(
    ("factory", "metric"),
    [
        ("IVF16,Flat", "l2"),
        ("IVF16,SQ8", "ip"),
        ("IVF16,SQfp16", "cosine"),
        ("IVF16,PQ8", "l2"),
        ("IVF16,PQ8x4", "ip"),
        ("HR,IVF16,RaBitQ", "cosine"),
        ("HR,IVF16,RaBitQ", "l2"),
        ("RR,IVF16,RaBitQ2", "ip"),
        ("HR,IVF16,EDEN3", "cosine"),
        ("OPQ8_16,IVF16,PQ8", "l2"),
        ("PCA16,IVF16,SQ8", "cosine"),
        ("IVF16_HNSW8,SQ4", "l2"),
    ],
)
def test_faiss_answers_as_the_codes_do(
    tmp_path: Path, rows: FloatArray, queries: FloatArray, factory: str, metric: str
) -> None:
    index = built(tmp_path, rows, factory, metric)
    changed(index, rows)
    nearest_first(index)
    out = exported(index, tmp_path)
    there = faiss.read_index(str(out))
    assert there.d == D
    ivf = faiss.extract_index_ivf(there)
    with ooc.open_index(index) as ours:
        assert there.ntotal == ivf.ntotal == ours.n
        assert ivf.nprobe == ours.default_nprobe or ours.promise is not None
        for nprobe in (1, 3, 16):
            ivf.nprobe = nprobe
            # For cosine neither need be of unit length.
            xq = queries * np.float32(2.5 if metric == "cosine" else 1)
            assert_same_answers(
                ours.search(queries, 10, nprobe=nprobe, rerank=0), there.search(xq, 10), atol=2e-4
            )


def test_the_file_is_what_faiss_itself_would_write(tmp_path: Path, rows: FloatArray) -> None:
    for name, n, factory in (("full", N, "IVF16,SQ8"), ("sparse", 40, "IVF32,SQ8")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", rows[:n])
        index = tmp_path / name / "i.ooc"
        ooc.build(tmp_path / name / "x.npy", index, factory=factory)
        if name == "sparse":
            ooc.delete(index, np.arange(3, n))
        out = exported(index, tmp_path / name)
        again = faiss.serialize_index(faiss.read_index(str(out)))
        assert out.read_bytes() == again.tobytes(), name


def test_ids_are_those_of_the_index_and_ascend_within_a_list(tmp_path: Path, rows: FloatArray) -> None:
    index = built(tmp_path, rows, "HR,IVF16,RaBitQ", "l2")
    changed(index, rows)
    out = exported(index, tmp_path)
    there = faiss.read_index(str(out), faiss.IO_FLAG_MMAP)
    ivf = faiss.extract_index_ivf(there)
    every = []
    for number in range(ivf.nlist):
        ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), ivf.invlists.list_size(number)).copy()
        assert (np.diff(ids) > 0).all()
        every.append(ids)
    live = np.setdiff1d(np.arange(N + 210), np.setdiff1d(np.arange(0, N, 9), [9]))
    np.testing.assert_array_equal(np.sort(np.concatenate(every)), live)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_of_a_row_in_two_lists_the_entry_in_the_nearer_one_stays(
    tmp_path: Path, rows: FloatArray, queries: FloatArray, metric: str
) -> None:
    index = built(tmp_path, rows, "HR,IVF32,RaBitQ4", metric, spill="on")
    ooc.append(index, rows[N : N + 100])
    gone = np.arange(0, N, 11)
    ooc.delete(index, gone)
    out = exported(index, tmp_path)
    there = faiss.read_index(str(out))
    ivf = faiss.extract_index_ivf(there)
    lists = np.full(N + 100, -1)
    for number in range(ivf.nlist):
        ids = faiss.rev_swig_ptr(ivf.invlists.get_ids(number), ivf.invlists.list_size(number))
        assert (lists[ids] == -1).all()  # each row once
        lists[ids] = number
    np.testing.assert_array_equal(np.flatnonzero(lists < 0), gone)
    centroids = np.load(index / "template" / "centroids.npy")
    x = rows[: N + 100]
    if metric == "cosine":
        nearest = (x @ centroids.T).argmax(axis=1)
    else:
        nearest = ((x[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    kept = lists >= 0
    assert (lists[kept] == nearest[kept]).mean() > 0.995  # RaBitQ keeps how far a row is from its centroid
    ivf.nprobe = 32
    _, found = there.search(queries, 10)
    with ooc.open_index(index) as ours:
        _, expected = ours.search(queries, 10, nprobe=32, rerank=0)
    both = [len(np.intersect1d(a, b)) for a, b in zip(found, expected, strict=True)]
    assert np.mean(both) > 8.5
    assert not list(tmp_path.glob("tmp*"))


def test_faiss_goes_on_with_it(tmp_path: Path, rows: FloatArray) -> None:
    out = exported(built(tmp_path, rows, "HR,IVF16,RaBitQ", "cosine"), tmp_path)
    there = faiss.read_index(str(out))
    there.add_with_ids(rows[N : N + 10] * 7, np.arange(N, N + 10))
    faiss.extract_index_ivf(there).nprobe = 16
    _, found = there.search(rows[N : N + 10], 5)
    assert (found == np.arange(N, N + 10)[:, None]).any(axis=1).all()


def test_what_is_in_the_way_stays(tmp_path: Path, rows: FloatArray) -> None:
    index = built(tmp_path, rows, "IVF16,SQ8", "l2")
    before = tree(index)
    out = tmp_path / "there.faiss"
    out.write_text("mine")
    with pytest.raises(ooc.ConflictError) as caught:
        ooc.export(index, out)
    assert caught.value.kind == "out-exists"
    assert out.read_text() == "mine"
    with pytest.raises(ooc.ConflictError):
        ooc.export(index, tmp_path, overwrite=True)
    with pytest.raises(ooc.ArgumentError, match="within the index"):
        ooc.export(index, index / "e.faiss")
    with pytest.raises(ooc.ArgumentError, match="missing"):
        ooc.export(index, tmp_path / "no" / "e.faiss")
    with pytest.raises(ooc.ArgumentError, match="nprobe"):
        ooc.export(index, tmp_path / "e.faiss", nprobe=0)
    with pytest.raises(ooc.IndexDirError):
        ooc.export(tmp_path / "nothing.ooc", tmp_path / "e.faiss")
    stop = threading.Event()
    stop.set()
    with pytest.raises(ooc.Stopped):
        ooc.export(index, tmp_path / "e.faiss", stop=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"base.npy", "i.ooc", "there.faiss"}
    assert tree(index) == before
    with pytest.raises(ooc.ConflictError, match="no file of faiss's"):
        ooc.export(index, out, overwrite=True)
    assert out.read_text() == "mine"
    out.write_text("")
    ooc.export(index, out, overwrite=True)
    ooc.export(index, out, overwrite=True, nprobe=5)
    assert faiss.read_index(str(out)).nprobe == 5


def test_no_store_of_the_index_is_written_over(tmp_path: Path, rows: FloatArray) -> None:
    index = built(tmp_path, rows, "IVF16,SQ8", "l2")
    np.save(tmp_path / "more.npy", rows[N:])
    ooc.append(index, tmp_path / "more.npy")
    (tmp_path / "link.npy").symlink_to("base.npy")
    (tmp_path / "hard.npy").hardlink_to(tmp_path / "base.npy")
    before = tree(tmp_path)
    for name in ("base.npy", "more.npy", "link.npy", "hard.npy"):
        with pytest.raises(ooc.ArgumentError, match="store of the index") as caught:
            ooc.export(index, tmp_path / name, overwrite=True)
        assert caught.value.kind == "same-path"
    assert tree(tmp_path) == before


def test_damaged_lists_are_seen_and_no_file_is_left(tmp_path: Path, rows: FloatArray) -> None:
    index = built(tmp_path, rows, "IVF16,SQ8", "l2")
    lists = index / "segments" / "s1" / "lists.ivfdata"
    data = bytearray(lists.read_bytes())
    data[3] ^= 1
    lists.write_bytes(data)
    with pytest.raises(ooc.IndexDirError, match="checksum"):
        ooc.export(index, tmp_path / "e.faiss")
    assert not list(tmp_path.glob("*.faiss")) + list(tmp_path.glob(".*"))


def test_an_index_without_rows(tmp_path: Path, rows: FloatArray, queries: FloatArray) -> None:
    index = built(tmp_path, rows, "IVF16,SQ8", "l2")
    ooc.delete(index, np.arange(N))
    there = faiss.read_index(str(exported(index, tmp_path)))
    assert there.ntotal == 0
    assert (there.search(queries, 3)[1] == -1).all()


def test_on_the_command_line(
    tmp_path: Path, rows: FloatArray, queries: FloatArray, capsys: pytest.CaptureFixture[str]
) -> None:
    index, out, taken = built(tmp_path, rows, "IVF16,SQ8", "l2"), tmp_path / "e.faiss", tmp_path / "t.ooc"
    assert main(["export", str(index), str(out), "--nprobe", "4", "--quiet"]) == 0
    assert "nprobe is 4, metric l2" in capsys.readouterr().out
    assert main(["export", str(index), str(out), "--quiet"]) == 7
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(index), str(out), "--overwrite", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == N
    assert main(["import", str(out), str(taken), "--quiet"]) == 0
    assert "no vectors" in capsys.readouterr().out
    assert main(["info", str(taken)]) == 0
    shown = capsys.readouterr().out
    assert "go by the codes alone" in shown
    assert f"IndexIVFScalarQuantizer imported from {out}" in shown
    assert (
        main(["import", str(out), str(tmp_path / "s.ooc"), "--store", str(tmp_path / "base.npy"), "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["vectors"] is True
    assert main(["import", str(tmp_path / "base.npy"), str(tmp_path / "n.ooc")]) == 5
    assert "cannot be taken over" in capsys.readouterr().err
    assert main(["info", str(taken), "--generations"]) == 0
    assert " import " in capsys.readouterr().out
