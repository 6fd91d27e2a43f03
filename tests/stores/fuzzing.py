"""Stores from somebody else: made, changed and used one at a time in a child that was forked.

``tried`` tells what it is about to try, and what came of it, so that a child that dies is seen.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

import ooc
from ooc.mapping import private_peak_bytes

__all__ = ["KINDS", "OUTSIDE", "make", "tried"]

#: Beside the stores: nothing in it may be opened.
OUTSIDE = "outside"

#: More private memory than the process had before is too much for stores of some kB.
MORE_BYTES = 256 << 20
#: Longer than this is too long for one of these, in time of the processor.
MOST_SECONDS = 5.0

N, D = 60, 4
X = np.random.default_rng(3).standard_normal((N, D)).astype(np.float32)

_VALUES: list[Any] = [
    None, True, -1, 0, 1, 3, 2**31, 2**53, 2**63, 2**64, 10**15, 10**30, 1.5, -1e300, 1e300,
    "", "x", "1", "..", "../", "/", "../outside", "a\0b", "x" * 5000, "int99", "<f8", ">f2", "bytes",
    [], [0], [1], [-1, 4], [10**15, 4], [1, 10**15], [10**15, 10**15], ["x"], {}, {"x": 1}, [[]], [2**63],
]  # fmt: skip


def _npy(path: Path) -> None:
    np.save(path, X)


def _vecs(path: Path) -> None:
    rows = X if path.suffix == ".fvecs" else np.abs(X * 9).astype(np.uint8)
    head = np.full((N, 1), D, "<i4").view(np.uint8)
    path.write_bytes(np.hstack([head, rows.view(np.uint8).reshape(N, -1)]).tobytes())


def _bin(path: Path) -> None:
    path.write_bytes(np.array([N, D], "<u4").tobytes() + X.tobytes())


def _hdf5(**options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("a/emb", data=X, **options)
            file["other"] = np.arange(9)
            file["soft"] = h5py.SoftLink("/a/emb")

    return write


def _virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((N, D), "f4")
    with h5py.File(path.with_name("part.h5"), "w") as file:
        file["x"] = X
    layout[:] = h5py.VirtualSource("part.h5", "x", (N, D))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("v", layout)


def _zarr(version: int, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array = zarr.create_array(
            path, shape=X.shape, chunks=(20, D), dtype="f4", zarr_format=version, **options
        )
        array[:] = X

    return write


def _zarr_group(path: Path) -> None:
    group = zarr.open_group(path, mode="w")
    group.create_array("a", shape=X.shape, chunks=(20, D), dtype="f4", compressors=None)[:] = X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)


def _table(**options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow as pa
        import pyarrow.feather as feather
        import pyarrow.parquet as pq

        table = pa.table({"v": pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), D)})
        if path.suffix == ".parquet":
            pq.write_table(table, path, row_group_size=20, **options)
        else:
            feather.write_feather(table, path, **options)

    return write


#: How stores are made: the name of each, and what writes it.
KINDS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "npy": ("x.npy", _npy),
    "fvecs": ("x.fvecs", _vecs),
    "bvecs": ("x.bvecs", _vecs),
    "fbin": ("x.fbin", _bin),
    "hdf5": ("x.h5", _hdf5()),
    "hdf5-chunked": ("x.h5", _hdf5(chunks=(20, D))),
    "hdf5-gzip": ("x.h5", _hdf5(chunks=(20, D), compression="gzip", shuffle=True)),
    "hdf5-virtual": ("x.h5", _virtual),
    "zarr3": ("x.zarr", _zarr(3, compressors=None)),
    "zarr3-zstd": ("x.zarr", _zarr(3)),
    "zarr3-shards": ("x.zarr", _zarr(3, compressors=None, shards=(40, D))),
    "zarr3-group": ("x.zarr", _zarr_group),
    "zarr2": ("x.zarr", _zarr(2, compressors=None)),
    "zarr2-zstd": ("x.zarr", _zarr(2)),
    "parquet": ("x.parquet", _table()),
    "parquet-plain": ("x.parquet", _table(compression="none", use_dictionary=False)),
    "arrow": ("x.arrow", _table(compression="uncompressed")),
    "arrow-lz4": ("x.arrow", _table(compression="lz4")),
}


def make(place: Path, kind: str) -> Path:
    """Write a store of a kind in a directory; its path."""
    place.mkdir(parents=True, exist_ok=True)
    name, write = KINDS[kind]
    write(place / name)
    return place / name


def change(path: Path, rng: random.Random) -> str:
    """Change something of a store: bytes of a file, its length, a value of metadata; what was done."""
    names = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
    files = [one for one in sorted(path.rglob("*")) if one.is_file()] if path.is_dir() else [path]
    records = [one for one in files if one.name in names]
    if records and rng.random() < 0.8:
        return _change_record(rng.choice(records), rng)
    return _change_bytes(rng.choice(files), rng)


def _change_record(path: Path, rng: random.Random) -> str:
    record = json.loads(path.read_text())
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(record))
        if not places:
            break
        inside, key = rng.choice(places)
        value = copy.deepcopy(rng.choice(_VALUES))
        if rng.random() < 0.1:
            del inside[key]
        elif isinstance(inside, dict) and rng.random() < 0.1:
            inside[str(value)] = inside.pop(key)  # under another name
        else:
            inside[key] = value
        done.append((key, str(value)[:60]))
    path.write_text(json.dumps(record))
    return f"{path.name}: {done}"


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _change_bytes(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    size = len(data)
    # Headers and footers say where everything is.
    first = rng.choice((0, 0, max(size - 1200, 0)))
    last = min(first + rng.choice((16, 128, 1200)), size)
    done = []
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(first, last)
        how = rng.randrange(4)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.choice((0, 1, 127, 128, 255))
        elif how == 2:
            number = rng.choice((-1, 0, 1, 2**31 - 1, 2**32 - 1, 10**15, 2**62, 2**63 - 1))
            width = rng.choice((2, 4, 8))
            data[at : at + width] = (number % 256**width).to_bytes(width, "little")
        else:
            del data[at : None if rng.random() < 0.3 else at + 1]
        done.append((at, how))
        last = min(last, len(data))
        if last <= first:
            break
    path.write_bytes(data)
    return f"{path.name}: {done}"


def use(path: Path) -> None:
    """Open it, by itself and by name, and read some."""
    with ooc.open_store(path) as store:
        store.read(0, min(store.n, 50))
        store.take(np.array([0, store.n - 1]))
        store.describe()


def tried(place: Path, kind: str, seeds: list[int], tell: Callable[[object], None]) -> None:
    """Try changes, each of a store made anew; tells ``(seed,)`` before, and ``(seed, what, came)`` after."""
    warnings.simplefilter("ignore")
    outside, touched = str(place / OUTSIDE), []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(("open", "os.")) and any(outside in str(one) for one in arguments):
            touched.append(f"{event}{arguments}")

    sys.addaudithook(audit)
    shutil.rmtree(place / "whole", ignore_errors=True)
    whole = make(place / "whole", kind).parent
    use(whole / KINDS[kind][0])
    before = private_peak_bytes()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # What is mapped of sparse files is no memory; what is asked for beyond this is refused, not given.
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), hard))
    for seed in seeds:
        shutil.rmtree(place / "now", ignore_errors=True)
        shutil.copytree(whole, place / "now")
        path = place / "now" / KINDS[kind][0]
        what = change(path, random.Random(f"{kind} {seed}"))
        touched.clear()
        tell((seed, what))
        came, began = "", time.process_time()
        try:
            use(path)
            ended = "read"
        except ooc.OocError as error:
            ended = f"{error.kind}"
        except BaseException as error:
            ended = "other"
            came = f"unforeseen {type(error).__name__}: {error}"
        if touched:
            came += f" outside: {touched[:3]}"
        if private_peak_bytes() > before + MORE_BYTES:
            came += f" {private_peak_bytes() - before} bytes of memory"
        if time.process_time() - began > MOST_SECONDS:
            came += f" {time.process_time() - began:.1f} s"
        tell((seed, what, ended, came))
        if "bytes of memory" in came:
            os._exit(3)  # the peak stays
