"""An index as one file of plain faiss: all segments merged, without the dead, by id.

    lists of all segments ─> live entries, one of each row ─> ids in place of rows ─> FILE

A streaming copy in the order of the lists. Which entries stay is known before the first is written, since the
sizes of the lists come first: where rows are dead, or in two lists each, that takes a pass of its own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ooc.build.sizes import COPY_BYTES
from ooc.build.work import Work
from ooc.durable import DurableFile
from ooc.engine import Codec, begin_single, is_foreign
from ooc.errors import ArgumentError, ConflictError, IndexDirError, ResourceError, Stopped
from ooc.events import Observer, Stage, Started, stage
from ooc.exchange.spilled import FirstEntries
from ooc.index.generation import Generation
from ooc.index.layout import Layout, see_outside
from ooc.index.lists import ID_BYTES, interleave, list_groups
from ooc.index.live_lists import Group, LiveLists
from ooc.search.budget import Budget
from ooc.search.opened import Opened
from ooc.search.queries import check_given
from ooc.stores.targets import check_not_stores
from ooc.types import IntArray, PathOrStr

__all__ = ["export"]

#: Ids of lists that are looked at together, where entries are counted.
_IDS_BYTES = 16 * 1024 * 1024
#: What faiss writes besides centroids and lists is less.
_HEAD_BYTES = 1 << 16


@ResourceError.if_refused("exporting")
def export(
    index: PathOrStr,
    path: PathOrStr,
    *,
    overwrite: bool = False,
    nprobe: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Write an index as one file of plain faiss; see ``ooc.export``."""
    layout = Layout.of(index)
    nprobe = check_given("nprobe", nprobe, 1)
    with contextlib.closing(Opened.newest(layout, layout.read_header(), Budget.of(None))) as view:
        target = _target(path, view.generation, overwrite=overwrite)
        return _Run("export", layout, observer, stop).write(view, target, nprobe)


def _target(path: PathOrStr, generation: Generation, *, overwrite: bool) -> Path:
    target = Path(path).expanduser().absolute()
    if not target.parent.is_dir():
        raise ArgumentError(
            f"the directory {target.parent} is missing", kind="out-name", hint="Make it first."
        )
    see_outside(target)
    origins = (*(part.origin for part in generation.parts), *generation.gone)
    check_not_stores(target, [one.uri for one in origins], what="a store of the index")
    if not os.path.lexists(target):
        return target
    if not overwrite:
        raise ConflictError(
            f"{target} exists",
            kind="out-exists",
            hint="Name another file, or replace it with overwrite=True, --overwrite on the command line.",
        )
    if not is_foreign(target):
        raise ConflictError(
            f"{target} is no file of faiss's: it is not replaced",
            kind="out-exists",
            hint="Name another file.",
        )
    return target


class _Run(Work):
    """One export."""

    def write(self, view: Opened, target: Path, nprobe: int | None) -> dict[str, Any]:
        """Write the file; the figures."""
        segments, generation = view.segments, view.generation
        self._view, self._nprobe = view, min(nprobe or view.choice.defaults()["nprobe"], segments.nlist)
        self.layout = self.layout.of_generation(generation.record)
        self._codec = Codec.load(self.layout.template_file)
        self._dead = view.dead if generation.unfinished_deletions else None
        spilled = segments.lists_per_row > 1
        weights = {"choose": 0.6, "write": 0.4} if spilled else {"write": 1.0}
        settings = {"index": str(self.layout.root), "generation": generation.number, "out": str(target)}
        self._emit(Started(operation="export", stages=weights, settings=settings))
        if not spilled:
            sizes = self._left(None) if self._dead is not None else segments.sizes
            self._write(target, sizes, None)
        else:
            first = self._first_entries(target)
            self._write(target, self._left(first), first)
        return self.finish(
            {
                **settings,
                "metric": self.layout.read_header().metric,
                "rows": view.n,
                "nprobe": self._nprobe,
                "bytes": target.stat().st_size,
                "stages": self._stages,
            }
        )

    def _lists(self) -> LiveLists:
        layouts = [one.layout for one in self._view.segments.each]
        return LiveLists(layouts, self._view.segments.in_segments, self._codec.code_size, self._dead)

    def _groups(self, lists: LiveLists, at: Stage) -> Iterator[Group]:
        entry, done = self._codec.code_size + ID_BYTES, 0
        for group in lists.groups(COPY_BYTES):
            Stopped.raise_if(self._stop)
            yield group
            done += len(group.rows) * entry
            at.tell(done)

    def _bytes(self) -> int:
        return self._view.segments.entries * (self._codec.code_size + ID_BYTES)

    def _first_entries(self, target: Path) -> FirstEntries:
        end = self._view.generation.row_end
        with (
            contextlib.closing(self._lists()) as lists,
            stage(self._emit, "choose", self._bytes(), unit="bytes") as at,
        ):
            return FirstEntries(self._groups(lists, at), self._codec, end, target.parent)

    def _left(self, choice: FirstEntries | None) -> IntArray:
        """Entries of each list that stay, by the ids alone."""
        segments = self._view.segments
        left = np.zeros_like(segments.sizes)
        for first, last in list_groups(segments.sizes, ID_BYTES, _IDS_BYTES):
            Stopped.raise_if(self._stop)
            rows, sizes = segments.ids(np.arange(first, last)), segments.sizes[first:last]
            self._view.stages.see_rows(rows)
            if self._dead is not None:
                alive = ~self._dead.contains(rows)
                rows, sizes = rows[alive], _counted(alive, sizes)
            left[first:last] = sizes if choice is None else _counted(choice.stay(rows, sizes), sizes)
        if choice is not None:
            choice.begin()
        return left

    def _write(self, target: Path, sizes: IntArray, choice: FirstEntries | None) -> None:
        codec, entry = self._codec, self._codec.code_size + ID_BYTES
        most = self.layout.template_file.stat().st_size + 16 * codec.nlist + _HEAD_BYTES
        total = int(sizes.sum()) * entry
        with (
            contextlib.closing(self._lists()) as lists,
            stage(self._emit, "write", self._bytes(), unit="bytes") as at,
            DurableFile(target, size=most + total) as file,
        ):
            cosine = self.layout.read_header().metric == "cosine"
            begin_single(file, codec, sizes, nprobe=self._nprobe, normalise=cosine)
            before = file.written
            for group in self._groups(lists, at):
                file.write(self._by_id(group, choice))
            if file.written - before != total:
                raise IndexDirError(
                    f"{self._view.segments.described} is damaged: its lists changed while they were read",
                    kind="index-damaged",
                    hint="Copy the directory anew, or remove it and build.",
                )
            at.figures["bytes"] = file.written

    def _by_id(self, group: Group, choice: FirstEntries | None) -> NDArray[np.uint8]:
        """The bytes of lists: of the entries that stay, by id, ids ascending."""
        codes, rows, sizes = group.codes, group.rows, group.sizes
        self._view.stages.see_rows(rows)
        if choice is not None:
            there = choice.stay(rows, sizes)
            codes, rows, sizes = codes[there], rows[there], _counted(there, sizes)
        ids, numbering = self._view.numbering.ids(rows), self._view.numbering
        if not numbering.plain:  # a row that replaced one has its id, and a later number
            order = np.lexsort((ids, np.repeat(np.arange(len(sizes)), sizes)))
            codes, ids = codes[order], ids[order]
        return interleave(codes, ids, sizes)


def _counted(there: NDArray[np.bool_], sizes: IntArray) -> IntArray:
    """How many of the entries of each list are there."""
    ends = np.concatenate(([0], np.cumsum(sizes)))
    return np.diff(np.concatenate(([0], np.cumsum(there)))[ends])
