"""Write a realistic collection straight to disk, with the exact neighbours of its queries.

The rows are made a tile at a time, multiplied with the queries while they are there, and written at
their place in the file: one pass, by several processes, in the same memory for any number of rows.
A file of the same options has the same bytes whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nearest import TILE, Nearest
from numpy.typing import NDArray
from realistic import (
    BLOCK,
    DEFAULT,
    HELD_OUT_BLOCK,
    VERSION,
    Realistic,
    create_table,
    open_table,
)
from threadpoolctl import threadpool_limits

from ooc import durable
from ooc.errors import ArgumentError, ConflictError, ResourceError
from ooc.mapping import drop_cached
from ooc.units import format_bytes

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

#: Rows of ``.npy`` and ``.h5`` start at a page, so that a row of 4 KiB is one page and not two.
_ALIGN = 4_096
#: Written rows are flushed and leave the page cache this often.
_FLUSH_BYTES = 32 * 1024 * 1024

SUFFIXES = (".npy", ".fbin", ".h5", ".hdf5", ".zarr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to make."""

    rows: int
    dim: int
    out: Path
    seed: int = 0
    queries: int = 1_000
    shifted_queries: int = 1_000
    k: int = 100
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("dim", 1), ("seed", 0), ("queries", 0), ("shifted_queries", 0)):
            if getattr(self, name) < least:
                raise ArgumentError(
                    f"{name} must be at least {least}, not {getattr(self, name)}", kind="dataset-options"
                )
        if not 1 <= self.k <= TILE:
            raise ArgumentError(f"k must be from 1 to {TILE}, not {self.k}", kind="dataset-options")
        if self.out.suffix not in SUFFIXES:
            raise ArgumentError(
                f"cannot tell the format of {self.out}",
                kind="dataset-options",
                hint=f"Give it one of the endings {', '.join(SUFFIXES)}.",
            )
        if self.out.suffix == ".fbin" and self.dtype != "float32":
            raise ArgumentError(
                f"a .fbin file holds float32, not {self.dtype}",
                kind="dataset-options",
                hint="Take .npy, .h5 or .zarr.",
            )

    @property
    def queries_path(self) -> Path:
        """Where the queries and their neighbours go: ``name.queries.npz`` beside ``name.npy``."""
        return self.out.with_suffix(".queries.npz")

    @property
    def size_bytes(self) -> int:
        return self.rows * self.dim * np.dtype(self.dtype).itemsize

    def record(self) -> dict[str, Any]:
        """What decides the bytes, as it is kept with the queries."""
        return {
            "rows": self.rows,
            "dim": self.dim,
            "seed": self.seed,
            "dtype": self.dtype,
            "k": self.k,
            "version": VERSION,
            "recipe": json.dumps(dataclasses.asdict(DEFAULT), sort_keys=True),
        }


def make(
    options: Options,
    *,
    jobs: int = 1,
    force: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> bool:
    """Make a collection and its queries.

    Parameters
    ----------
    options : Options
        What to make.
    jobs : int
        Processes to make it with; the bytes do not depend on it.
    force : bool
        Replace another collection of the same name.
    progress : callable
        Called a few times a second with the number of rows that are written.

    Returns
    -------
    bool
        False when the same collection was there already and nothing was done.

    Raises
    ------
    ConflictError
        When there is another file of that name.
    ResourceError
        When the disk is full.
    """
    if is_made(options):
        return False
    out = options.out
    if (out.exists() or options.queries_path.exists()) and not force:
        raise ConflictError(
            f"{out} or {options.queries_path.name} exists and is not what would be made",
            kind="dataset-exists",
            hint="Name another file, or use --force to replace it.",
        )
    durable.make_directory(out.parent)
    _check_space(options)
    with _scratch(out) as scratch:
        partial = scratch / out.name
        with durable.translated(out, "creating"):
            _create(partial, options)
        create_table(scratch / "table", options.dim, seed=options.seed)
        queries = _queries(options, scratch)
        np.save(scratch / "queries.npy", queries)
        nearest = _fill_all(partial, options, queries, jobs, progress)
        # The queries are the record: they go first and come back last.
        options.queries_path.unlink(missing_ok=True)
        if out.is_dir():
            durable.remove_tree(out)
        durable.rename(partial, out)
    durable.write_bytes(options.queries_path, _packed(options, queries, nearest))
    return True


def is_made(options: Options) -> bool:
    """Whether the collection is there, whole and of these options."""
    if not (options.out.exists() and options.queries_path.exists()):
        return False
    try:
        with np.load(options.queries_path) as file:
            same = all(file[name][()] == value for name, value in options.record().items())
            return (
                same
                and len(file["queries"]) == options.queries
                and len(file["shifted_queries"]) == options.shifted_queries
            )
    except (OSError, ValueError, KeyError):
        return False


def _check_space(options: Options) -> None:
    free = shutil.disk_usage(options.out.parent).free
    if free < options.size_bytes:
        raise ResourceError(
            f"{options.out} takes {format_bytes(options.size_bytes)} and the disk has {format_bytes(free)}",
            kind="disk-full",
            hint="Make fewer rows, or name another disk.",
        )


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A directory beside the destination (so that a rename publishes), gone afterwards.

    Its name is fixed: what a killed run left is replaced by the next.
    """
    directory = durable.partial_name(out)
    durable.remove_tree(directory)
    durable.make_directory(directory)
    try:
        yield directory
    finally:
        durable.remove_tree(directory)


def _queries(options: Options, scratch: Path) -> FloatArray:
    """Held-out rows, then shifted queries: (queries + shifted_queries, dim) float32."""
    made = Realistic(options.dim, seed=options.seed, table=open_table(scratch / "table", options.dim))
    x = np.empty((options.queries + options.shifted_queries, options.dim), np.float32)
    for shifted, part in ((False, x[: options.queries]), (True, x[options.queries :])):
        for first in range(0, len(part), BLOCK):
            rows = part[first : first + BLOCK]
            made.block(HELD_OUT_BLOCK + first // BLOCK, shifted=shifted).rows(0, len(rows), out=rows)
    return x


def _packed(options: Options, queries: FloatArray, nearest: Nearest) -> bytes:
    plain, shifted = slice(options.queries), slice(options.queries, None)
    file = io.BytesIO()
    np.savez(
        file,
        queries=queries[plain],
        neighbors=nearest.ids[plain],
        similarities=nearest.similarities[plain],
        shifted_queries=queries[shifted],
        shifted_neighbors=nearest.ids[shifted],
        shifted_similarities=nearest.similarities[shifted],
        **options.record(),
    )
    return file.getvalue()


# What each format needs: a place for every row before the first is written.


def _create(path: Path, options: Options) -> None:
    """Lay out the whole file, its rows still to come."""
    shape, dtype = (options.rows, options.dim), np.dtype(options.dtype)
    if path.suffix == ".zarr":
        import zarr

        zarr.create_array(
            path, shape=shape, chunks=(min(TILE, options.rows), options.dim), dtype=dtype, compressors=None
        )
        return
    if path.suffix in (".h5", ".hdf5"):
        import h5py

        with h5py.File(path, "w", alignment_threshold=1, alignment_interval=_ALIGN) as file:
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.CONTIGUOUS)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            kind, space = h5py.h5t.py_create(dtype), h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, b"vectors", kind, space, dcpl=layout)
        return
    if path.suffix == ".fbin":
        header = np.array(shape, np.uint32).tobytes()
    else:
        header = _npy_header(shape, dtype)
    with path.open("wb") as raw:
        raw.write(header)
        raw.truncate(len(header) + options.size_bytes)


def _npy_header(shape: tuple[int, int], dtype: np.dtype[Any]) -> bytes:
    """A version 1.0 header, padded with spaces as the format allows."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    magic = b"\x93NUMPY\x01\x00"
    length = _ALIGN - len(magic) - 2
    return magic + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


def _offset(path: Path) -> int:
    """Where the rows begin in a file that ``_create`` laid out."""
    if path.suffix == ".fbin":
        return 8
    if path.suffix == ".npy":
        return _ALIGN
    import h5py

    with h5py.File(path, "r") as file:
        return int(file["vectors"].id.get_offset())


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Callable[[int, NDArray[Any]], None]]:
    """A function that writes rows at their place; used by several processes at once.

    Tiles are never shared between processes, and a tile is a chunk of the Zarr store.
    """
    if path.suffix == ".zarr":
        import zarr

        array: Any = zarr.open_array(path, mode="r+")

        def write_chunk(first: int, rows: NDArray[Any]) -> None:
            array[first : first + len(rows)] = rows

        yield write_chunk
        return

    begin = _offset(path)
    fd = os.open(path, os.O_WRONLY)
    unsynced: list[tuple[int, int]] = []

    def write(first: int, rows: NDArray[Any]) -> None:
        offset = begin + first * rows.strides[0]
        rest = rows.data.cast("B")
        at = offset
        while len(rest):
            done = os.pwrite(fd, rest, at)
            rest, at = rest[done:], at + done
        unsynced.append((offset, at - offset))
        if sum(length for _, length in unsynced) >= _FLUSH_BYTES:
            flush()

    def flush() -> None:
        # Written behind: the machine's page cache is left to those who need it.
        os.fsync(fd)
        for offset, length in unsynced:
            drop_cached(fd, offset, length)
        unsynced.clear()

    try:
        yield write
        flush()
    finally:
        os.close(fd)


# The work of one process, and of all.


def _fill(path: Path, options: Options, job: int, jobs: int) -> tuple[IntArray, FloatArray]:
    """Make and write every ``jobs``-th block from ``job`` on; the nearest of these rows."""
    made = Realistic(options.dim, seed=options.seed, table=open_table(path.parent / "table", options.dim))
    # Mapped, as the table is: the processes share one copy.
    nearest = Nearest(np.load(path.parent / "queries.npy", mmap_mode="r"), options.k)
    tile = np.empty((TILE, options.dim), np.float32)
    with threadpool_limits(1), durable.translated(options.out, "writing"), _writer(path) as write:
        for b in range(job, -(-options.rows // BLOCK), jobs):
            block = made.block(b)
            for start in range(0, min(BLOCK, options.rows - b * BLOCK), TILE):
                if _shared.stop.is_set():
                    raise KeyboardInterrupt
                first = b * BLOCK + start
                rows = tile[: min(TILE, options.rows - first)]
                block.rows(start, start + len(rows), out=rows)
                stored = rows.astype(options.dtype, copy=False)
                write(first, stored)
                if stored is not rows:
                    # Neighbours are those of what is in the file: by cosine, its norms are rounded too.
                    rows[:] = stored
                    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
                nearest.add(rows, first)
                with _shared.written.get_lock():
                    _shared.written.value += len(rows)
    nearest.settle()
    return nearest.ids, nearest.similarities


class _Shared:
    """What the processes tell each other; set in each as it starts."""

    written: Any  # multiprocessing.Value
    stop: Any  # multiprocessing.Event


_shared = _Shared()


def _start(written: Any, stop: Any) -> None:
    _shared.written, _shared.stop = written, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop


def _fill_all(
    path: Path, options: Options, queries: FloatArray, jobs: int, progress: Callable[[int], None]
) -> Nearest:
    context = multiprocessing.get_context("spawn")
    written, stop = context.Value("q", 0), context.Event()
    jobs = max(1, min(jobs, -(-options.rows // BLOCK)))
    nearest = Nearest(queries, options.k)
    with ProcessPoolExecutor(jobs, context, _start, (written, stop)) as pool:
        try:
            waiting: set[Future[tuple[IntArray, FloatArray]]] = {
                pool.submit(_fill, path, options, job, jobs) for job in range(jobs)
            }
            while waiting:
                done, waiting = wait(waiting, timeout=0.2)
                progress(written.value)
                for future in done:
                    nearest.merge(future.result())
        except BaseException:
            stop.set()
            raise
    return nearest
