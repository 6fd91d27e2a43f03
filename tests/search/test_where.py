"""Conditions on a table beside the rows: what they allow, and what they may not do."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import ooc
from ooc.cli.main import main
from ooc.search import where as where_module
from ooc.search.where import Metadata
from ooc.types import FloatArray, IntArray
from ooc.units import MIB
from tests.helpers import embeddings, exact_search

pytest.importorskip("duckdb")

N, D = 3000, 16
LANGS = np.array(["en", "de", "fr"])


def table(n: int, *, ids: IntArray | None = None) -> pa.Table:
    number = np.arange(n) if ids is None else ids
    columns: dict[str, Any] = {
        "lang": LANGS[number % 3],
        "year": 1990 + number % 40,
        "o'clock": number % 24,
        "maybe": pa.array([None if one % 5 == 0 else int(one % 2) for one in number.tolist()]),
        "tags": pa.array([[f"t{one % 7}"] for one in number.tolist()]),
    }
    if ids is not None:
        columns["id"] = ids
    return pa.table(columns)


def write(path: Path, made: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(made, path, row_group_size=700)
    elif path.suffix == ".feather":
        pa.feather.write_feather(made, path, chunksize=700, compression="zstd")
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made, max_chunksize=700)
    return path


@pytest.fixture(scope="module")
def x() -> FloatArray:
    return embeddings(N + 100, D, seed=2)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, x: FloatArray) -> Path:
    """Which no test changes."""
    place = tmp_path_factory.mktemp("where")
    np.save(place / "x.npy", x[:N])
    ooc.build(place / "x.npy", place / "i.ooc", factory="IVF32,SQ8")
    return place / "i.ooc"


NUMBER = np.arange(N)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".arrow"])
@pytest.mark.parametrize(
    ("where", "parameters", "expected"),
    [
        ("lang = 'en'", None, NUMBER % 3 == 0),
        ("lang = 'en' AND year > ?", [2020], (NUMBER % 3 == 0) & (NUMBER % 40 > 30)),
        ("lang = $l OR year = $y", {"l": "de", "y": 1990}, (NUMBER % 3 == 1) | (NUMBER % 40 == 0)),
        ("list_contains(?, lang)", [["en", "fr"]], NUMBER % 3 != 1),
        ("lang IN (SELECT unnest(?))", [np.array(["en", "fr"])], NUMBER % 3 != 1),
        ("maybe", None, (NUMBER % 5 != 0) & (NUMBER % 2 == 1)),
        ("NOT (maybe = 1)", None, (NUMBER % 5 != 0) & (NUMBER % 2 == 0)),
        ('"o\'clock" = 5 -- a comment', None, NUMBER % 24 == 5),
        ("year >= ?", [np.int32(1990)], NUMBER >= 0),
        ("year > 3000", None, NUMBER < 0),
        ("'t3' IN tags", None, NUMBER % 7 == 3),
        ("lang <> ')' AND lang ILIKE 'E%'", None, NUMBER % 3 == 0),
    ],
)
def test_what_a_condition_allows(
    index: Path, tmp_path: Path, x: FloatArray, suffix: str, where: str, parameters: Any, expected: Any
) -> None:
    meta = write(tmp_path / f"o'meta{suffix}", table(N))
    with ooc.open_index(index, metadata=meta) as opened:
        made = opened.filter(where=where, parameters=parameters)
        np.testing.assert_array_equal(made.ids(), np.flatnonzero(expected))
        for options in ({}, {"nprobe": 3}, {"rerank": 0}):
            found = opened.search(x[::300], 5, where=where, parameters=parameters, **options)
            same = opened.search(x[::300], 5, filter=expected, **options)
            np.testing.assert_array_equal(found[1], same[1])
        lims, _, ids = opened.range_search(x[:3], 5.0, where=where, parameters=parameters)
        assert expected[ids].all()
        assert len(lims) == 4


def test_with_a_filter_both_must_allow(index: Path, tmp_path: Path, x: FloatArray) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    with ooc.open_index(index, metadata=meta) as opened:
        few = {"where": "year = ?", "parameters": [2003]}  # 75 of 3000
        assert opened.explain(x[:5], 10, **few).candidates != opened.explain(x[:5], 10).candidates
        same = opened.explain(x[:5], 10, filter=opened.filter(**few))
        assert opened.explain(x[:5], 10, **few).candidates == same.candidates
        assert opened.settings(10, recall=0.9, **few) == opened.settings(10, recall=0.9, filter=np.arange(75))
        for allowed in (range(1000), np.arange(0, N, 2), NUMBER % 4 < 3, [3, 6, 7]):
            ids = opened.filter(allowed, where="lang = 'en'").ids()
            np.testing.assert_array_equal(ids, [one for one in opened.filter(allowed).ids() if one % 3 == 0])
        _, found = opened.search(x[:5], 10, filter=range(30), where="lang = 'en'")
        np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(0, 30, 3), (5, 1)))


def test_a_table_with_ids_may_be_in_any_order_and_of_any_length(
    index: Path, tmp_path: Path, x: FloatArray
) -> None:
    ids = np.random.default_rng(0).permutation(N + 50)[:2000]
    ids = np.concatenate([ids, ids[:10], [-3]])
    expected = np.unique(ids[(ids % 3 == 0) & (ids >= 0) & (ids < N)])
    for suffix in (".parquet", ".feather"):
        meta = write(tmp_path / f"meta{suffix}", table(len(ids), ids=ids))
        with ooc.open_index(index, metadata=meta) as opened:
            np.testing.assert_array_equal(opened.filter(where="lang = 'en'").ids(), expected)
            np.testing.assert_array_equal(
                opened.filter(where="id < 100").ids(), np.unique(ids[(ids >= 0) & (ids < 100)])
            )
    meta = write(tmp_path / "text.parquet", pa.table({"id": ["a"] * N}))
    with (
        ooc.open_index(index, metadata=meta) as opened,
        pytest.raises(ooc.ArgumentError, match="not whole numbers"),
    ):
        opened.search(x[:1], where="id = 'a'")
    for suffix in (".parquet", ".feather"):
        meta = write(tmp_path / f"number{suffix}", pa.table({"File_Row_Number": NUMBER[::-1].copy()}))
        with (
            ooc.open_index(index, metadata=meta) as opened,
            pytest.raises(ooc.ArgumentError, match="by this name its rows are numbered"),
        ):
            opened.search(x[:1], where="file_row_number < 10")


def test_the_table_grows_with_the_index(index: Path, tmp_path: Path, x: FloatArray) -> None:
    index = shutil.copytree(index, tmp_path / "i.ooc")
    meta = write(tmp_path / "meta.parquet", table(N))
    with ooc.open_index(index, metadata=meta, follow=True) as opened:
        first = opened.filter(where="lang = 'en'")
        assert opened.filter(where="lang = 'en'") is first  # kept
        assert opened.filter(where="lang = 'de'") is not first
        ooc.append(index, x[N : N + 30])
        with pytest.raises(
            ooc.ArgumentError, match=f"{N} rows, and the index has ids 0 to {N + 29}"
        ) as caught:
            opened.search(x[:2], where="lang = 'en'")
        assert caught.value.kind == "metadata"
        write(meta, table(N + 30))
        ooc.delete(index, np.arange(0, N, 2))
        ooc.upsert(index, np.array([0, 3]), x[N + 50 : N + 52])
        now = x[: N + 30].copy()
        now[[0, 3]] = x[N + 50 : N + 52]
        # Of both deletions and replacements: 0 came back, the other even ones did not.
        live = np.setdiff1d(np.arange(0, N + 30, 3), np.arange(2, N, 2))
        for queries in (x[N : N + 30], now[[0, 3]]):
            _, ids = opened.search(queries, 20, nprobe=32, where="lang = 'en'")
            np.testing.assert_array_equal(ids, live[exact_search(now[live], queries, 20, "l2")[1]])
        np.testing.assert_array_equal(opened.filter(where="lang = 'en'").ids(), np.arange(0, N + 30, 3))


@pytest.mark.parametrize(
    "where",
    [
        "year >",
        "nothing = 3",
        "lang = 'en'; DROP TABLE metadata",
        "lang = 'en';",
        "1 = 1) UNION SELECT 5 WHERE (1 = 1",
        "1 = 1) ORDER BY (year",
        "1 = 1) LIMIT 3 OFFSET (1",
        "1 = 1) OR 1 = 1 --",
        "1 = 1 /*",
        "SELECT 1; SELECT 2",
        "year = ?",  # no value for it
        "count(*) > 3",
        "lang + 1",
        "lang",
        "1 = (SELECT count(*) FROM read_csv('/etc/passwd'))",
        "1 = (SELECT count(*) FROM '/etc/passwd')",
        "1 = (SELECT count(*) FROM read_text('/etc/passwd'))",
        "1 = (SELECT count(*) FROM glob('/etc/*'))",
        "1 = (SELECT count(*) FROM read_parquet('OTHER'))",
        "1 = (SELECT count(*) FROM read_blob('OTHER'))",
        "1 = (SELECT count(*) FROM parquet_metadata('OTHER'))",
        "1 = (SELECT count(*) FROM sniff_csv('/etc/passwd'))",
        "1 = (SELECT count(*) FROM secret_table)",
        "1 = (SELECT count(*) FROM enable_logging(storage = 'file', storage_path = 'OUT'))",
        "1 = (FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1 FROM read_text(''OTHER'')')))",
        "1 = (SELECT count(*) FROM pandas_scan(1))",
        "getenv('HOME') <> ''",
        "1 = (SELECT count(*) FROM query('COPY (SELECT 1) TO ''OUT'''))",
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_what_is_no_condition_is_refused(
    index: Path, tmp_path: Path, x: FloatArray, where: str, suffix: str
) -> None:
    secret_table = pa.table({"a": [1]})
    assert len(secret_table) == 1
    other = write(tmp_path / "other.parquet", table(5))
    meta = write(tmp_path / f"meta{suffix}", table(N))
    text = where.replace("OTHER", str(other)).replace("OUT", str(tmp_path / "out.csv"))
    with ooc.open_index(index, metadata=meta) as opened:
        with pytest.raises(ooc.ArgumentError) as caught:
            opened.search(x[:1], where=text)
        assert caught.value.kind == "where"
        assert not (tmp_path / "out.csv").exists()
        assert (opened.search(x[:1], where="lang = 'en'")[1] >= 0).all()


@pytest.mark.parametrize("parameters", ["en", 3, [object()], {"x": 1}, [1, 2]])
def test_parameters_that_fit_nothing(index: Path, tmp_path: Path, x: FloatArray, parameters: Any) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    with ooc.open_index(index, metadata=meta) as opened, pytest.raises(ooc.ArgumentError) as caught:
        opened.search(x[:1], where="lang = ?", parameters=parameters)
    assert caught.value.kind == "where"


def test_parameters_are_never_text(index: Path, tmp_path: Path) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    with ooc.open_index(index, metadata=meta) as opened:
        assert opened.filter(where="lang = ?", parameters=["en' OR '1' = '1"]).count == 0


def test_arguments_that_do_not_go_together(index: Path, tmp_path: Path, x: FloatArray) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    with ooc.open_index(index) as opened:
        with pytest.raises(ooc.ArgumentError, match="without one"):
            opened.search(x[:1], where="lang = 'en'")
        with pytest.raises(ooc.ArgumentError, match="parameters are of a condition"):
            opened.search(x[:1], parameters=[1])
    for name in ("none.parquet", "x.npy", "meta.csv"):
        with pytest.raises(ooc.ArgumentError) as caught:
            ooc.open_index(index, metadata=tmp_path / name)
        assert caught.value.kind == "metadata"
    meta.write_bytes(b"PAR1 nothing PAR1")
    with ooc.open_index(index, metadata=meta) as opened:
        with pytest.raises(ooc.ArgumentError, match=r"meta\.parquet"):
            opened.search(x[:1], where="lang = 'en'")
        for text in ("", "  ", 3):
            with pytest.raises(ooc.ArgumentError, match="must be an SQL"):
                opened.search(x[:1], where=text)  # type: ignore[call-overload]
        meta.unlink()
        with pytest.raises(ooc.ArgumentError, match=r"meta\.parquet"):
            opened.search(x[:1], where="lang = 'en'")


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"pyarrow": "17.0.0"}, "the package duckdb is not installed"),
        ({"duckdb": "2.0.1"}, "the package pyarrow is not installed"),
        (
            {"duckdb": "1.5.6", "pyarrow": "17.0.0"},
            r"duckdb 1\.5\.6 is installed, and at least 2\.0 is needed",
        ),
    ],
)
def test_without_the_package_it_is_said_how_to_install_it(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], said: str
) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(where_module.importlib.metadata, "version", version)
    with pytest.raises(ooc.MissingExtraError, match=said) as caught:
        ooc.open_index(index, metadata=meta)
    assert "ooc[where]" in str(caught.value.hint)


def test_opening_with_a_table_imports_no_database(index: Path, tmp_path: Path) -> None:
    import subprocess

    meta = write(tmp_path / "meta.parquet", table(N))
    code = (
        "import sys, ooc\n"
        f"with ooc.open_index({str(index)!r}, metadata={str(meta)!r}) as index: pass\n"
        "print(any(name in sys.modules for name in ('duckdb', 'pyarrow')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_few_sets_of_ids_are_kept(tmp_path: Path) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    made = Metadata(meta, 32 * MIB)
    for year in range(100):
        made.filter("year = ?", [year], ids=N, generation=1)
    assert len(made._kept) == 64
    first = made.filter("year = ?", [99], ids=N, generation=1)
    assert made.filter("year = ?", [99], ids=N, generation=1) is first
    assert made.filter("year = ?", [99], ids=N, generation=2) is not first
    made._kept_bytes = 1000  # a bit a row of 3000 takes 375 bytes
    made.filter("year > ?", [2000], ids=N, generation=1)
    assert sum(one.nbytes for one in made._kept.values()) <= 1000


def test_a_condition_that_takes_too_much_memory_says_so(tmp_path: Path) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    made = Metadata(meta, 32 * MIB)
    heavy = (
        "year IN (SELECT sum(a.range) FROM range(2000000) a JOIN range(2000000) b "
        "ON a.range = b.range GROUP BY a.range)"
    )
    with pytest.raises(ooc.ResourceError) as caught:
        made.filter(heavy, None, ids=N, generation=1)
    assert caught.value.kind == "memory"


def test_several_threads_ask_at_once(index: Path, tmp_path: Path, x: FloatArray) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    wrong: list[object] = []
    with ooc.open_index(index, metadata=meta) as opened:

        def ask(seed: int) -> None:
            try:
                for i in range(6):
                    lang = LANGS[(seed + i) % 3]
                    _, ids = opened.search(x[:3], 10, where="lang = ?", parameters=[str(lang)])
                    if not (ids % 3 == (seed + i) % 3).all():
                        wrong.append(ids)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_on_the_command_line(
    index: Path, tmp_path: Path, x: FloatArray, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = write(tmp_path / "meta.parquet", table(N))
    np.save(tmp_path / "q.npy", x[:4])
    base = ["search", str(index), str(tmp_path / "q.npy"), "-k", "3", "--where", "lang = 'en'"]
    assert main([*base, "--metadata", str(meta)]) == 0
    ids = [int(line.split()[2]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert len(ids) == 12
    assert all(one % 3 == 0 for one in ids)
    out = tmp_path / "hits.npz"
    assert main([*base, "--metadata", str(meta), "--out", str(out), "--quiet", "--json"]) == 0
    assert f'"allowed": {N // 3}' in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(out)["ids"].reshape(-1), ids)
    assert main([*base, "--metadata", str(meta), "--explain"]) == 0
    capsys.readouterr()
    bound = ["--where", "lang = ? AND year > ?", "--parameter", "de", "--parameter", "2020"]
    assert main([*base, "--metadata", str(meta), *bound]) == 0
    ids = np.array([int(line.split()[2]) for line in capsys.readouterr().out.splitlines()[1:]])
    assert ((ids % 3 == 1) & (1990 + ids % 40 > 2020)).all()
    assert (
        main([*base, "--metadata", str(meta), *bound, "--out", str(tmp_path / "bound.npz"), "--quiet"]) == 0
    )
    np.testing.assert_array_equal(np.load(tmp_path / "bound.npz")["ids"].reshape(-1), ids)
    capsys.readouterr()
    assert main(base) == 2
    assert "go together" in capsys.readouterr().err
    assert main([*base[:5], "--parameter", "1"]) == 2
    assert "goes with --where" in capsys.readouterr().err
