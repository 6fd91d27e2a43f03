"""The training sample: rows drawn uniformly over the whole store, kept in a file of their own.

Never the first rows: collections come sorted by source, by date, by length. The draw depends on the
number of rows and the seed alone. Rows are read in the order of the store, so that each chunk is
read once, and kept on disk, so that a sample larger than the budget can be trained on; as bfloat16, which
is as good to train on and half as much to read, pass after pass. They are put in such an order that the
first eighth, quarter and half of the file are samples of the whole store too.

Rows of a mapped store are found where they lie: the first eighth can be read by itself, and the rest
while training goes on with what is there.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ooc.build.draw import draw_sample
from ooc.build.plan import Plan
from ooc.build.rows import prepare
from ooc.build.sizes import BATCH_BYTES, DECODED_BATCH_BYTES, held_out
from ooc.build.workers import Pool, in_order
from ooc.durable import RowsFile, partial_name, remove_file, rename
from ooc.errors import DataError, Stopped
from ooc.events import Observer, ignore, stage
from ooc.mapping import MappedFile, start_thread
from ooc.stores.base import Store
from ooc.types import FloatArray, IntArray
from ooc.vectors import narrow, widen

__all__ = ["Sample", "bad_rows_error", "npy_header", "sampled"]


#: The parts of a sample, one after the other: each takes one row of so many, from so many on. The first is
#: an eighth, the first two a quarter, the first three a half.
_PARTS = ((0, 8), (4, 8), (2, 4), (1, 2))
#: The parts that are read together where not all are: one sweep over the store after the other.
_SWEEPS = ((0,), (1,), (2, 3))
_ALL = ((0, 1, 2, 3),)
#: So much of a sample is written before it is made durable.
_FLUSH_BYTES = 128 << 20
#: Blocks of a sample are asked for so many at a time, up to three times as many ahead.
_AHEAD = 8
#: Of the header of an ``.npy`` that is written here.
_HEADER_BYTES = 4096


def npy_header(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> bytes:
    """The header of an ``.npy`` file, padded to 4096 bytes so that rows keep to pages where they can."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )
    text = buffer.getvalue()
    body = text[10:-1].ljust(_HEADER_BYTES - 11) + b"\n"
    return text[:8] + len(body).to_bytes(2, "little") + body


@contextlib.contextmanager
def sampled(
    store: Store,
    plan: Plan,
    path: Path,
    pool: Pool,
    *,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> Iterator[Sample]:
    """The sample in the file ``path``, which is made where it is not there: it appears when it is whole.

    It is an ``.npy`` of the bits, as bfloat16, of rows prepared for the metric. Where the plan says so its
    first rows are there when the block begins, and the others are read meanwhile.

    Parameters
    ----------
    store : Store
        The rows of ``plan``; not to be used by others before the block has ended.
    plan : Plan
        Says how many and with which seed.
    path : Path
        Where to.
    pool : Pool
        Reads and prepares rows.
    observer : callable
        Is told events.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.

    Raises
    ------
    DataError
        When a drawn row holds NaN or infinity and the plan says to stop there; or when all do. From the
        sample where the row is read later.
    """
    if path.exists():
        with contextlib.closing(Sample(path, plan)) as there:
            yield there
        return
    with contextlib.closing(_Drawing(store, plan, path, pool, stop)) as drawing:
        # The same sweeps whatever the budget: a row that cannot be used is replaced by one of its sweep.
        sweeps = _SWEEPS if store.mapped else _ALL
        first, later = (sweeps[:1], sweeps[1:]) if plan.overlapped else (sweeps, ())
        with stage(observer, "sample", drawing.count(first), row_bytes=store.row_bytes) as at:
            drawing.make(first, at.tell)
            at.figures["rows"] = plan.sample_rows
        with contextlib.closing(Sample(drawing.path, plan, drawing.wait)) as rows:
            drawing.make_meanwhile(later)
            yield rows
            drawing.wait(rows.n)


class _Drawing:
    """A sample in the making: some of its parts at a time. Close it: what is not whole is removed."""

    def __init__(
        self, store: Store, plan: Plan, path: Path, pool: Pool, stop: threading.Event | None
    ) -> None:
        self._store, self._plan, self._path, self._pool, self._stop = store, plan, path, pool, stop
        self._rows = draw_sample(plan.n, plan.sample_rows, plan.seed, held_out(plan.n))
        #: Where each part begins, and the end.
        self._starts = list(itertools.accumulate(map(len, map(self._part, _PARTS)), initial=0))
        self._spare = np.empty((0, plan.d), np.uint16)
        self._ready, self._changed = 0, threading.Condition()
        self._error: BaseException | None = None
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self._own, self._flusher = (
            Pool(1, thread_name_prefix="ooc-read"),
            Pool(1, thread_name_prefix="ooc-flush"),
        )
        m, partial_path = len(self._rows), partial_name(path)
        self._file = RowsFile(partial_path, npy_header((m, plan.d), np.dtype(np.uint16)), m * 2 * plan.d)

    @property
    def path(self) -> Path:
        """Where the file is now: in its place when it is whole."""
        return self._path if self._ready == len(self._rows) else self._file.path

    def count(self, sweeps: Sequence[tuple[int, ...]]) -> int:
        """Rows of the parts in some sweeps."""
        return sum(len(self._part(_PARTS[part])) for sweep in sweeps for part in sweep)

    def make(self, sweeps: Sequence[tuple[int, ...]], tell: Callable[[int], None]) -> None:
        """Read the parts of each sweep; ``tell`` is told how many rows are there. The last parts end it."""
        done = 0
        for parts in sweeps:
            before = done
            for read in self._sweep(parts):
                done = before + read
                tell(done)
            ready = self._starts[parts[-1] + 1]
            if ready == len(self._rows):
                self._file.flush(keep=True)
                rename(self._file.path, self._path)
            with self._changed:
                self._ready = ready
                self._changed.notify_all()

    def make_meanwhile(self, sweeps: Sequence[tuple[int, ...]]) -> None:
        """As ``make``, by threads of its own: ``wait`` raises what it raises."""
        # One reads: it waits for the disk most of the time, which threads that compute must not.
        self._pool = self._own

        def work() -> None:
            try:
                self.make(sweeps, lambda done: None)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()

        thread = threading.Thread(target=work, name="ooc-sample")
        start_thread(thread)
        self._thread = thread  # known to be joined only where the system had memory for it

    def wait(self, rows: int) -> None:
        """Return when the first ``rows`` rows are there."""
        if self._ready < rows:
            with self._changed:
                self._changed.wait_for(lambda: self._ready >= rows or self._error is not None)
            if self._error is not None and self._ready < rows:
                raise self._error

    def close(self) -> None:
        """End the thread, and remove the file if it is not whole."""
        self._left.set()
        if self._thread is not None:
            self._thread.join()
        self._own.shutdown()
        self._flusher.shutdown()
        self._file.close()
        remove_file(self._file.path)

    def _part(self, part: tuple[int, int]) -> range:
        """Which of the drawn rows a part has."""
        first, step = part
        return range(first, len(self._rows), step)

    def _sweep(self, parts: tuple[int, ...]) -> Iterator[int]:
        """Read, prepare and write the rows of some parts, how many so far; these are flushed meanwhile."""
        store, plan = self._store, self._plan
        here = np.sort(np.concatenate([np.array(self._part(_PARTS[part]), np.int64) for part in parts]))
        # One at a time where rows are decoded: that is done by several threads as it is.
        ahead = 0 if not store.mapped else 1 if self._pool is self._own else plan.threads
        flushing, done, flushed = self._flusher.submit(self._file.flush, keep=True), 0, 0
        for some, bits, bad in in_order(self._pool, self._read, self._batches(here), ahead):
            rows = self._rows[some]
            self._replace(rows, bits, bad)
            for part in parts:
                first, step = _PARTS[part]
                mine = some % step == first
                if mine.any():
                    at = self._starts[part] + (int(some[mine][0]) - first) // step
                    self._file.write(at * 2 * plan.d, bits[mine])
            store.forget(int(rows[0]), int(rows[-1]) + 1)
            done += len(some)
            if (done - flushed) * 2 * plan.d >= _FLUSH_BYTES:
                flushing.result()
                flushing, flushed = self._flusher.submit(self._file.flush, keep=True), done
            yield done
        flushing.result()

    def _batches(self, here: IntArray) -> Iterator[IntArray]:
        """Which drawn rows are read together; they are asked for here, some batches ahead of their use."""
        size = BATCH_BYTES if self._store.mapped else DECODED_BATCH_BYTES
        step = max(1, size // (4 * self._plan.d))
        for begin in range(0, len(here), step):
            Stopped.raise_if(self._stop)
            Stopped.raise_if(self._left)
            some = here[begin : begin + step]
            self._store.will_take(self._rows[some])
            yield some

    def _read(self, some: IntArray) -> tuple[IntArray, NDArray[np.uint16], IntArray]:
        """Drawn rows as they are kept, and the places of those that cannot be."""
        prepared = prepare(self._store.gather(self._rows[some]), self._plan.metric)
        return some, narrow(prepared.x), prepared.bad

    def _replace(self, rows: IntArray, bits: NDArray[np.uint16], bad: IntArray) -> None:
        """Give the place of drawn rows that cannot be used to some that can."""
        if not len(bad):
            return
        if self._plan.on_bad == "stop":
            raise bad_rows_error(self._store, int(rows[bad[0]]), len(bad), "of the sample")
        good = np.setdiff1d(np.arange(len(bits)), bad)
        self._spare = bits[good] if len(good) else self._spare
        if not len(self._spare):
            raise DataError(
                f"the first {len(rows)} rows drawn from {self._store.describe()} are all NaN or infinity",
                kind="bad-rows",
                hint="See that the store holds what you think it holds.",
            )
        bits[bad] = self._spare[np.arange(len(bad)) % len(self._spare)]


class Sample:
    """The rows of a sample as float32, ``n`` of them of ``d`` dimensions, mapped. Close it.

    ``wait`` is called with the number of rows, from the first one on, that have to be there.
    """

    def __init__(self, path: Path, plan: Plan, wait: Callable[[int], None] = lambda rows: None) -> None:
        self.n, self.d, self._wait = plan.sample_rows, plan.d, wait
        self._file = MappedFile(path, random=True)
        self._bits: NDArray[np.uint16] = np.ndarray(
            (self.n, self.d), np.uint16, self._file.bytes.data, _HEADER_BYTES
        )

    def take(self, rows: IntArray) -> FloatArray:
        """The given rows, ascending, ``(m, d)``."""
        self._wait(int(rows[-1]) + 1)
        self._file.will_need_each(_HEADER_BYTES + rows * (2 * self.d), 2 * self.d)
        return widen(self._bits[rows])

    def iterate(self, rows: int, *, first: int, backwards: bool) -> Iterator[Callable[[], FloatArray]]:
        """The ``first`` rows in blocks of ``rows``, forwards or the blocks backwards, read ahead.

        Each block is a function that gives it, which any thread may call.
        """
        starts = range(0, first, rows)[:: -1 if backwards else 1]
        size = rows * 2 * self.d
        for i, start in enumerate(starts):
            stop = min(start + rows, first)
            self._wait(stop)
            if i % _AHEAD == 0:
                soon = starts[i : i + 3 * _AHEAD]
                self._file.will_need(_HEADER_BYTES + min(soon) * 2 * self.d, len(soon) * size)
            yield partial(widen, self._bits[start:stop])

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
