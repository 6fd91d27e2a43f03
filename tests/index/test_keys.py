"""Keys on disk: read from any source, found again, each once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import ooc
from ooc.durable import block_checksums, write_json
from ooc.index import keys as module
from ooc.index.keys import KeyTable, hashes, key_files, write_keys
from ooc.index.layout import SegmentLayout
from ooc.stores.keys import KeySource, as_block, keys_of_rows, open_keys
from ooc.stores.texts import Texts

N = 50_000

TEXTS = [f"doc/{'é' * (i % 50)}{i}" for i in range(N)]
NUMBERS = np.random.default_rng(0).permutation(np.arange(-N // 2, N // 2) * 982_451_653)


def written(keys: Any, place: Path) -> KeyTable:
    source = open_keys(keys)
    layout = SegmentLayout(place)
    said = write_keys(source, layout)
    assert said["checksums"] == {p.name: block_checksums(p) for p in key_files(layout, source.kind)}
    write_json(layout.record, {"keys": {name: said[name] for name in ("kind", "longest")}})
    return KeyTable(layout, source.n)


def found(table: KeyTable, keys: Any) -> list[int]:
    block = open_keys(keys, table.kind).all()
    return table.find(block, module.hashes(block)).tolist()


def listed(table: KeyTable, rows: Any) -> list[Any]:
    some = table.take(np.asarray(rows, np.int64))
    return some.strings() if isinstance(some, Texts) else some.tolist()


@pytest.mark.parametrize("keys", [TEXTS, NUMBERS], ids=["str", "int64"])
def test_every_key_is_found_at_its_row_and_no_other(keys: Any, tmp_path: Path) -> None:
    table = written(keys, tmp_path)
    rows = np.random.default_rng(1).permutation(N)
    wanted = [keys[i] for i in rows.tolist()]
    assert found(table, wanted) == rows.tolist()
    assert listed(table, rows) == wanted
    others = [f"{text}." for text in TEXTS] if keys is TEXTS else NUMBERS + 1
    assert set(found(table, others)) == {-1}
    assert found(table, [] if keys is TEXTS else np.empty(0, np.int64)) == []
    assert table.longest == (len(f"doc/{'é' * 49}{N - 1}".encode()) if keys is TEXTS else 8)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_keys(n: int, tmp_path: Path) -> None:
    table = written(TEXTS[:n], tmp_path)
    assert found(table, TEXTS[:5]) == [*range(n), *[-1] * (5 - n)]
    table = written(np.array([0, -1, 2**63 - 1][:n]), tmp_path / "numbers")
    assert found(table, [0, -1, 2**63 - 1, 5]) == [*range(n), *[-1] * (4 - n)]


@settings(max_examples=60, deadline=None)
@given(
    keys=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=9),
        min_size=1,
        unique=True,
    ),
    others=st.lists(st.text(st.sampled_from("ab\nü"), min_size=1, max_size=3)),
    weak=st.sampled_from([None, 1, 3]),
)
def test_any_strings_are_found_even_where_hashes_are_the_same(
    keys: list[str], others: list[str], weak: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if weak is not None:
            patch.setattr(module, "hashes", lambda block: hashes(block) & np.uint64(weak))
        table = written(keys, tmp_path_factory.mktemp("keys"))
        known = {key: i for i, key in enumerate(keys)}
        wanted = [*keys, *others]
        assert found(table, wanted) == [known.get(key, -1) for key in wanted]


@pytest.mark.parametrize("weak", [None, 0, 7])
def test_a_key_that_is_there_twice_is_named(
    weak: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weak is not None:
        monkeypatch.setattr(module, "hashes", lambda block: hashes(block) & np.uint64(weak))
    with pytest.raises(ooc.DataError, match="'b' is given twice in the keys: of rows 1 and 4") as caught:
        written(["a", "b", "c", "d", "b", "e"], tmp_path)
    assert caught.value.kind == "duplicate-key"
    if weak is None:
        with pytest.raises(ooc.DataError, match="key 7 is given twice"):
            written(np.array([7, 5, 7]), tmp_path)
        with pytest.raises(ooc.DataError, match="twice"):
            written(["same"] * 3000, tmp_path)


def test_hashes_are_those_of_the_page_of_the_format() -> None:
    import xxhash

    assert hashes(Texts.of(["clé".encode()])).tolist() == [xxhash.xxh3_64_intdigest("clé".encode())]
    z, mask = (-5) % 2**64, 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    assert hashes(np.array([-5])).tolist() == [z ^ (z >> 31)]


def test_sorting_goes_through_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(TEXTS, tmp_path / "whole")
    monkeypatch.setattr(module, "_SORTED", 1000)
    monkeypatch.setattr(module, "_SCANNED", 777)
    written(TEXTS, tmp_path / "pieces")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "pieces" / path.name).read_bytes()


def test_a_stop_ends_the_writing(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(ooc.Stopped):
        write_keys(open_keys(TEXTS), SegmentLayout(tmp_path), stop=stop)
    assert not list(tmp_path.iterdir())


SOME = ["a", "bé", "c" * 4000, " d ", "5", '"']


def _text(path: Path) -> str:
    (path / "k.txt").write_bytes("\n".join(SOME).encode())
    return str(path / "k.txt")


def _dos(path: Path) -> str:
    (path / "k.csv").write_bytes(b"\xef\xbb\xbf" + "".join(f"{one}\r\n" for one in SOME).encode())
    return str(path / "k.csv")


def _npy(path: Path) -> str:
    np.save(path / "k.npy", np.array(SOME))
    return str(path / "k.npy")


def _parquet(path: Path) -> str:
    table = pa.table({"x": [1.0] * len(SOME), "id": SOME})
    pq.write_table(table, path / "k.parquet", row_group_size=2)
    return f"{path / 'k.parquet'}::id"


def _dictionary(path: Path) -> str:
    table = pa.table({"id": pa.array(SOME).dictionary_encode()})
    pq.write_table(table, path / "d.parquet")
    return f"{path / 'd.parquet'}::id"


def _arrow(path: Path) -> str:
    pyarrow.feather.write_feather(pa.table({"id": SOME}), path / "k.arrow", chunksize=2)
    return f"{path / 'k.arrow'}::id"


def _hdf5(path: Path) -> str:
    with h5py.File(path / "k.h5", "w") as file:
        file.create_dataset("g/id", data=SOME, dtype=h5py.string_dtype())
    return f"{path / 'k.h5'}::/g/id"


def _fixed(path: Path) -> str:
    with h5py.File(path / "f.h5", "w") as file:
        file.create_dataset("id", data=np.array([one.encode() for one in SOME]))
    return f"{path / 'f.h5'}::/id"


def _zarr(path: Path) -> str:
    root = zarr.open_group(str(path / "k.zarr"), mode="w")
    array = root.create_array("id", shape=(len(SOME),), chunks=(4,), dtype="string")
    array[:] = np.array(SOME, object)
    return f"{path / 'k.zarr'}::/id"


def _array(path: Path) -> Any:
    return np.array(SOME, object)


def _arrow_array(path: Path) -> Any:
    return pa.chunked_array([SOME[:2], SOME[2:]])


def _bytes(path: Path) -> Any:
    return [one.encode() for one in SOME]


@pytest.mark.parametrize(
    "make",
    [
        _text,
        _dos,
        _npy,
        _parquet,
        _dictionary,
        _arrow,
        _hdf5,
        _fixed,
        _zarr,
        _array,
        _arrow_array,
        _bytes,
    ],
)
def test_strings_come_from_any_source(make: Callable[[Path], Any], tmp_path: Path) -> None:
    source = open_keys(make(tmp_path))
    assert (source.n, source.kind) == (len(SOME), "str")
    for _ in range(2):  # any number of times
        (block,) = [source.all()]
        assert isinstance(block, Texts)
        assert block.strings() == SOME
    assert source.fingerprint() == open_keys(SOME).fingerprint()
    part = source.part(1, 4).all()
    assert isinstance(part, Texts)
    assert part.strings() == SOME[1:4]


def test_numbers_come_from_any_source(tmp_path: Path) -> None:
    numbers = np.array([5, -3, 2**62], np.int64)
    np.save(tmp_path / "k.npy", numbers)
    pq.write_table(pa.table({"id": numbers}), tmp_path / "k.parquet")
    with h5py.File(tmp_path / "k.h5", "w") as file:
        file["id"] = numbers.astype(">i8")
    zarr.save_array(str(tmp_path / "k.zarr"), numbers)
    (tmp_path / "k.txt").write_text("5\n-3\n4611686018427387904\n")
    names = ("k.npy", "k.parquet::id", "k.h5::/id", "k.zarr")
    sources: list[Any] = [f"{tmp_path}/{name}" for name in names]
    for given_ in (*sources, numbers, numbers.tolist(), numbers.astype(">i8")):
        source = open_keys(given_)
        assert (source.kind, source.all().tolist()) == ("int64", numbers.tolist())  # type: ignore[union-attr]
        assert source.fingerprint() == open_keys(numbers).fingerprint()
    assert open_keys(tmp_path / "k.txt").kind == "str"
    assert open_keys(tmp_path / "k.txt", "int64").all().tolist() == numbers.tolist()  # type: ignore[union-attr]
    assert open_keys(np.array([3], np.uint8)).kind == "int64"


def test_blocks_do_not_show_in_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ooc.stores import key_files, keys

    (tmp_path / "k.txt").write_text("\n".join(TEXTS))
    monkeypatch.setattr(key_files, "_TEXT_BYTES", 1000)
    monkeypatch.setattr(keys, "BLOCK_KEYS", 37)
    source = open_keys(tmp_path / "k.txt")
    assert source.n == N
    assert source.all().strings() == TEXTS  # type: ignore[union-attr]
    assert source.part(1234, N).fingerprint() == open_keys(TEXTS[1234:]).fingerprint()


def test_fingerprints_tell_keys_apart() -> None:
    sets: list[Any] = [["a", "b"], ["b", "a"], ["ab"], ["a", "bc"], ["ab", "c"], [1, 2], [2, 1]]
    assert len({open_keys(keys).fingerprint()[0] for keys in sets}) == len(sets)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        (["a", None], "row 1 in the keys has no key"),
        (["a", ""], "row 1 in the keys is empty"),
        (["a", "b\0"], "row 1 in the keys holds a NUL"),
        (["b" * 70_000], "row 0 in the keys has 70000 bytes"),
        (["a", 5], "all whole numbers, or all strings"),
        ([5, "a"], "row 0 in the keys is 5"),
        ([1.5], "1.5"),
        ([True, False], "True"),
        (np.array([1.0, 2.0]), "1.0"),
        (np.array([[1, 2]]), "1 x 2"),
        (np.array([2**63], np.uint64), "beyond int64"),
        ([2**63], "beyond int64"),
        (["\ud800"], "no UTF-8"),
        ([b"\xff"], "no UTF-8"),
        ({"a": 1}, "dict"),
        (5, "int"),
        (pa.array(["a", None]), "row 1 in the keys has no key"),
        (pa.array([1.5]), "double"),
    ],
)
def test_what_are_no_keys(keys: Any, match: str) -> None:
    with pytest.raises(ooc.ArgumentError, match=match) as caught:
        open_keys(keys).all()
    assert caught.value.kind == "keys"


def test_files_that_hold_no_keys(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(ooc.ArgumentError, match="line 3 of"):
        open_keys(tmp_path / "bad.txt").all()
    (tmp_path / "empty.txt").write_bytes(b"a\n\nb\n")
    with pytest.raises(ooc.ArgumentError, match=r"row 1 in .* is empty"):
        open_keys(tmp_path / "empty.txt").all()
    (tmp_path / "words.txt").write_bytes(b"1\ntwo\n")
    with pytest.raises(ooc.ArgumentError, match=r"line 2 .*'two'"):
        open_keys(tmp_path / "words.txt", "int64").all()
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    with pytest.raises(ooc.ArgumentError, match="4 x 2"):
        open_keys(tmp_path / "x.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:70])
    with pytest.raises(ooc.StoreError, match="cannot be read as keys"):
        open_keys(tmp_path / "cut.npy")
    with pytest.raises(ooc.StoreError, match="no file of keys") as caught:
        open_keys(tmp_path / "none.txt")
    assert caught.value.kind == "store-missing"
    parquet = _parquet(tmp_path).removesuffix("::id")
    for name, kind in (("", "which column"), ("::y", "no column 'y'"), ("::x", "double")):
        with pytest.raises((ooc.StoreError, ooc.ArgumentError), match=kind) as caught:
            open_keys(parquet + name)
        assert "id" in str(caught.value.hint)
    for path in (_hdf5(tmp_path), _zarr(tmp_path)):
        with pytest.raises(ooc.StoreError, match="id") as caught:
            open_keys(path.rpartition("::")[0] + "::/other")
        assert caught.value.kind == "dataset-missing"
    (tmp_path / "x.fvecs").write_bytes(b"")
    with pytest.raises(ooc.ArgumentError, match="holds vectors"):
        open_keys(tmp_path / "x.fvecs")
    with pytest.raises(ooc.ArgumentError, match="directory"):
        open_keys(tmp_path)


def test_keys_of_another_kind() -> None:
    with pytest.raises(ooc.ArgumentError, match="are strings, and those in the keys are whole"):
        open_keys([1], "str")
    with pytest.raises(ooc.ArgumentError, match="whole numbers"):
        open_keys(["a"], "int64")
    assert len(open_keys([], "str").all()) == len(open_keys(np.empty(0), "int64").all()) == 0


def test_keys_that_changed_while_they_were_read(tmp_path: Path) -> None:
    (tmp_path / "k.txt").write_text("a\nb\nc\n")
    source = open_keys(tmp_path / "k.txt")
    (tmp_path / "k.txt").write_text("a\nb\n")
    with pytest.raises(ooc.ArgumentError, match=r"2 keys in .*, and there were 3"):
        source.all()


def test_keys_of_new_rows_or_of_all() -> None:
    source = open_keys(["a", "b", "c"])
    assert keys_of_rows(source, 1, 3, 3).all().strings() == ["b", "c"]  # type: ignore[union-attr]
    assert keys_of_rows(source, 5, 8, 8) is source
    with pytest.raises(ooc.ArgumentError, match="3 keys in the keys, and 2 rows"):
        keys_of_rows(source, 0, 2, 7)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    layout = SegmentLayout(tmp_path)
    written(TEXTS[:99], tmp_path)
    whole = {p: p.read_bytes() for p in key_files(layout, "str")}
    for path, data in whole.items():
        for bad in (data[:-1], b"", b"x" * len(data), None):
            if bad is None:
                path.unlink()
            elif path.name == "keys.utf8" and len(bad) == len(data):
                continue  # other text of that length is for the checksums to find
            else:
                path.write_bytes(bad)
            with pytest.raises(ooc.IndexDirError) as caught:
                KeyTable(layout, 99)
            assert caught.value.kind == "index-damaged"
            path.write_bytes(data)
    rows = bytearray(whole[layout.key_rows])
    rows[-4 * 99 :] = np.full(99, 99, np.uint32).tobytes()
    layout.key_rows.write_bytes(rows)
    with pytest.raises(ooc.IndexDirError, match="row 99 of 99"):
        found(KeyTable(layout, 99), TEXTS[:1])
    layout.record.write_text(json.dumps({"keys": None}))
    with pytest.raises(ooc.IndexDirError, match="nothing of keys"):
        KeyTable(layout, 99)


def test_packed_strings() -> None:
    texts = Texts.of([b"ab", b"c", b"def"])
    assert texts[1:].strings() == ["c", "def"]
    assert texts[np.array([2, 0, 2])].strings() == ["def", "ab", "def"]
    assert texts[5:].strings() == []
    assert texts.same(Texts.of([b"ab", b"d", b"def"])).tolist() == [True, False, True]
    assert texts.same(Texts.of([b"abc", b"cd", b"de"])).tolist() == [False, False, False]
    assert Texts.joined([texts, texts[:1]]).strings() == ["ab", "c", "def", "ab"]
    assert KeySource.of(texts, "here").all().strings() == ["ab", "c", "def"]  # type: ignore[union-attr]
    assert len(as_block([], "here", 0)) == 0
