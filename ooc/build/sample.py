"""The training sample: rows drawn uniformly over the whole store, kept in a file of their own.

Never the first rows: collections come sorted by source, by date, by length. The draw depends on the
number of rows and the seed alone. Rows are read in the order of the store, so that each chunk is
read once, and kept on disk, so that a sample larger than the budget can be trained on; as bfloat16, which
is as good to train on and half as much to read, pass after pass.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ooc.build.plan import Plan
from ooc.build.rows import prepare
from ooc.build.sizes import BATCH_BYTES
from ooc.durable import DurableFile
from ooc.errors import DataError, Stopped
from ooc.events import Observer, ignore, stage
from ooc.mapping import MappedFile
from ooc.stores.base import Store
from ooc.types import FloatArray, IntArray
from ooc.vectors import narrow, widen

__all__ = ["Sample", "bad_rows_error", "draw", "npy_header", "sample"]


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
    rows = np.unique(rng.integers(0, n, m, dtype=np.int64))
    while len(rows) < m:
        rows = np.union1d(rows, rng.integers(0, n, m - len(rows), dtype=np.int64))
    return rows


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
    step = max(1, BATCH_BYTES // (4 * plan.d))
    spare = np.empty((0, plan.d), np.float32)
    with (
        stage(observer, "sample", len(rows), row_bytes=store.row_bytes) as at,
        DurableFile(path, size=_HEADER_BYTES + len(rows) * 2 * plan.d) as file,
    ):
        file.write(npy_header((len(rows), plan.d), np.dtype(np.uint16)))
        for begin in range(0, len(rows), step):
            Stopped.raise_if(stop)
            some = rows[begin : begin + step]
            prepared = prepare(store.take(some), plan.metric)
            x = prepared.x
            if len(prepared.bad):
                if plan.on_bad == "stop":
                    raise bad_rows_error(
                        store, int(some[prepared.bad[0]]), len(prepared.bad), "of the sample"
                    )
                good = np.setdiff1d(np.arange(len(x)), prepared.bad)
                spare = x[good] if len(good) else spare
                if not len(spare):
                    raise DataError(
                        f"the first {len(some)} rows drawn from {store.describe()} are all NaN or infinity",
                        kind="bad-rows",
                        hint="See that the store holds what you think it holds.",
                    )
                # A drawn row that cannot be used gives its place to one that can.
                x[prepared.bad] = spare[np.arange(len(prepared.bad)) % len(spare)]
            file.write(narrow(x))
            store.forget(int(some[0]), int(some[-1]) + 1)
            at.tell(begin + len(some))
        at.figures["rows"] = len(rows)


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

    def iterate(self, rows: int, *, backwards: bool = False) -> Iterator[FloatArray]:
        """Blocks of ``rows`` rows in their order, or from the last to the first, read ahead."""
        starts = range(0, self.n, rows)[:: -1 if backwards else 1]
        size = rows * 2 * self.d
        for i, start in enumerate(starts):
            if i % _AHEAD == 0:
                soon = starts[i : i + 3 * _AHEAD]
                self._file.will_need(_HEADER_BYTES + min(soon) * 2 * self.d, len(soon) * size)
            yield widen(self._bits[start : start + rows])

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
