"""Every byte of an index changed, and every file cut: found, or harmless; and no process dies of it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ooc
from ooc.testing.forked import Server
from tests.verify.flips import damages
from tests.verify.made import make_rich

Counted = Callable[[str, int], None]

#: Damages that one child tries before the next one is forked.
_AT_ONCE = 200

#: How the indexes are made: of few rows, so that every byte can be gone through.
KINDS: dict[str, dict[str, Any]] = {
    "signs": {"factory": "HR,IVF4,RaBitQ", "n": 60, "copy_vectors": "always"},
    "graph-int8": {"factory": "IVF4_HNSW4,SQ8", "n": 60, "copy_dtype": "int8"},
    "product-spill": {"factory": "OPQ4_8,IVF4,PQ4x4", "n": 256, "spill": "on"},  # OPQ wants as many
    "keys": {"factory": "IVF4,Flat", "n": 60, "keys": True, "copy_vectors": "always"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["tests.verify.flips", "ooc.check.verify", "ooc.search.searcher"]) as server:
        yield server


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory, if there is one."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="ooc-flips-", dir=memory if memory.is_dir() else None))
    yield root
    shutil.rmtree(root)


def damage(
    server: Server, place: Path, kind: str, what: str, counted: Counted, *, first: int = 0, step: int = 1
) -> Counter[str]:
    """Try every ``step``-th damage from ``first`` on of an index; how many came to what."""
    index = make_rich(place, **KINDS[kind])
    ooc.gc(index)  # what an earlier generation says changes no answer
    some = damages(index, what)[first::step]
    came, wrong = Counter[str](), []
    at = 0
    while at < len(some):
        part = some[at : at + _AT_ONCE]
        whole = {path: path.read_bytes() for path, _ in part}
        done = server.call("tests.verify.flips:tried", index, what, part)
        for path, data in whole.items():
            path.write_bytes(data)
        results = dict(told for told in done.told if len(told) == 2)
        for number, result in results.items():
            path, byte = part[number]
            known = result in ("quick", "full", "harmless")
            came[result if known else "wrong"] += 1
            wrong += [] if known else [f"{path.relative_to(index)} at {byte}: {result}"]
        if done.status:
            assert done.told, done.trace
            path, byte = part[len(results)]
            wrong.append(f"{path.relative_to(index)} at {byte}: the process ended with {done.status}")
        at += len(part) if not done.status else len(results) + 1
    counted("files of an index cut" if what == "cut" else "bytes of an index changed", sum(came.values()))
    for result in ("quick", "full"):
        counted(f"  of these found by a {result} check", came[result])
    counted("  of these harmless", came["harmless"])
    assert not wrong, "\n".join(wrong[:20]) + f"\n{len(wrong)} of {len(some)}"
    assert len(some) > 20
    return came


@pytest.mark.parametrize(("kind", "step"), [("signs", 311), ("graph-int8", 401), ("keys", 401)])
def test_some_bytes_changed(server: Server, place: Path, kind: str, step: int, counted: Counted) -> None:
    came = damage(server, place, kind, "flip", counted, first=11, step=step)
    assert came["quick"] > 5
    assert came["full"] > 2


def test_some_files_cut(server: Server, place: Path, counted: Counted) -> None:
    came = damage(server, place, "signs", "cut", counted, step=11)
    assert came["quick"] > 10


@pytest.mark.trust
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize(("kind", "what"), [(kind, "flip") for kind in KINDS] + [("signs", "255")])
def test_every_byte_changed(
    server: Server, place: Path, kind: str, what: str, part: int, counted: Counted
) -> None:
    damage(server, place, kind, what, counted, first=part, step=8)


@pytest.mark.trust
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_cut(server: Server, place: Path, kind: str, counted: Counted) -> None:
    damage(server, place, kind, "cut", counted)
