"""The training sample: rows drawn uniformly over the whole store, written to a file of their own.

Never the first rows: collections come sorted by source, by date, by length. The draw depends on the
number of rows and the seed alone. Rows are read in the order of the store, so that each chunk is
read once, and kept on disk, so that a sample larger than the budget can be trained on.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np

from ooc.build.plan import Plan
from ooc.build.rows import prepare
from ooc.build.sizes import BATCH_BYTES
from ooc.durable import DurableFile
from ooc.errors import DataError, Stopped
from ooc.events import Observer, ignore, stage
from ooc.stores.base import Store
from ooc.types import IntArray

__all__ = ["bad_rows_error", "draw", "npy_header", "sample"]


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
    body = text[10:-1].ljust(4096 - 11) + b"\n"
    return text[:8] + len(body).to_bytes(2, "little") + body


def sample(
    store: Store,
    plan: Plan,
    path: Path,
    *,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> None:
    """Write the sample to an ``.npy`` of float32 rows, prepared for the metric.

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
        DurableFile(path, size=4096 + len(rows) * 4 * plan.d) as file,
    ):
        file.write(npy_header((len(rows), plan.d), np.dtype(np.float32)))
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
            file.write(x)
            store.forget(int(some[0]), int(some[-1]) + 1)
            at.tell(begin + len(some))
        at.figures["rows"] = len(rows)


def bad_rows_error(store: Store, row: int, count: int, where: str = "so far") -> DataError:
    """The error for a row that cannot be indexed."""
    return DataError(
        f"row {row} of {store.uri or 'the array'} holds NaN or infinity "
        f"({count} such row{'s' * (count != 1)} {where})",
        kind="bad-rows",
        hint="Mend the rows, or leave them out with --on-bad skip (on_bad='skip').",
    )
