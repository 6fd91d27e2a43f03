"""Stores whose headers, metadata and bytes are others: an error of ours or rows, little memory, no crash."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

import ooc
from ooc.testing.forked import Server
from tests.stores.fuzzing import KINDS, OUTSIDE, X

pytest.importorskip("pyarrow")

Counted = Callable[[str, int], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    names = ["hdf5", "zarr", "zarr_inside", "npy", "vecs", "bin", "parquet"]
    with Server(
        ["tests.stores.fuzzing", "pyarrow.feather", *(f"ooc.stores.{name}" for name in names)]
    ) as one:
        yield one


@pytest.fixture
def place() -> Iterator[Path]:
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="ooc-stores-", dir=memory if memory.is_dir() else None))
    (root / OUTSIDE).mkdir()
    yield root
    shutil.rmtree(root)


def try_seeds(server: Server, place: Path, kind: str, seeds: list[int], counted: Counted) -> Counter[str]:
    """Try changes; how many ended how."""
    ended, wrong = Counter[str](), []
    while seeds:
        done = server.call("tests.stores.fuzzing:tried", place, kind, seeds)
        results = [told for told in done.told if len(told) == 4]
        for seed, what, end, came in results:
            ended[end] += 1
            wrong += [f"{kind} {seed} ({what}): {end}: {came}"[:600]] if came else []
        if done.status:
            assert done.told, done.trace
            assert not done.trace, done.trace
            seed, what, *_ = done.told[-1]
            if len(done.told[-1]) == 2:
                wrong.append(f"{kind} {seed} ({what}): the process ended with {done.status}"[:600])
            seeds = seeds[seeds.index(seed) + 1 :]
        else:
            break
    counted("stores changed", sum(ended.values()))
    counted("  of these refused", sum(ended.values()) - ended["read"])
    assert not wrong, "\n".join(wrong[:20]) + f"\n{len(wrong)}"
    return ended


@pytest.mark.parametrize("kind", KINDS)
def test_some_changed_stores(server: Server, place: Path, kind: str, counted: Counted) -> None:
    ended = try_seeds(server, place, kind, list(range(100)), counted)
    assert ended["read"] < 100


@pytest.mark.trust
@pytest.mark.parametrize("kind", KINDS)
def test_many_changed_stores(server: Server, place: Path, kind: str, counted: Counted) -> None:
    try_seeds(server, place, kind, list(range(100, 2100)), counted)


def refused(path: Path | str) -> ooc.StoreError:
    """The error of a store that leads elsewhere."""
    with pytest.raises(ooc.StoreError) as caught, ooc.open_store(path) as store:
        store.read(0, store.n)
    assert caught.value.kind == "store-outside", caught.value
    return caught.value


def read(path: Path | str) -> None:
    with ooc.open_store(path) as store:
        np.testing.assert_array_equal(store.read(0, store.n), X)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A directory of stores, and another one with the same files."""
    places = (tmp_path / "mine", tmp_path / "other")
    for place in places:
        place.mkdir()
        (place / "x.raw").write_bytes(X.tobytes())
        with h5py.File(place / "x.h5", "w") as file:
            file["x"] = X
    return places


def virtual(path: Path, source: str, name: str) -> None:
    layout = h5py.VirtualLayout(X.shape, "f4")
    layout[:] = h5py.VirtualSource(source, name, X.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("v", layout)


def test_raw_data_of_an_hdf5_file_lies_in_its_directory(two: tuple[Path, Path]) -> None:
    for place, use in zip(two, (read, refused), strict=True):
        with h5py.File(two[0] / "e.h5", "w") as file:
            external = [(str(place / "x.raw"), 0, X.nbytes)]
            file.create_dataset("e", shape=X.shape, dtype="f4", external=external)
        use(two[0] / "e.h5")


def test_links_of_an_hdf5_file_lead_into_its_directory(two: tuple[Path, Path]) -> None:
    for place, use in zip(two, (read, refused), strict=True):
        with h5py.File(two[0] / "l.h5", "w") as file:
            file["e"] = h5py.ExternalLink(str(place / "x.h5"), "/x")
            file["s"] = h5py.SoftLink("/e")
            file["g/r"] = h5py.SoftLink("/s")
        for name in ("e", "s", "g/r"):
            use(f"{two[0]}/l.h5::/{name}")
        with h5py.File(two[0] / "again.h5", "w") as file:
            file["a"] = h5py.ExternalLink("l.h5", "/s")
        use(f"{two[0]}/again.h5::/a")


def test_parts_of_a_virtual_dataset_lie_in_its_directory(two: tuple[Path, Path]) -> None:
    for place, use in zip(two, (read, refused), strict=True):
        virtual(two[0] / "v.h5", str(place / "x.h5"), "x")
        use(two[0] / "v.h5")
        virtual(two[0] / "again.h5", "v.h5", "v")
        use(two[0] / "again.h5")
        with h5py.File(two[0] / "l.h5", "w") as file:
            file["e"] = h5py.ExternalLink(str(place / "x.h5"), "/x")
        virtual(two[0] / "linked.h5", "l.h5", "e")
        use(two[0] / "linked.h5")


def test_files_that_refer_to_each_other_come_to_an_end(two: tuple[Path, Path]) -> None:
    """The library itself follows them until the process crashes."""
    virtual(two[0] / "a.h5", "b.h5", "v")
    virtual(two[0] / "b.h5", "a.h5", "v")
    virtual(two[0] / "itself.h5", ".", "v")
    virtual(two[0] / "named.h5", "named.h5", "/v")
    for name in ("a.h5", "b.h5", "itself.h5", "named.h5"):
        with pytest.raises(ooc.StoreError) as caught:
            ooc.open_store(two[0] / name)
        assert caught.value.kind == "store-format"


def test_a_link_to_an_hdf5_file_may_be_what_is_named(two: tuple[Path, Path]) -> None:
    virtual(two[1] / "v.h5", "x.h5", "x")
    (two[0] / "x.h5").unlink()
    (two[0] / "link.h5").symlink_to(two[1] / "v.h5")
    read(two[0] / "link.h5")


@pytest.mark.parametrize("compressors", [None, "auto"], ids=["raw", "compressed"])
@pytest.mark.parametrize("name", ["zarr.json", "c", "c/0", "c/1/0"])
def test_links_of_a_zarr_store_lead_into_it(two: tuple[Path, Path], compressors: object, name: str) -> None:
    for place, use in ((two[0] / "x.zarr", read), (two[1], refused)):
        path = two[0] / "x.zarr"
        shutil.rmtree(path, ignore_errors=True)
        options: dict[str, Any] = {"compressors": compressors}
        zarr.create_array(path, shape=X.shape, chunks=(20, X.shape[1]), dtype="f4", **options)[:] = X
        shutil.move(path / name, place / "moved")
        (path / name).symlink_to(place / "moved")
        use(path)


def test_the_parts_of_a_zarr_group_lie_in_it(two: tuple[Path, Path]) -> None:
    for place in two:
        path = place / "a.zarr"
        zarr.create_array(path, shape=X.shape, chunks=X.shape, dtype="f4", compressors=None)[:] = X
    zarr.open_group(two[0] / "g.zarr", mode="w")
    refused(f"{two[0]}/g.zarr::/../../other/a.zarr")
    (two[0] / "g.zarr/a").symlink_to(two[1] / "a.zarr")
    refused(f"{two[0]}/g.zarr::/a")
    read(f"{two[0]}/a.zarr")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_in_a_store_is_refused_and_not_waited_for(two: tuple[Path, Path]) -> None:
    path = two[0] / "x.zarr"
    zarr.create_array(path, shape=X.shape, chunks=X.shape, dtype="f4", compressors=None)[:] = X
    (path / "c/0/0").unlink()
    os.mkfifo(path / "c/0/0")
    refused(path)
    os.mkfifo(two[0] / "pipe.h5")
    virtual(two[0] / "v.h5", "pipe.h5", "x")
    refused(two[0] / "v.h5")
    with h5py.File(two[0] / "l.h5", "w") as file:
        file["e"] = h5py.ExternalLink("pipe.h5", "/x")
        file["s"] = h5py.SoftLink("/e")
    for name in ("e", "s", "e/within"):
        refused(f"{two[0]}/l.h5::/{name}")


@pytest.mark.parametrize("journal", [b"\1" * 5, b"\377" * 40, b"\0" * 8 + b"\5" + b"\0" * 7 + b"abc"])
def test_a_damaged_journal_is_an_error_of_ours(two: tuple[Path, Path], journal: bytes) -> None:
    path = two[0] / "x.h5"
    path.with_name(".x.h5.journal").write_bytes(b"ooc-hdf5-journal-1\n" + journal)
    with pytest.raises(ooc.StoreError, match="journal") as caught:
        ooc.open_store(path)
    assert caught.value.kind == "store-format"
    with pytest.raises(ooc.StoreError, match="journal"):
        ooc.create_store(path, d=X.shape[1], append=True)
