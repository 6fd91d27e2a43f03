"""The training sample: rows drawn uniformly over the whole store, kept in a file of their own.

Never the first rows: collections come sorted by source, by date, by length. The draw depends on the
number of rows and the seed alone. Rows are read in the order of the store, so that each chunk is
read once, and kept on disk, so that a sample larger than the budget can be trained on; as bfloat16, which
is as good to train on and half as much to read, pass after pass. They are put in such an order that the
first eighth, quarter and half of the file are samples of the whole store too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ooc.build.plan import Plan
from ooc.build.rows import prepare
from ooc.build.sizes import BATCH_BYTES, DECODED_BATCH_BYTES
from ooc.build.workers import Pool, in_order, workers
from ooc.durable import RowsFile, partial_name, rename
from ooc.errors import DataError, Stopped
from ooc.events import Observer, Stage, ignore, stage
from ooc.mapping import MappedFile
from ooc.stores.base import Store
from ooc.types import FloatArray, IntArray
from ooc.vectors import narrow, widen

__all__ = ["Sample", "bad_rows_error", "draw", "npy_header", "sample"]


#: The parts of a sample, one after the other: each takes one row of so many, from so many on. The first is
#: an eighth, the first two a quarter, the first three a half.
_PARTS = ((0, 8), (4, 8), (2, 4), (1, 2))
#: So much of a sample is written before it is made durable.
_FLUSH_BYTES = 128 << 20
#: Blocks of a sample are asked for so many at a time, up to three times as many ahead.
_AHEAD = 8
#: Of the header of an ``.npy`` that is written here.
_HEADER_BYTES = 4096


def draw(n: int, m: int, seed: int) -> IntArray:
    """``m`` different row numbers of ``0 .. n - 1``, each set as likely as any other, ascending."""
    rng = np.random.default_rng([seed, n])
    if m >= n:
        return np.arange(n, dtype=np.int64)
    if m > n // 2:
        return np.sort(rng.choice(n, m, replace=False))
    # Far fewer than all: drawing again what was drawn twice takes memory for m, not for n.
    rows = _distinct(rng.integers(0, n, m, dtype=np.int64))
    while len(rows) < m:
        rows = _distinct(np.concatenate((rows, rng.integers(0, n, m - len(rows), dtype=np.int64))))
    return rows


def _distinct(rows: IntArray) -> IntArray:
    """As ``numpy.unique``, many times faster."""
    rows = np.sort(rows)
    first = np.ones(len(rows), np.bool_)
    np.not_equal(rows[1:], rows[:-1], out=first[1:])
    return rows[first]


def npy_header(shape: tuple[int, int], dtype: np.dtype[np.generic]) -> bytes:
    """The header of an ``.npy`` file, padded to 4096 bytes so that rows keep to pages where they can."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    text = buffer.getvalue()
    body = text[10:-1].ljust(_HEADER_BYTES - 11) + b"\n"
    return text[:8] + len(body).to_bytes(2, "little") + body


def sample(
    store: Store,
    plan: Plan,
    path: Path,
    *,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> None:
    """Write the sample, prepared for the metric: an ``.npy`` of the bits of its rows as bfloat16.

    Does nothing where the file is there already: it appears only when it is whole.

    Parameters
    ----------
    store : Store
        The rows of ``plan``.
    plan : Plan
        Says how many and with which seed.
    path : Path
        Where to.
    observer : callable
        Is told events.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.

    Raises
    ------
    DataError
        When a drawn row holds NaN or infinity and the plan says to stop there; or when all do.
    """
    if path.exists():
        return
    rows = draw(plan.n, plan.sample_rows, plan.seed)
    partial_path = partial_name(path)
    with (
        stage(observer, "sample", len(rows), row_bytes=store.row_bytes) as at,
        contextlib.ExitStack() as undo,
        workers(plan.threads) as pool,
    ):
        undo.callback(partial_path.unlink, missing_ok=True)
        file = RowsFile(
            partial_path, npy_header((len(rows), plan.d), np.dtype(np.uint16)), len(rows) * 2 * plan.d
        )
        undo.callback(file.close)
        _write(store, plan, rows, file, pool, at, stop)
        file.flush()
        rename(partial_path, path)
        at.figures["rows"] = len(rows)


def _write(
    store: Store,
    plan: Plan,
    rows: IntArray,
    file: RowsFile,
    pool: Pool,
    at: Stage,
    stop: threading.Event | None,
) -> None:
    """Read, prepare and write the rows ``rows``; what is written is flushed meanwhile."""
    # One at a time where rows are decoded: that is done by several threads as it is.
    ahead = plan.threads if store.mapped else 0
    batches = _batches(store, plan, rows, stop)
    starts = _starts(len(rows))
    spare = np.empty((0, plan.d), np.uint16)
    flushing, done, flushed = pool.submit(file.flush), 0, 0
    for some, bits, bad in in_order(pool, partial(_read, store, plan), batches, ahead):
        if len(bad):
            if plan.on_bad == "stop":
                raise bad_rows_error(store, int(some[bad[0]]), len(bad), "of the sample")
            good = np.setdiff1d(np.arange(len(bits)), bad)
            spare = bits[good] if len(good) else spare
            if not len(spare):
                raise DataError(
                    f"the first {len(some)} rows drawn from {store.describe()} are all NaN or infinity",
                    kind="bad-rows",
                    hint="See that the store holds what you think it holds.",
                )
            # A drawn row that cannot be used gives its place to one that can.
            bits[bad] = spare[np.arange(len(bad)) % len(spare)]
        for start, (first, step) in zip(starts, _PARTS, strict=True):
            file.write((start + done // step) * 2 * plan.d, np.ascontiguousarray(bits[first::step]))
        store.forget(int(some[0]), int(some[-1]) + 1)
        done += len(some)
        if (done - flushed) * 2 * plan.d >= _FLUSH_BYTES:
            flushing.result()
            flushing, flushed = pool.submit(file.flush), done
        at.tell(done)
    flushing.result()


def _starts(m: int) -> list[int]:
    """Where each of the parts of a sample of ``m`` rows begins."""
    counts = [len(range(first, m, step)) for first, step in _PARTS]
    return list(itertools.accumulate(counts[:-1], initial=0))


def _batches(store: Store, plan: Plan, rows: IntArray, stop: threading.Event | None) -> Iterator[IntArray]:
    """Row numbers, as many as are read together; they are asked for here, some batches ahead of their use."""
    whole = _PARTS[0][1]  # each batch gives rows to all parts, at places that follow from where it begins
    step = (BATCH_BYTES if store.mapped else DECODED_BATCH_BYTES) // (4 * plan.d)
    step = max(whole, step // whole * whole)
    for begin in range(0, len(rows), step):
        Stopped.raise_if(stop)
        some = rows[begin : begin + step]
        store.will_take(some)
        yield some


def _read(store: Store, plan: Plan, some: IntArray) -> tuple[IntArray, NDArray[np.uint16], IntArray]:
    """Drawn rows as they are kept, and the places of those that cannot be."""
    prepared = prepare(store.gather(some), plan.metric)
    return some, narrow(prepared.x), prepared.bad


class Sample:
    """The rows of a sample as float32, ``n`` of them of ``d`` dimensions, mapped. Close it."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.n, self.d = plan.sample_rows, plan.d
        self._file = MappedFile(path, random=True)
        self._bits: NDArray[np.uint16] = np.ndarray(
            (self.n, self.d), np.uint16, self._file.bytes.data, _HEADER_BYTES
        )

    def take(self, rows: IntArray) -> FloatArray:
        """The given rows, ascending, ``(m, d)``."""
        self._file.will_need_each(_HEADER_BYTES + rows * (2 * self.d), 2 * self.d)
        return widen(self._bits[rows])

    def iterate(self, rows: int, *, first: int, backwards: bool) -> Iterator[FloatArray]:
        """The ``first`` rows in blocks of ``rows``, forwards or the blocks backwards, read ahead."""
        starts = range(0, first, rows)[:: -1 if backwards else 1]
        size = rows * 2 * self.d
        for i, start in enumerate(starts):
            if i % _AHEAD == 0:
                soon = starts[i : i + 3 * _AHEAD]
                self._file.will_need(_HEADER_BYTES + min(soon) * 2 * self.d, len(soon) * size)
            yield widen(self._bits[start : min(start + rows, first)])

    def close(self) -> None:
        """Give the mapping up."""
        del self._bits
        self._file.close()


def bad_rows_error(store: Store, row: int, count: int, where: str = "so far") -> DataError:
    """The error for a row that cannot be indexed."""
    return DataError(
        f"row {row} of {store.uri or 'the array'} holds NaN or infinity "
        f"({count} such row{'s' * (count != 1)} {where})",
        kind="bad-rows",
        hint="Mend the rows, or leave them out with --on-bad skip (on_bad='skip').",
    )
