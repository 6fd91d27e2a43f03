"""The index directory: what opening refuses, and that nothing on disk can crash the reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc import build
from ooc.durable import CHECK_BYTES, DurableFile, block_checksums
from ooc.index.lists import ListsReader, list_groups, write_sorted
from ooc.types import FloatArray
from tests.helpers import unsealed


@pytest.fixture(scope="module")
def made(npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index") / "i"
    build(npy, path, memory="400MiB", factory="IVF64,SQ8", copy_vectors="always")
    return path


@pytest.fixture
def index(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "i"))


def edit(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    record = unsealed(path)
    change(record)
    path.write_text(json.dumps(record))


def kind_of(path: Path) -> str:
    with pytest.raises(ooc.IndexDirError) as error:
        ooc.open_index(path)
    assert str(path) in str(error.value)
    return error.value.kind


def test_no_directory(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "nowhere") == "index-missing"


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    assert kind_of(tmp_path) == "index-foreign"
    (tmp_path / "ooc.json").write_text('{"format": "other"}')
    assert kind_of(tmp_path) == "index-foreign"


def test_a_newer_format(index: Path) -> None:
    edit(index / "ooc.json", lambda r: r.update(format_version=2))
    assert kind_of(index) == "index-newer"


def test_a_feature_that_this_version_does_not_know(index: Path) -> None:
    edit(index / "ooc.json", lambda r: r.update(features=["time-travel"]))
    assert kind_of(index) == "index-newer"


def test_a_generation_with_a_feature_that_this_version_does_not_know(index: Path) -> None:
    edit(index / "generations/1.json", lambda r: r.update(features=["own-template", "time-travel"]))
    assert kind_of(index) == "index-newer"
    for change in (lambda: ooc.delete(index, [0]), lambda: ooc.compact(index), lambda: ooc.gc(index)):
        with pytest.raises(ooc.IndexDirError, match="features time-travel,"):
            change()


def test_a_build_over_a_newer_index_is_refused(npy: Path, index: Path) -> None:
    edit(index / "ooc.json", lambda r: r.update(format_version=2))
    before = {path: path.read_bytes() for path in index.rglob("*") if path.is_file()}
    with pytest.raises(ooc.IndexDirError):
        build(npy, index, memory="400MiB", factory="IVF64,SQ8", copy_vectors="always")
    assert {path: path.read_bytes() for path in index.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "name",
    ["ooc.json", "CURRENT", "generations/1.json", "segments/s1/segment.json"],
)
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe\x00", b"null", b"99"])
def test_damaged_records_are_said(index: Path, name: str, damage: bytes) -> None:
    (index / name).write_bytes(damage)
    with pytest.raises(ooc.IndexDirError):
        ooc.open_index(index)


@pytest.mark.parametrize("name", ["index.faiss", "lists.ivfdata", "vectors.npy", "segment.json"])
def test_missing_files_are_said(index: Path, name: str) -> None:
    (index / "segments/s1" / name).unlink()
    with pytest.raises(ooc.IndexDirError):
        ooc.open_index(index)


@pytest.mark.parametrize("name", ["index.faiss", "lists.ivfdata", "vectors.npy"])
@pytest.mark.parametrize("by", [-1, 1, -4096])
def test_files_of_another_size_are_said(index: Path, name: str, by: int) -> None:
    path = index / "segments/s1" / name
    data = path.read_bytes()
    path.write_bytes(data[:by] if by < 0 else data + b"x" * by)
    assert kind_of(index) == "index-damaged"


def test_a_header_cut_short_with_a_record_to_match_does_not_crash(index: Path) -> None:
    header = index / "segments/s1/index.faiss"
    whole = header.read_bytes()
    for size in (1, 10, 100, 1000, len(whole) // 2, len(whole) - 1):
        header.write_bytes(whole[:size])
        edit(
            index / "segments/s1/segment.json",
            lambda r, size=size: r["bytes"].update({"index.faiss": size}),  # type: ignore[misc]
        )
        assert kind_of(index) == "index-damaged"


def test_lists_cut_short_with_a_record_to_match_do_not_crash(index: Path) -> None:
    lists = index / "segments/s1/lists.ivfdata"
    lists.write_bytes(lists.read_bytes()[:-100])
    edit(
        index / "segments/s1/segment.json",
        lambda r: r["bytes"].update({"lists.ivfdata": lists.stat().st_size}),  # type: ignore[attr-defined]
    )
    assert kind_of(index) == "index-damaged"


def test_ids_from_a_damaged_file_never_reach_the_store(index: Path, xq: FloatArray) -> None:
    lists = index / "segments/s1/lists.ivfdata"
    data = bytearray(lists.read_bytes())
    with ooc.open_index(index) as opened:
        segments = opened._view().segments
        at, _ = segments._spans(0, np.arange(opened.nlist), "ids")
        count = segments.sizes
    for offset, ids in zip(at.tolist(), count.tolist(), strict=True):
        data[offset : offset + 8 * ids] = np.full(ids, 10**15, np.int64).tobytes()
    lists.write_bytes(data)
    with ooc.open_index(index) as opened:
        for rerank in (0, 100, 5000):
            with pytest.raises(ooc.IndexDirError, match="beyond"):
                opened.search(xq, nprobe=64, rerank=rerank)


@pytest.mark.parametrize("name", ["../../../etc", "/etc", "s1/../s1", ""])
def test_names_in_records_cannot_lead_out_of_the_directory(index: Path, name: str) -> None:
    edit(index / "generations/1.json", lambda r: r.update(segments=[{"name": name, "rows": 5000}]))
    assert kind_of(index) == "index-damaged"
    edit(index / "generations/1.json", lambda r: r.update(segments=[{"name": "s1", "rows": 5000}]))
    edit(index / "segments/s1/segment.json", lambda r: r["bytes"].update({"../x": 1}))  # type: ignore[attr-defined]
    assert kind_of(index) == "index-damaged"


def test_checksums_on_disk_are_those_of_the_files(made: Path, x: FloatArray) -> None:
    import xxhash

    recorded: dict[str, list[str]] = {}
    for line in (made / "segments/s1/blocks.xxh3").read_text().splitlines():
        digest, name, number = line.split()
        assert int(number) == len(recorded.setdefault(name, []))
        recorded[name].append(digest)
    for name in ("index.faiss", "lists.ivfdata"):
        assert recorded[name] == block_checksums(made / "segments/s1" / name)
    rows = [xxhash.xxh3_128_hexdigest(x[i : i + 1024].tobytes()) for i in range(0, len(x), 1024)]
    assert recorded["vectors.npy"] == rows


def test_checksums_go_by_blocks(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 2 * CHECK_BYTES + 5, np.uint8)
    with DurableFile(tmp_path / "f") as file:
        for part in np.array_split(data, 7):
            file.write(part)
        digests = file.checksums()
    assert len(digests) == 3
    assert block_checksums(tmp_path / "f") == digests


def test_groups_of_lists_cover_all_in_order() -> None:
    sizes = np.array([0, 5, 0, 100, 1, 1, 0, 0, 50, 0])
    for buffer in (1, 10, 64, 500, 10**6):
        spans = list(list_groups(sizes, 10, buffer))
        assert [i for first, last in spans for i in range(first, last)] == list(range(10))
        assert all(last - first == 1 or sizes[first:last].sum() * 10 <= buffer for first, last in spans)


def test_a_file_of_lists_is_read_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (1000, 7), np.uint8)
    list_nos, ids = rng.integers(0, 20, 1000), np.arange(1000, dtype=np.int64) * 3
    with DurableFile(tmp_path / "l") as file:
        sizes = write_sorted(file, codes, list_nos, ids, 21, 500)
        checksums = file.checksums()
    reader = ListsReader(tmp_path / "l", sizes, 7, checksums)
    for number in range(21):
        data = reader.read(number, number + 1)
        mine = list_nos == number
        np.testing.assert_array_equal(data[: 7 * mine.sum()], codes[mine].reshape(-1))
        np.testing.assert_array_equal(data[7 * mine.sum() :].view(np.int64), ids[mine])
    reader.finish()
    reader.close()
    wrong = ListsReader(tmp_path / "l", sizes, 7, ["0" * 32])
    wrong.read(0, 21)
    with pytest.raises(ooc.IndexDirError, match="checksum"):
        wrong.finish()
    wrong.close()
