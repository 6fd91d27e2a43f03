"""Writes that the system refuses: an error of ours, nothing unfinished left that nobody can use."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ooc
from ooc.durable import DurableFile
from ooc.search.hits import open_hits
from ooc.stores.convert import convert

X = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)

TARGETS = {
    "x.npy": {},
    "x.fvecs": {},
    "x.fbin": {},
    "x.h5": {},
    "x.zarr": {},
    "x.zarr::/g/emb": {"compression": "zstd"},
    "x.hdf5": {"compression": "gzip"},
    "x.parquet": {},
    "x.pq": {"compression": "zstd", "chunk_rows": 500},
    "x.arrow": {},
    "x.feather": {"compression": "zstd", "chunk_rows": 500},
}


@contextlib.contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """The system refuses to make any file longer: as a full disk does, for those who are not root too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def open_files() -> int:
    gc.collect()  # an error holds on to what its functions had
    names = []
    for fd in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            names.append(str(fd.readlink()))
    # But for the one by which mapped memory is given back, which is opened once in a process.
    return len([name for name in names if "pidfd" not in name])


@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("name", TARGETS)
def test_conversion_that_comes_to_nothing_leaves_nothing(tmp_path: Path, name: str, limit: int) -> None:
    np.save(tmp_path / "src.npy", X)
    # Once before: libraries keep what they open when they are first used, and so count as a file left open.
    convert(tmp_path / "src.npy", tmp_path / name, **TARGETS[name])
    made = tmp_path / name.partition("::")[0]
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    before = open_files()
    with no_file_beyond(limit), pytest.raises(ooc.ResourceError, match=name.partition("::")[0]):
        convert(tmp_path / "src.npy", tmp_path / name, **TARGETS[name])
    assert [p.name for p in tmp_path.iterdir()] == ["src.npy"]
    assert open_files() == before
    convert(tmp_path / "src.npy", tmp_path / name, **TARGETS[name])
    with ooc.open_store(tmp_path / name) as store:
        np.testing.assert_array_equal(store.read(0, store.n), X)


def test_the_last_chunk_counts_whole_when_the_disk_is_measured(tmp_path: Path) -> None:
    from ooc.stores.targets import parse_target

    kinds = {"x.zarr": 3 * 1500 * 128, "x.h5": 4000 * 128, "x.fvecs": 4000 * 132, "x.npy": 4000 * 128}
    for name, expected in kinds.items():
        chunk_rows = 1500 if name == "x.zarr" else None
        target = parse_target(tmp_path / name, n=4000, d=32, source=np.dtype("f4"), chunk_rows=chunk_rows)
        assert target.disk_bytes == expected


@pytest.mark.parametrize("limit", [0, 100_000])
@pytest.mark.parametrize("name", ["r.npz", "r.h5", "r.zarr", "r.parquet"])
def test_results_that_cannot_be_written_leave_nothing(tmp_path: Path, name: str, limit: int) -> None:
    hits = np.zeros((1000, 100), np.float32)

    def write() -> None:
        with open_hits(tmp_path / name, shape=(4000, 100), settings={}) as out:
            for start in range(0, 4000, 1000):
                # Not compressible to nothing.
                out.write(hits, np.random.default_rng(start).integers(0, 2**60, hits.shape))

    write()  # imports what it needs
    shutil.rmtree(tmp_path / name) if name == "r.zarr" else (tmp_path / name).unlink()
    before = open_files()
    with no_file_beyond(limit), pytest.raises(ooc.ResourceError, match=r"r\."):
        write()
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_file_that_cannot_be_published_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = DurableFile(tmp_path / "x")
    file.write(b"abc")
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(ooc.ResourceError) as caught:
        file.commit()
    monkeypatch.undo()
    assert caught.value.kind == "disk-full"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="before"):
        file.commit()
