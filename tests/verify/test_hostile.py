"""Directories that come from somebody else: lies end in errors of ours, and lead nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc.durable import write_sealed
from ooc.testing.forked import Server
from tests.helpers import unsealed
from tests.verify.hostile import OUTSIDE, lies
from tests.verify.made import answers, make_rich

Counted = Callable[[str, int], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["tests.verify.hostile", "ooc.check.repair", "ooc.search.searcher"]) as server:
        yield server


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index, and beside it what looks like parts of one."""
    place = tmp_path_factory.mktemp("hostile")
    made = make_rich(place, copy_vectors="always", keys=True)
    shutil.copytree(made / "segments/s1", place / OUTSIDE)
    shutil.copytree(made / "generations", place / OUTSIDE / "generations")
    return made


def lied(server: Server, index: Path, count: int, seed: int, counted: Counted) -> None:
    some = lies(index, count, seed)
    before = {path: path.stat().st_mtime_ns for path in (index.parent / OUTSIDE).rglob("*")}
    done = server.call("tests.verify.hostile:tried", index, some)
    results = dict(told for told in done.told if len(told) == 2)
    wrong = [f"{came}: {some[number]}"[:2000] for number, came in results.items() if came]
    if done.status:
        assert done.told, done.trace
        wrong.append(f"{some[len(results)]}: the process ended with {done.status}\n{done.trace}"[:3000])
    counted("records that lie", len(results))
    assert not wrong, "\n".join(wrong[:10]) + f"\n{len(wrong)} of {len(some)}"
    assert {path: path.stat().st_mtime_ns for path in (index.parent / OUTSIDE).rglob("*")} == before


def test_records_that_lie(server: Server, index: Path, counted: Counted) -> None:
    lied(server, index, 40, 0, counted)


@pytest.mark.trust
@pytest.mark.parametrize("seed", range(1, 21))
def test_many_records_that_lie(server: Server, index: Path, seed: int, counted: Counted) -> None:
    lied(server, index, 200, seed, counted)


LINKS = (
    "ooc.json",
    "CURRENT",
    "generations",
    "generations/4.json",
    "segments",
    "segments/s1",
    "segments/s1/vectors.npy",
    "segments/s2/lists.ivfdata",
    "template",
    "template/centroids.npy",
)


@pytest.mark.parametrize("name", LINKS)
def test_links_are_not_followed(index: Path, tmp_path: Path, name: str) -> None:
    copied = Path(shutil.copytree(index, tmp_path / "i"))
    (copied / name).rename(tmp_path / "elsewhere")
    (copied / name).symlink_to(tmp_path / "elsewhere")
    for use in (
        lambda: ooc.open_index(copied),
        lambda: ooc.verify(copied),
        lambda: ooc.append(copied, np.ones((3, 8), np.float32)),
        lambda: ooc.gc(copied),
    ):
        with pytest.raises(ooc.IndexDirError, match="link") as error:
            use()
        assert error.value.kind == "index-link"


def test_an_index_may_be_named_by_a_link(index: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(index)
    assert ooc.verify(tmp_path / "link")["sound"]
    assert len(answers(tmp_path / "link"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
@pytest.mark.parametrize("name", ["ooc.json", "CURRENT", "generations/4.json", "segments/s1/segment.json"])
def test_a_pipe_is_no_record(index: Path, tmp_path: Path, name: str) -> None:
    copied = Path(shutil.copytree(index, tmp_path / "i"))
    (copied / name).unlink()
    os.mkfifo(copied / name)
    with pytest.raises(ooc.IndexDirError):
        ooc.open_index(copied)


def test_shards_elsewhere_must_be_of_a_build(index: Path, tmp_path: Path) -> None:
    """A plan may name a directory for shards, in which they are removed in the end."""
    copied = Path(shutil.copytree(index, tmp_path / "i"))
    mine = tmp_path / "mine"
    (mine / "shards").mkdir(parents=True)
    (mine / "shards/kept").write_text("mine")
    (copied / "build/abc").mkdir(parents=True)
    (copied / "build/abc/plan.json").write_text(f'{{"scratch": "{mine}"}}')
    for use in (
        lambda: ooc.append(copied, np.ones((3, 8), np.float32)),
        lambda: ooc.delete(copied, [3]),
        lambda: ooc.gc(copied),
    ):
        with pytest.raises(ooc.IndexDirError, match="scratch"):
            use()
    assert (mine / "shards/kept").read_text() == "mine"


@pytest.mark.parametrize("seed", ["x", [], None, 1.5])
def test_a_record_of_the_template_that_lies_is_found_and_made_anew(
    index: Path, tmp_path: Path, seed: object
) -> None:
    copied = Path(shutil.copytree(index, tmp_path / "i"))
    record = copied / "template/train.json"
    whole = record.read_bytes()
    write_sealed(record, {**unsealed(record), "seed": seed})
    with pytest.raises(ooc.IndexDirError, match=r"train\.json.*seed") as error:
        ooc.build(np.ones((9, 8), np.float32), tmp_path / "j", template=copied)
    assert error.value.kind == "index-damaged"
    (finding,) = ooc.verify(copied)["findings"]
    assert finding["path"] == "template/train.json"
    assert ooc.verify(copied, repair=True)["sound"]
    assert record.read_bytes() == whole
