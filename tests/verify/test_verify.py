"""``ooc.verify``: what it finds, where, and what it mends."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import ooc
from ooc import events
from ooc.cli.main import main
from ooc.durable import block_checksums, write_sealed
from ooc.engine import header_skeleton
from ooc.index.lock import publisher
from ooc.testing.faults import Refuse, injected
from ooc.types import FloatArray
from tests.helpers import embeddings, tree, unsealed
from tests.verify.made import answers, make_rich

D = 24


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rich(tmp_path_factory.mktemp("rich"), copy_vectors="always")


@pytest.fixture
def index(rich: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(rich, tmp_path / "i"))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FloatArray]:
    """An index whose rows stay in their store, with an appended segment and dead rows."""
    place = tmp_path_factory.mktemp("stored")
    x = embeddings(3000, D, seed=5)
    np.save(place / "x.npy", x[:2500])
    np.save(place / "more.npy", x[2500:])
    ooc.build(place / "x.npy", place / "i", factory="HR,IVF32,RaBitQ", metric="cosine", memory="400MiB")
    ooc.append(place / "i", place / "more.npy", memory="400MiB")
    ooc.delete(place / "i", np.arange(0, 3000, 7))
    return place / "i", x


def flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def found(figures: dict[str, Any]) -> set[tuple[str, str, int | None]]:
    return {(one["path"], one["kind"], one["block"]) for one in figures["findings"]}


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_index_is_sound(rich: Path, full: bool) -> None:
    before = tree(rich)
    figures = ooc.verify(rich, full=full)
    assert figures["sound"], figures["findings"]
    assert not figures["unchecked"]
    assert figures["generations"] == [4]
    assert tree(rich) == before
    checked = figures["checked"]
    assert checked["records"] >= 6
    if full:
        assert checked["entries"] == 352
        assert checked["codes"] == 352
        assert checked["bytes"] > 10_000
    json.dumps(figures)


def test_all_generations_and_one(rich: Path) -> None:
    assert ooc.verify(rich, every=True, full=True)["generations"] == [1, 2, 3, 4]
    assert ooc.verify(rich, generation=2)["generations"] == [2]
    with pytest.raises(ooc.ArgumentError, match="no generation 9"):
        ooc.verify(rich, generation=9)
    with pytest.raises(ooc.ArgumentError):
        ooc.verify(rich, generation=2, repair=True)


@pytest.mark.parametrize(
    "options",
    [
        {"factory": "IVF16,SQ8"},
        {"factory": "OPQ8_16,IVF16_HNSW8,PQ8x4"},
        {"factory": "HR,IVF16,EDEN2", "spill": "on"},
        {"factory": "RR,IVF16,RaBitQ2", "copy_dtype": "float16"},
        {"factory": "IVF16,Flat", "copy_dtype": "int8", "metric": "ip"},
    ],
    ids=lambda options: options["factory"],
)
def test_indexes_of_all_kinds_are_sound(tmp_path: Path, options: dict[str, Any]) -> None:
    x = embeddings(2000, D, seed=6)
    x[17, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    ooc.build(tmp_path / "x.npy", tmp_path / "i", on_bad="skip", memory="400MiB", **options)
    ooc.append(tmp_path / "i", embeddings(300, D, seed=7), memory="400MiB")
    ooc.delete(tmp_path / "i", np.arange(100))
    for _ in range(2):
        figures = ooc.verify(tmp_path / "i", full=True)
        assert figures["sound"], figures["findings"]
        assert figures["checked"]["codes"] > 1500
        ooc.compact(tmp_path / "i")
    ooc.gc(tmp_path / "i")
    assert ooc.verify(tmp_path / "i", full=True)["sound"]


def test_keys_are_checked(tmp_path: Path) -> None:
    x = embeddings(500, 8, seed=8)
    np.save(tmp_path / "x.npy", x)
    names = [f"row {i}" for i in range(500)]
    ooc.build(tmp_path / "x.npy", tmp_path / "i", factory="IVF4,SQ8", keys=names, memory="400MiB")
    assert ooc.verify(tmp_path / "i", full=True)["sound"]
    flip(tmp_path / "i/segments/s1/key_hashes.npy", 700)
    figures = ooc.verify(tmp_path / "i", full=True)
    assert ("segments/s1/key_hashes.npy", "checksum", 0) in found(figures)
    figures = ooc.verify(tmp_path / "i", full=True, repair=True)
    assert figures["sound"], figures["findings"]
    with ooc.open_index(tmp_path / "i") as index:
        assert index.search(x[[123]], 1, nprobe=4, return_keys=True)[-1] == "row 123"


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("segments/s1/lists.ivfdata", 5),
        ("segments/s2/lists.ivfdata", 300),
        ("segments/s1/vectors.npy", 4096 + 77),
        ("segments/s3/ids.npy", 140),
        ("template/centroids.npy", 4096 + 9),
    ],
)
def test_damage_of_numbers_is_located(index: Path, name: str, at: int) -> None:
    flip(index / name, at)
    if not name.startswith("template"):
        assert ooc.verify(index)["sound"]  # only reading all of it tells
    figures = ooc.verify(index, full=True)
    assert (name, "checksum", 0) in found(figures)
    assert {path for path, _, _ in found(figures)} == {name}


def test_blocks_of_rows_are_told_apart(tmp_path: Path) -> None:
    ooc.build(embeddings(3000, D, seed=9), tmp_path / "i", factory="IVF8,SQ8", memory="400MiB")
    rows = tmp_path / "i/segments/s1/vectors.npy"
    flip(rows, 4096 + 4 * D * 2500)
    flip(rows, 4096 + 4 * D * 5)
    figures = ooc.verify(tmp_path / "i", full=True)
    assert {block for _, kind, block in found(figures) if kind == "checksum"} == {0, 2}


def test_rows_in_other_lists_are_found_whatever_checksums_say(index: Path) -> None:
    """Two lists change their rows, and checksums are made to fit: only the vectors tell."""
    segment = index / "segments/s1"
    table = header_skeleton(segment / "index.faiss")
    data = bytearray((segment / "lists.ivfdata").read_bytes())
    a, b = np.argsort(table.sizes)[-2:]
    count = int(min(table.sizes[a], table.sizes[b]))
    at = [int(table.offsets[i] + table.sizes[i] * table.code_size) for i in (a, b)]
    first, second = (bytes(data[p : p + 8 * count]) for p in at)
    data[at[0] : at[0] + 8 * count], data[at[1] : at[1] + 8 * count] = second, first
    (segment / "lists.ivfdata").write_bytes(data)
    digest = block_checksums(segment / "lists.ivfdata")[0]
    lines = (segment / "blocks.xxh3").read_text().splitlines()
    lines = [f"{digest}  lists.ivfdata  0" if "lists.ivfdata" in line else line for line in lines]
    (segment / "blocks.xxh3").write_text("\n".join(lines) + "\n")
    record = json.loads((segment / "segment.json").read_text())
    record.pop("checksum")
    record["heads"]["blocks.xxh3"] = block_checksums(segment / "blocks.xxh3")[0]
    write_sealed(segment / "segment.json", record)
    kinds = {kind for _, kind, _ in found(ooc.verify(index, full=True))}
    assert kinds & {"codes", "ids"}
    assert "checksum" not in kinds


def test_ids_that_lie_are_found(index: Path) -> None:
    lists = index / "segments/s1/lists.ivfdata"
    data = bytearray(lists.read_bytes())
    data[-8:] = np.int64(10**12).tobytes()
    lists.write_bytes(data)
    figures = ooc.verify(index, full=True)
    assert {"ids", "checksum"} <= {kind for _, kind, _ in found(figures)}
    assert any("not from 0 to" in one["what"] for one in figures["findings"])


def test_a_store_that_changed_is_found_and_one_that_is_gone_is_not_checked(
    stored: tuple[Path, FloatArray], tmp_path: Path
) -> None:
    index, x = stored
    copy = Path(shutil.copytree(index, tmp_path / "i"))
    np.save(tmp_path / "other.npy", x[:2500][::-1])
    figures = ooc.verify(copy, full=True, store=tmp_path / "other.npy")
    assert [one["kind"] for one in figures["findings"]] == ["store"]
    record = json.loads((copy / "generations/3.json").read_text())
    record.pop("checksum")
    for part in record["parts"]:
        part["origin"]["uri"] = str(tmp_path / "gone.npy")
    write_sealed(copy / "generations/3.json", record)
    figures = ooc.verify(copy, full=True)
    assert figures["sound"]
    assert "gone.npy" in figures["unchecked"][0]["what"]
    assert figures["checked"]["codes"] == 0


MENDED = (
    "segments/s1/lists.ivfdata",
    "segments/s2/lists.ivfdata",
    "segments/s1/index.faiss",
    "segments/s2/sizes.npy",
    "segments/s1/segment.json",
    "segments/s2/blocks.xxh3",
    "template/template.faiss",
    "template/train.json",
    "ooc.json",
    "CURRENT",
)


@pytest.mark.parametrize(
    ("name", "how"),
    [(n, h) for n in MENDED for h in ("flipped", "cut", "gone") if (n, h) != ("ooc.json", "gone")],
)
def test_what_can_be_made_anew_is(
    stored: tuple[Path, FloatArray], tmp_path: Path, name: str, how: str
) -> None:
    index, x = stored
    copy = Path(shutil.copytree(index, tmp_path / "i"))
    xq = x[3:400:37] + np.float32(0.01)
    with ooc.open_index(copy) as opened:
        expected = opened.search(xq, 10, nprobe=32, rerank=200)
    path = copy / name
    if how == "flipped":
        flip(path, path.stat().st_size // 2)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    assert not ooc.verify(copy, full=True)["sound"]
    figures = ooc.verify(copy, full=True, repair=True)
    assert figures["sound"], figures["findings"]
    assert figures["repaired"]
    with ooc.open_index(copy) as opened:
        again = opened.search(xq, 10, nprobe=32, rerank=200)
    for a, b in zip(again, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    ooc.gc(copy)
    ooc.append(copy, embeddings(50, D, seed=11), memory="400MiB")
    ooc.compact(copy)
    assert ooc.verify(copy, full=True)["sound"]


def test_rows_that_the_index_keeps_come_from_their_store_again(index: Path) -> None:
    expected = answers(index)
    flip(index / "segments/s1/vectors.npy", 5000)
    flip(index / "segments/s1/lists.ivfdata", 50)
    figures = ooc.verify(index, full=True, repair=True)
    assert figures["sound"], figures["findings"]
    for a, b in zip(answers(index), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_rows_that_are_nowhere_else_cannot_be_made_anew(index: Path) -> None:
    flip(index / "segments/s3/vectors.npy", 4200)
    before = tree(index)
    figures = ooc.verify(index, full=True, repair=True)
    assert not figures["sound"]
    assert figures["repaired"] == []
    assert "anew" in figures["findings"][0]["do"]
    assert tree(index) == before


def test_lists_are_not_made_anew_of_damaged_rows(index: Path) -> None:
    flip(index / "segments/s3/vectors.npy", 4200)
    flip(index / "segments/s3/lists.ivfdata", 3)
    flip(index / "segments/s1/lists.ivfdata", 3)
    notes: list[events.Event] = []
    figures = ooc.verify(index, full=True, repair=True, observer=notes.append)
    paths = {path for path, _, _ in found(figures)}
    assert paths == {"segments/s3/vectors.npy", "segments/s3/lists.ivfdata"}
    told = [one.message for one in notes if isinstance(one, events.Note) and one.kind == "not-repaired"]
    assert any("rows that the index keeps are damaged" in message for message in told)


def test_a_sketch_is_made_anew(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", embeddings(5000, 1024, seed=12))
    ooc.build(tmp_path / "x.npy", tmp_path / "i", factory="IVF512,RaBitQ", memory="600MiB")
    sketch = tmp_path / "i/generations/1.sketch.faiss"
    flip(sketch, sketch.stat().st_size - 1000)
    figures = ooc.verify(tmp_path / "i")
    assert ("generations/1.sketch.faiss", "checksum", 0) in found(figures)
    figures = ooc.verify(tmp_path / "i", repair=True)
    assert figures["sound"], figures["findings"]
    flip(sketch, sketch.stat().st_size - 1000)
    assert (tmp_path / "i/generations/2.sketch.faiss").read_bytes() == sketch.read_bytes()


def test_a_sketch_of_few_centroids_is_left_out(tmp_path: Path) -> None:
    """A record may say that there is one where none can be made."""
    ooc.build(embeddings(500, 8), tmp_path / "i", copy_vectors="always")
    path = tmp_path / "i/generations/1.json"
    record = unsealed(path)
    record["order"] |= {"sketch": True, "sketch_checksums": ["0" * 32]}
    write_sealed(path, record)
    assert not ooc.verify(tmp_path / "i")["sound"]
    figures = ooc.verify(tmp_path / "i", repair=True)
    assert figures["sound"], figures["findings"]
    with ooc.open_index(tmp_path / "i") as index:
        assert index.search(embeddings(500, 8)[:3], 1)[1][:, 0].tolist() == [0, 1, 2]


def test_a_check_tells_how_far_it_is_and_can_be_stopped(stored: tuple[Path, FloatArray]) -> None:
    seen: list[events.Event] = []
    ooc.verify(stored[0], full=True, observer=seen.append)
    started = next(one for one in seen if isinstance(one, events.StageStarted))
    assert started.stage == "verify"
    last = [one for one in seen if isinstance(one, events.Progress)][-1]
    assert last.done == started.total
    stop = threading.Event()
    stop.set()
    with pytest.raises(ooc.Stopped):
        ooc.verify(stored[0], full=True, stop=stop)


def test_readers_and_writers_go_on_meanwhile(index: Path) -> None:
    with ooc.open_index(index) as opened:
        flip(index / "segments/s2/lists.ivfdata", 3)
        assert ooc.verify(index, full=True, repair=True)["sound"]
        opened.refresh()
        assert opened.generation == 5
    flip(index / "CURRENT", 0)
    with publisher(index / "lock"), pytest.raises(ooc.ConflictError, match="is being written"):
        ooc.verify(index, repair=True)


def test_what_is_looked_at_is_not_collected(index: Path) -> None:
    kept = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.StageStarted):
            ooc.delete(index, [3])
            kept.append(ooc.gc(index)["kept"])

    figures = ooc.verify(index, full=True, observer=observe)
    assert figures["sound"], figures["findings"]
    assert kept == [[4, 5]]
    assert ooc.gc(index)["kept"] == [5]


def test_what_the_system_refuses_is_no_damage(index: Path) -> None:
    before, told = tree(index), 0
    for at in range(12):
        with injected(Refuse(errno.EMFILE, ("read",), at, times=1)):
            try:
                figures = ooc.verify(index, full=True, repair=True)
            except ooc.ResourceError:
                told += 1
            else:  # it was of no consequence
                assert figures["sound"], figures["findings"]
    assert told > 5
    assert tree(index) == before


def test_the_verb(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(index), "--full", "--quiet"]) == 0
    assert "sound" in capsys.readouterr().out
    flip(index / "segments/s1/lists.ivfdata", 5)
    assert main(["verify", str(index), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["verify", str(index), "--full", "--json", "--quiet"]) == 6
    figures = json.loads(capsys.readouterr().out)
    assert figures["findings"][0]["path"] == "segments/s1/lists.ivfdata"
    assert main(["verify", str(index), "--full", "--quiet"]) == 6
    assert "segments/s1/lists.ivfdata, block 0" in capsys.readouterr().out
    assert main(["verify", str(index), "--full", "--repair", "--quiet"]) == 0
    assert "repaired" in capsys.readouterr().out
    assert main(["verify", str(index.parent / "nowhere")]) == 6


@pytest.mark.parametrize("with_store", [True, False])
def test_an_import_is_sound(tmp_path: Path, with_store: bool) -> None:
    x = embeddings(2000, D, seed=13)
    theirs = faiss.index_factory(D, "IVF16_HNSW8,SQ8")
    theirs.train(x)
    theirs.add(x)
    faiss.write_index(theirs, str(tmp_path / "theirs.faiss"))
    np.save(tmp_path / "x.npy", x)
    store = tmp_path / "x.npy" if with_store else None
    ooc.import_index(tmp_path / "theirs.faiss", tmp_path / "i", store=store)
    ooc.append(tmp_path / "i", embeddings(100, D, seed=14), memory="400MiB")
    figures = ooc.verify(tmp_path / "i", full=True)
    assert figures["sound"], figures["findings"]
    assert figures["checked"]["codes"] == (2100 if with_store else 100)
    assert len(figures["unchecked"]) == (0 if with_store else 1)


def test_a_retrained_index_is_sound_and_damage_of_each_template_is_found(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", embeddings(3000, D, seed=15))
    index = tmp_path / "i"
    ooc.build(tmp_path / "x.npy", index, factory="HR,IVF16,RaBitQ", memory="400MiB")
    ooc.delete(index, np.arange(0, 3000, 5))
    ooc.compact(index, retrain=True, memory="400MiB")
    figures = ooc.verify(index, full=True, every=True)
    assert figures["sound"], figures["findings"]
    assert figures["generations"] == [1, 2, 3]
    flip(index / "template/centroids.npy", 5000)
    assert ooc.verify(index, full=True)["sound"]  # the live generation has its own
    assert {path for path, _, _ in found(ooc.verify(index, every=True))} == {"template/centroids.npy"}
    flip(index / "template3/template.faiss", 40)
    figures = ooc.verify(index, full=True, repair=True)
    assert figures["sound"], figures["findings"]
    assert figures["repaired"]
    flip(index / "segments/s3/lists.ivfdata", 40)
    assert ooc.verify(index, full=True, repair=True)["sound"]
    assert len(ooc.open_index(index).search(np.zeros(D), k=3)[1][0]) == 3


def test_lists_made_anew_are_the_same_bytes(stored: tuple[Path, FloatArray], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(stored[0], tmp_path / "i"))
    names = ("segments/s1/lists.ivfdata", "segments/s1/index.faiss", "segments/s2/lists.ivfdata")
    before = [(copy / name).read_bytes() for name in names]
    for name in names[::2]:
        flip(copy / name, 300)
    assert ooc.verify(copy, full=True, repair=True)["sound"]
    made = [copy / name.replace("s1/", "s4a/").replace("s2/", "s4b/") for name in names]
    assert [path.read_bytes() for path in made] == before


def test_an_index_without_the_newer_checksums_is_sound_and_says_so(index: Path) -> None:
    """As an earlier version wrote it."""
    for path in index.rglob("*.json"):
        record = unsealed(path)
        record.pop("heads", None)
        path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    (index / "CURRENT").write_text("4\n")
    figures = ooc.verify(index, full=True)
    assert figures["sound"], figures["findings"]
    assert len(figures["unchecked"]) == 9
    assert len(answers(index)) > 8
