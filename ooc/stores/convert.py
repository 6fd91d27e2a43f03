"""``convert``: any readable store into any writable format, in bounded memory, resumable.

The destination grows under a temporary name beside its own (``.NAME.partial``), with a record of the
source and the settings (``.NAME.convert.json``). The record is older than the first row and goes
after the rename, so that a run that finds one knows what an earlier run was at and how far it came.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event as ThreadEvent
from typing import Any, Literal

import numpy as np

from ooc import disk, events
from ooc.durable import partial_name, remove_file, replace, settle_replaced, write_json
from ooc.errors import ConflictError, DataError, PlanError, ResourceError, Stopped
from ooc.stores.base import Block, Store
from ooc.stores.opener import open_store
from ooc.stores.targets import Target, check_not_source, parse_target
from ooc.stores.write import StoreWriter, remove_unlocked
from ooc.types import PathOrStr, StoreLike
from ooc.units import MIB, format_bytes, format_count, parse_bytes

__all__ = ["convert", "record_name"]

#: Blocks larger than this make nothing faster, and a stop is waited for longer.
_BLOCK_BYTES = 32 * MIB

#: A raw file's progress is recorded each time this much is on disk.
_RECORD_BYTES = 64 * MIB


def record_name(dst: Path) -> Path:
    """Where the record of an unfinished conversion lies."""
    return dst.with_name(f".{dst.name}.convert.json")


@ResourceError.if_refused("converting")
def convert(
    src: StoreLike,
    dst: PathOrStr,
    *,
    dtype: Any = None,
    chunk_rows: int | None = None,
    compression: str | None = None,
    memory: int | str = "256MiB",
    observer: events.Observer | None = None,
    stop: ThreadEvent | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Copy a store into another format.

    Run again with the same arguments after an interruption, it goes on from the last durable rows.
    Parquet and Arrow files cannot be gone on with: there it starts over.

    Parameters
    ----------
    src : store
        Anything ``ooc.open_store`` takes.
    dst : path
        The suffix says the format: ``.zarr``, ``.h5`` ``.hdf5``, ``.npy``, ``.fvecs`` (float32),
        ``.bvecs`` (uint8), ``.fbin`` ``.f16bin`` ``.u8bin`` ``.i8bin``, ``.parquet``, ``.arrow``
        ``.feather``; with ``::name`` for the dataset or column in it.
    dtype : dtype, optional
        What to store; by default the source's, or the one that the format has, or float32 for
        bfloat16. To a float dtype values are rounded to nearest, but finite ones must stay finite; to
        int8 and uint8 they must be whole and in range.
    chunk_rows : int, optional
        Rows of a chunk, row group or record batch, for the formats that have them. HDF5 lies in one
        piece where neither this nor a compression is given, and can then not be appended to.
    compression : str, optional
        Zarr: zstd, gzip, lz4; HDF5: gzip, lzf; Parquet: zstd, gzip, lz4, snappy; Arrow: zstd, lz4.
        By default none, so that the result can be memory-mapped.
    memory : int or str
        Bound on the memory that the conversion itself takes, beyond what the process has already.
    observer : callable, optional
        Is handed the events of ``ooc.events``; one stage, ``"copy"``.
    stop : threading.Event, optional
        When set, the conversion stops after the block it is at.
    overwrite : bool
        Replace what is at the destination, once the new store is whole, and discard an unfinished
        conversion with other settings.

    Returns
    -------
    dict
        ``rows``, ``d``, ``dtype``, ``source_format``, ``format``, ``path``, ``bytes`` (on disk),
        ``resumed_rows`` (done by earlier runs), ``seconds``.

    Raises
    ------
    StoreError, MissingExtraError
        When the source cannot be read.
    ArgumentError
        When an argument is wrong, or the destination is the source.
    DataError
        When a value does not fit the dtype; the message names its row. Nothing is left behind.
    ConflictError
        When the destination exists, or an unfinished conversion to it had another source or other
        settings, or runs at this moment.
    PlanError
        When the memory does not hold even the smallest block.
    ResourceError
        When the disk is too small (checked before the work starts) or refuses.
    Stopped
        When ``stop`` was set; the same call goes on.
    """
    tell = observer or events.ignore
    begun = time.monotonic()
    budget = parse_bytes(memory)
    store = open_store(src)
    try:
        target = parse_target(
            dst,
            n=store.n,
            d=store.d,
            source=store.dtype,
            dtype=dtype,
            chunk_rows=chunk_rows,
            compression=compression,
        )
        check_not_source(src, store, target.path)
        job = _Job(store=store, target=target, overwrite=overwrite)
        resumed = job.prepare()
        tell(
            events.Started(
                operation="convert",
                stages={"copy": 1.0},
                memory_bytes=budget,
                settings={"src": store.uri, "dst": str(target.path), **target.settings()},
            )
        )
        if job.state in ("new", "begun"):
            resumed = job.copy(resumed, budget, tell, stop)
        job.publish()
        figures: dict[str, Any] = {
            "rows": store.n,
            "d": store.d,
            "dtype": target.dtype.name,
            "source_format": store.format,
            "format": target.format,
            "path": str(target.path),
            "bytes": _bytes_on_disk(target.path),
            "resumed_rows": resumed,
            "seconds": round(time.monotonic() - begun, 3),
        }
    finally:
        if not isinstance(src, Store):
            store.close()
    tell(events.Finished(operation="convert", seconds=figures["seconds"], figures=figures))
    return figures


@dataclasses.dataclass(slots=True, kw_only=True)
class _Job:
    """One conversion: its record, its unfinished destination, and the copying."""

    store: Store
    target: Target
    overwrite: bool
    #: Nothing is there, some rows, all rows under the temporary name, or all under the final one.
    state: Literal["new", "begun", "whole", "published"] = "new"
    _identity: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def _record(self) -> Path:
        return record_name(self.target.path)

    @property
    def _partial(self) -> Path:
        return partial_name(self.target.path)

    def prepare(self) -> int:
        """Find out what is there; returns the rows that an earlier run recorded. Changes nothing."""
        self._identity = {
            "source": {
                "fingerprint": self.store.fingerprint(),
                "n": self.store.n,
                "d": self.store.d,
                "dtype": self.store.dtype.name,
            },
            "settings": self.target.settings(),
        }
        earlier = _read_record(self._record)
        if earlier is not None and not self.overwrite:
            self._check_same(earlier)
        if earlier is None or any(earlier.get(key) != value for key, value in self._identity.items()):
            earlier = {}
        whole = earlier.get("finished") is True
        began = self._partial.exists()
        exists = os.path.lexists(self.target.path)
        if whole and exists and not began:
            # Interrupted between the rename and the removal of the record.
            self.state = "published"
            return self.store.n
        if exists:
            if not self.overwrite:
                raise ConflictError(
                    f"{self.target.path} exists",
                    kind="store-exists",
                    hint="Name another destination, or say overwrite to replace it.",
                )
            self.target.check_replaceable()
        if whole and began:
            self.state = "whole"
            return self.store.n
        self.state = "begun" if earlier and began else "new"
        return int(earlier["rows_done"]) if self.state == "begun" else 0

    def _check_same(self, earlier: dict[str, Any]) -> None:
        for part, what in (
            ("source", "of another source, or the source has changed since"),
            ("settings", "with other settings"),
        ):
            if earlier.get(part) != self._identity[part]:
                begun = json.dumps(earlier.get(part), sort_keys=True)
                raise ConflictError(
                    f"an unfinished conversion to {self.target.path} was begun {what}: {begun}",
                    kind=f"convert-{part}-differs",
                    hint="Run it as it was begun to go on, or say overwrite to start over.",
                )

    def copy(self, recorded: int, budget: int, tell: events.Observer, stop: ThreadEvent | None) -> int:
        """Copy the rows that are not there yet; returns how many were."""
        store, target = self.store, self.target
        rows = _block_rows(store, target, budget)
        self._check_disk(tell)
        if self.state == "new":
            remove_unlocked(self._partial)
        try:
            if self.state == "new":
                self._save(0)
            writer = target.open(self._partial, recorded)
        except ResourceError:
            if self.state == "new":
                self.discard()
            raise
        begun = time.monotonic()
        resumed = writer.n
        try:
            if resumed:
                tell(events.Note(message=f"goes on from row {format_count(resumed)}", kind="resumed"))
            tell(
                events.StageStarted(
                    stage="copy", total=store.n, done=resumed, row_bytes=target.d * target.dtype.itemsize
                )
            )
            self._copy_blocks(writer, rows, tell, stop)
            writer.close()
        except Stopped:
            writer.close() if target.resumable else writer.abandon()
            raise
        except BaseException as error:
            writer.abandon()
            # Bad data stays bad, and the next run can make no use of nothing.
            useless = isinstance(error, ResourceError) and not (target.resumable and writer.durable_n)
            if useless or isinstance(error, DataError):
                self.discard()
            raise
        seconds = time.monotonic() - begun
        copied = store.n - resumed
        tell(
            events.StageFinished(
                stage="copy",
                seconds=seconds,
                figures={"rows": copied, "rows_per_second": round(copied / max(seconds, 1e-9))},
            )
        )
        return resumed

    def _copy_blocks(
        self, writer: StoreWriter, rows: int, tell: events.Observer, stop: ThreadEvent | None
    ) -> None:
        recorded = writer.durable_n
        every = max(1, _RECORD_BYTES // (self.target.d * self.target.dtype.itemsize))
        for block in _blocks_from(self.store, rows, writer.n):
            if stop is not None and stop.is_set():
                writer.flush()
                self._save(writer.durable_n)
                raise Stopped(
                    f"stopped after {format_count(writer.durable_n)} of {format_count(self.store.n)} rows",
                    hint="The same command goes on from there."
                    if self.target.resumable
                    else f"{self.target.format} files cannot be gone on with: the same command starts over.",
                )
            writer.append(block.rows)
            tell(events.Progress(stage="copy", done=writer.n))
            if writer.durable_n - recorded >= every:
                recorded = writer.durable_n
                self._save(recorded)

    def _check_disk(self, tell: events.Observer) -> None:
        there = _bytes_on_disk(self._partial) if self._partial.exists() else 0
        needed = max(self.target.disk_bytes - there, 0)
        free = shutil.disk_usage(self.target.path.parent).free
        if needed <= free:
            return
        message = (
            f"{self.target.path} needs {format_bytes(needed)} and {format_bytes(free)} are free "
            f"on the disk of {self.target.path.parent}"
        )
        if self.target.compression == "none":
            raise ResourceError(
                message, kind="disk-full", hint="Free some space, or name a destination on another disk."
            )
        tell(
            events.Note(
                message=f"{message}, unless it is compressed to less", kind="disk-full", level="warning"
            )
        )

    def _save(self, rows_done: int, *, finished: bool = False) -> None:
        write_json(
            self._record,
            {**self._identity, "rows_done": rows_done, "finished": finished, "uri": self.store.uri},
        )

    def publish(self) -> None:
        """Give the whole store its name."""
        if self.state != "published":
            self._save(self.store.n, finished=True)
            replace(self._partial, self.target.path)
        settle_replaced(self.target.path)
        remove_file(self._record)

    def discard(self) -> None:
        """Remove the unfinished destination and the record."""
        remove_unlocked(self._partial)
        remove_file(self._record)


def _read_record(path: Path) -> dict[str, Any] | None:
    """The record of an earlier run; one that cannot be read is none, as it is older than any row."""
    try:
        record = json.loads(disk.read_bytes(path))
    except (OSError, ValueError) as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        return None
    return record if isinstance(record, dict) and isinstance(record.get("rows_done"), int) else None


def _block_rows(store: Store, target: Target, budget: int) -> int:
    """Rows of a block: of whole source chunks or whole target chunks where the memory allows."""
    row = target.d * target.dtype.itemsize
    # A mapped block is not private. Of a decoded store three blocks are held at most, and a chunk.
    per_row = (0 if store.mapped else 3 * store.row_bytes) + 3 * row
    unit = target.unit_rows * row
    fixed = store.chunk_bytes + 3 * unit
    rows = min((budget - fixed) // per_row, max(1, _BLOCK_BYTES // row))
    if rows < 1:
        raise PlanError(
            f"a memory of {format_bytes(budget)} does not do: chunks of {format_bytes(store.chunk_bytes)} in "
            f"{store.uri or 'the array'} and of {format_bytes(unit)} in {target.path} take "
            f"{format_bytes(fixed + per_row)} at least",
            kind="memory",
            hint=f"Give {-(-(fixed + per_row) // MIB)}MiB, or smaller chunk_rows.",
        )
    chunk = int(np.diff(store.chunk_starts).max()) if not store.mapped else 0
    for whole in (chunk, target.unit_rows):
        if 0 < whole <= rows:
            return int(rows - rows % whole)
    return int(rows)


def _blocks_from(store: Store, rows: int, first: int) -> Iterator[Block]:
    """Blocks of the store from row ``first`` on, cut where a run from the start would cut them."""
    start = first - first % rows
    for block in store.blocks(rows, start=start):
        skipped = max(first - block.start, 0)
        if skipped < len(block.rows):
            yield Block(start=block.start + skipped, rows=block.rows[skipped:])


def _bytes_on_disk(path: Path) -> int:
    """Bytes that a file or all files of a directory take."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_blocks * 512 for file in files)
