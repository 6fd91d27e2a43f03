"""Limits that are the system's own: a disk of a few MiB, one that may only be read, a cgroup that kills."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from ooc.events import Event, StageStarted
from tests.cli.process import command, environment
from tests.helpers import embeddings, tree

SETTINGS: dict[str, Any] = {
    "factory": "IVF32,SQ8",
    "shard_rows": 4096,
    "copy_vectors": "always",
    "threads": 2,
}


_PLAN = ("--factory", "IVF64,Flat", "--memory", "1GiB", "--threads", "2", "--shard-rows", "65536")


@contextlib.contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of its own in memory."""
    path.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "ooc-test", path], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system may be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_up(place: Path, stage: str) -> Callable[[Event], None]:
    """An observer that takes all room but a little when a stage begins."""

    def observe(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == stage:
            stat = os.statvfs(place)
            with (place / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(stat.f_bavail * stat.f_frsize - 20_000, 1))

    return observe


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "x.npy"
    np.save(path, embeddings(10_000, 32))
    return path


@pytest.mark.parametrize("where", ["index", "scratch"])
def test_a_disk_that_fills_up_at_any_stage(
    where: str, store: Path, tmp_path: Path, counted: Callable[[str, int], None]
) -> None:
    ooc.build(store, tmp_path / "whole", **SETTINGS)
    with disk(tmp_path / "disk", "8m") as small:
        index = (small if where == "index" else tmp_path) / "i"
        scratch = small if where == "scratch" else None
        refused = 0
        for stage in ("sample", "train", "fill", "merge", "calibrate", "publish"):
            try:
                ooc.build(store, index, scratch=scratch, observer=fill_up(small, stage), **SETTINGS)
            except ooc.ResourceError as error:
                if error.kind != "disk-full":
                    raise
                refused += 1
            (small / "filler").unlink(missing_ok=True)
        assert refused >= (3 if where == "index" else 1)  # shards that are whole need no more room
        counted("disks that filled up", refused)
        ooc.build(store, index, scratch=scratch, **SETTINGS)
        assert tree(index) == tree(tmp_path / "whole")
        assert [path.name for path in small.iterdir()] == (["i"] if where == "index" else [])


@pytest.mark.parametrize("change", ["append", "compact", "delete"])
def test_changes_on_a_disk_that_is_full(change: str, store: Path, tmp_path: Path) -> None:
    x = embeddings(400, 32, seed=1)
    with disk(tmp_path / "disk", "8m") as small:
        index = small / "i"
        ooc.build(store, index, factory="IVF32,SQ8")
        ooc.append(index, x[:50])
        before = tree(index)
        changes: dict[str, Callable[[], Any]] = {
            "append": lambda: ooc.append(index, x),
            "compact": lambda: ooc.compact(index),
            "delete": lambda: ooc.delete(index, np.arange(0, 10_000, 3)),
        }
        stat = os.statvfs(small)
        with (small / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize)
        with pytest.raises((ooc.ResourceError, ooc.PlanError)) as error:
            changes[change]()
        assert "disk" in error.value.kind
        assert {name: digest for name, digest in tree(index).items() if name in before} == before
        with ooc.open_index(index) as opened:
            assert opened.generation == 2
        (small / "filler").unlink()
        assert changes[change]()["generation"] == 3


def test_an_index_on_a_disk_that_may_only_be_read(store: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "8m") as small:
        index = small / "i"
        ooc.build(store, index, factory="IVF32,SQ8")
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with ooc.open_index(index) as opened:
            assert opened.search(np.zeros(32, np.float32), 3)[1].shape == (1, 3)
        assert ooc.generations(index)[0]["live"]
        for change in (
            lambda: ooc.append(index, embeddings(10, 32)),
            lambda: ooc.delete(index, np.arange(3)),
            lambda: ooc.compact(index),
            lambda: ooc.gc(index),
            lambda: ooc.build(store, small / "j", factory="IVF32,SQ8"),
            lambda: ooc.convert(store, small / "x.zarr"),
            lambda: ooc.exact(store, embeddings(3, 32), k=3, out=small / "e.h5"),
        ):
            with pytest.raises(ooc.ResourceError) as error:
                change()
            assert error.value.kind == "not-writable"


#: Commands that the kernel kills, what they make, and of what that is a copy at first.
KILLED = {
    "build": (["build", "x.npy", "made", *_PLAN], "made", ""),
    "append": (["append", "made", "more.npy"], "made", "built"),
    "compact": (["compact", "made"], "made", "appended"),
    "convert": (["convert", "x.npy", "made.zarr", "--compression", "zstd"], "made.zarr", ""),
    "exact": (["exact", "x.npy", "q.npy", "--out", "made.h5", "--memory", "512MiB"], "made.h5", ""),
    "search": (["search", "built", "more.npy", "--out", "made.npz"], "made.npz", ""),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores and indexes for commands that the kernel kills."""
    place = tmp_path_factory.mktemp("killed")
    x = embeddings(250_000, 64)
    np.save(place / "x.npy", x[:200_000])
    np.save(place / "more.npy", x[200_000:])
    np.save(place / "q.npy", x[200_000:202_000])
    for name in ("built", "appended"):
        ooc.build(place / "x.npy", place / name, factory="IVF64,Flat", memory="1GiB", threads=2)
    ooc.append(place / "appended", place / "more.npy")
    return place


@contextlib.contextmanager
def cgroup() -> Iterator[Any]:
    """A memory cgroup of its own, below that of this process."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    try:
        measure = importlib.import_module("bench_measure")
    finally:
        sys.path.pop(0)
    group = measure.Cgroup.make(f"ooc-faults.{os.getpid()}.{time.monotonic_ns()}")
    if group is None:
        pytest.skip("no cgroup may be made here")
    try:
        yield group
    finally:
        group.remove()


@pytest.mark.trust
@pytest.mark.cgroup
@pytest.mark.parametrize("name", KILLED)
def test_what_the_kernel_kills_for_its_memory_goes_on(
    name: str, place: Path, counted: Callable[[str, int], None]
) -> None:
    """Limits rise until one is enough: each run before it is killed somewhere, and the next goes on."""
    args, made, begins = KILLED[name]

    def begin() -> None:
        for path in [place / made, *place.glob(f".{made}*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if begins:
            shutil.copytree(place / begins, place / made)

    def run(*before: str) -> int:
        ended = subprocess.run(
            [*before, *command(*args)], cwd=place, env=environment(), capture_output=True, check=False
        )
        assert ended.returncode in (0, -9), ended
        return ended.returncode

    def found() -> dict[str, str]:
        root = place / made
        return tree(root) if root.is_dir() else {"": hashlib.sha256(root.read_bytes()).hexdigest()}

    begin()
    assert run() == 0
    expected, names = found(), sorted(path.name for path in place.iterdir())
    begin()
    kills = 0
    for limit_mib in range(36, 800, 6):
        with cgroup() as group:
            group.limit(limit_mib << 20)
            # The shell moves itself and becomes the command.
            into = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.path / "cgroup.procs")]
            if run(*into) == 0:
                break
            assert group.out_of_memory()
            kills += 1
    counted("kills by the kernel, out of memory", kills)
    print(f"{name}: killed {kills} times, came through in {limit_mib} MiB")
    assert kills > 1
    assert found() == expected
    assert sorted(path.name for path in place.iterdir()) == names
