"""Appending and replacing: new rows become a segment of their own beside those that are there.

The rows are assigned, encoded and merged by the stages of a build, with the template that the index has;
what is there is not read. Their numbers, and as a rule their ids, continue those of the index. Run again
after an interruption, it goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from typing import Any

import numpy as np

from ooc.build.begun import begin, begun, forget
from ooc.build.fill import fill
from ooc.build.keys import keep_keys, kept_keys
from ooc.build.merge import merge
from ooc.build.plan import Options, Plan, check_disk, plan_store
from ooc.build.train import published_template
from ooc.build.work import Work
from ooc.durable import read_json
from ooc.errors import (
    ArgumentError,
    ConflictError,
    MissingExtraError,
    OocError,
    ResourceError,
    Stopped,
    StoreError,
)
from ooc.events import Event, Note, Observer
from ooc.index.generation import Entry, Origin, Part
from ooc.index.layout import Layout
from ooc.index.segment import read_ids
from ooc.stores import Store, open_store
from ooc.stores.keys import KeySource, keys_of_rows, open_keys
from ooc.stores.picked import PickedStore, RangeStore
from ooc.types import AnyArray, CopyDtype, CopyVectors, IntArray, KeysLike, OnBad, PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY, MIB
from ooc.update.changing import changing
from ooc.update.named import by_id, by_key, see_keyed, see_new, see_one_of
from ooc.update.publish import Live, Next, next_number

__all__ = ["append", "upsert"]

#: Bytes of rows that are compared at once.
_COMPARED_BYTES = 8 * MIB


@ResourceError.if_refused("appending")
def append(
    index: PathOrStr,
    store: StoreLike,
    *,
    keys: KeysLike | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    copy_vectors: CopyVectors = "auto",
    copy_dtype: CopyDtype = "store",
    on_bad: OnBad = "stop",
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Add the rows of a store, or those that a store has more than before; see ``ooc.append``."""
    layout = Layout.of(index)
    with open_store(store) as opened:
        run = _Run("append", layout, observer, stop)
        with changing(layout) as before:
            _see_width(before, opened)
            first = _known_rows(before, opened, run.tell, stop)
            see_keyed(before, given=keys is not None)
            if first == opened.n:
                return run.nothing_new(before, opened)
            source = None
            if keys is not None and before.keys is not None:
                source = keys_of_rows(open_keys(keys, before.keys.kind), first, opened.n, opened.n)
            options = Options(
                memory=memory,
                threads=threads,
                metric=before.header.metric,
                copy_vectors=copy_vectors,
                copy_dtype=copy_dtype,
                on_bad=on_bad,
                spill="on" if before.header.lists_per_row > 1 else "off",
                template=layout.root,
                keys=source,
            )
            rows = RangeStore(opened, first, opened.n)
            origin = Origin(
                uri=opened.uri,
                format=opened.format,
                mapped=opened.mapped,
                fingerprint=opened.fingerprint(),
                n=opened.n,
                first=first,
            )
            return run.add(before, rows, options, origin)


@ResourceError.if_refused("replacing")
def upsert(
    index: PathOrStr,
    ids: AnyArray | None,
    vectors: StoreLike,
    *,
    keys: KeysLike | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    copy_dtype: CopyDtype = "store",
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Give ids, or the rows of keys, other vectors; see ``ooc.upsert``."""
    layout = Layout.of(index)
    see_one_of(ids, keys)
    with open_store(vectors) as opened:
        run = _Run("upsert", layout, observer, stop)
        with changing(layout) as before:
            _see_width(before, opened)
            named = by_id(before, np.asarray(ids)) if keys is None else by_key(before, keys)
            if len(named.ids) != opened.n:
                word = "ids" if keys is None else "keys"
                raise ArgumentError(f"there are {len(named.ids)} {word} and {opened.n} vectors", kind="ids")
            order = np.argsort(named.ids, kind="stable")
            wanted = named.ids[order]
            source = None if named.keys is None else KeySource.of(named.keys[order], "the keys")
            options = Options(
                memory=memory,
                threads=threads,
                metric=before.header.metric,
                # Each row is its id's until the next one comes: the index keeps it.
                copy_vectors="always",
                copy_dtype=copy_dtype,
                spill="on" if before.header.lists_per_row > 1 else "off",
                template=layout.root,
                keys=source,
            )
            picked = PickedStore(opened, order)
            origin = Origin(
                uri="", format=opened.format, mapped=False, fingerprint=picked.fingerprint(), n=picked.n
            )
            return run.add(before, picked, options, origin, wanted)


def _see_width(before: Live, store: Store) -> None:
    if store.d != before.header.d:
        raise ArgumentError(
            f"{store.describe()} has rows of {store.d} dimensions; this index has {before.header.d}",
            kind="shape",
            hint="Use the model that made the indexed vectors.",
        )


def _known_rows(before: Live, store: Store, tell: Observer, stop: threading.Event | None) -> int:
    """How many rows of a store are in the index already: 0 where it is another one.

    A store of the same name has grown where its fingerprint says so. Of one elsewhere all rows are compared.

    Raises
    ------
    ConflictError
        Rows of a store of that name were indexed, and it holds other rows now.
    """
    known, changed = 0, None
    fingerprint, same = functools.cache(store.fingerprint), set()
    generation = before.generation
    origins = [(part.origin, part.own is not None) for part in generation.parts]
    origins += [(origin, True) for origin in generation.gone]  # none of its rows is read any more
    for origin, kept in sorted(origins, key=lambda one: one[0].n, reverse=True):
        if not store.uri or not origin.uri or (origin.uri != store.uri and origin.n > store.n):
            continue
        if origin.uri in same:  # it was seen to hold more rows than these
            continue
        if origin.n <= known and origin.uri != store.uri:  # there is nothing more to be passed over
            continue
        if origin.n <= store.n and fingerprint(origin.n) == origin.fingerprint:
            if origin.uri != store.uri and not _are_equal(origin, store, tell, stop):
                continue
            known = max(known, origin.n)
            same.add(origin.uri)
        elif origin.uri == store.uri and not kept:
            changed = origin
    if changed is not None:
        raise ConflictError(
            f"{changed.n} rows of {store.uri} are in the index, and it holds other rows now",
            kind="store-changed",
            hint="Exact distances are read from it: bring it back, and append others under another name.",
        )
    return known


def _are_equal(origin: Origin, store: Store, tell: Observer, stop: threading.Event | None) -> bool:
    """Whether a store begins with the rows of another one whose fingerprint it has, by all of them.

    Where the other one is gone the fingerprint, some rows of it, has to do.
    """
    try:
        with open_store(origin.uri) as other:
            if other.n >= origin.n and other.fingerprint(origin.n) == origin.fingerprint:
                step = max(1, _COMPARED_BYTES // store.row_bytes)
                blocks = (one.blocks(step, stop=origin.n) for one in (store, other))
                for mine, theirs in zip(*blocks, strict=True):
                    Stopped.raise_if(stop)
                    if not np.array_equal(_as_bytes(mine.rows), _as_bytes(theirs.rows)):
                        return False
                return True
            why = "holds other rows now"
    except (StoreError, MissingExtraError, ResourceError) as error:
        if isinstance(error, ResourceError) and error.kind != "store-unreadable":
            raise
        why = f"cannot be read: {error.message}"
    message = (
        f"{origin.uri} {why}; the first {origin.n} rows of {store.uri} are taken to be those that were "
        "indexed from there, since those of them that were looked at are"
    )
    tell(Note(message=message, kind="store-assumed", level="warning"))
    return True


def _as_bytes(rows: AnyArray) -> AnyArray:
    return np.ascontiguousarray(rows).view(np.uint8)


class _Run(Work):
    """One call that adds rows."""

    def tell(self, event: Event) -> None:
        """Tell an event that comes before the work."""
        self._emit(event)

    def nothing_new(self, before: Live, store: Store) -> dict[str, Any]:
        """All rows of the store are there."""
        message = f"all {store.n} rows of {store.uri} are in the index already"
        self._emit(Note(message=message, kind="already-appended"))
        return self._figures(before.generation.record, added=0, first_id=None)

    def add(
        self,
        before: Live,
        rows: Store,
        options: Options,
        origin: Origin,
        ids: IntArray | None = None,
    ) -> dict[str, Any]:
        """Fill, merge and publish; rows with ``ids`` (ascending) take the place of those that have them."""
        layout, operation = self.layout, self._operation
        plan = dataclasses.replace(plan_store(rows, options), witnesses=0)
        if self._is_published(before, plan, ids):
            message = "these rows are in the index: a run that was interrupted had published them"
            self._emit(Note(message=message, kind="already-appended"))
            return self._figures(before.generation.record, added=0, first_id=None)
        if ids is None and options.keys is not None and before.keys is not None:
            see_new(before, before.keys, open_keys(options.keys))
        self._see_unfinished(plan)
        check_disk(layout.root, needed=plan.peak_disk_bytes)
        there = begin(layout, plan, None, after=next_number(layout) - 1)
        try:
            with self.at_work(plan, there.build.status):
                made = Next(before)
                first_row, next_id = made.row_end, made.id_end
                first_id: int | None = next_id
                template = published_template(before.layout, plan.metric, rows=plan.n)
                watched: dict[str, Any] = {"observer": self._emit, "stop": self._stop}
                if options.keys is not None:
                    keep_keys(open_keys(options.keys), plan, there.build, stop=self._stop)
                shards = fill(rows, plan, template, there.build, **watched)
                segment = there.build.segment
                merge(
                    shards,
                    plan,
                    template.codec,
                    segment,
                    first_row=first_row,
                    ids=ids,
                    keys=kept_keys(plan, there.build),
                    **watched,
                )
                record = read_json(segment.record, what="the segment's record")
                name, end = made.segment_name, first_row + plan.n
                made.add_segment(
                    segment, Entry(name=name, rows=record["rows"], first_row=first_row, stop_row=end)
                )
                made.parts.append(
                    Part(
                        first_row=first_row,
                        rows=plan.n,
                        first_id=next_id if ids is None else None,
                        own=name if plan.copy_vectors else None,
                        origin=origin,
                        keyed=name if plan.keys else None,
                        id_stop=0 if ids is None else int(ids[-1]) + 1,
                    )
                )
                replaced: dict[str, Any] = {}
                if ids is not None:
                    old = before.numbering.rows(ids)
                    made.bury(old[old >= 0])
                    fresh = ids[ids >= before.generation.id_end]
                    first_id = int(fresh[0]) if len(fresh) else None
                    replaced = {"replaced": int((old >= 0).sum())}
                made.count(skipped_rows=record["skipped_rows"], zero_rows=record["zero_rows"])
                published = made.publish({**self.report(plan.to_record()), "operation": operation})
                figures = self._figures(published, added=record["rows"], first_id=first_id)
                figures = self.finish({**figures, **replaced})
        except BaseException:
            if not any(there.build.shards.glob("*.json")):
                with contextlib.suppress(OocError, OSError):
                    forget(layout)  # nothing durable was made: leave nothing behind
            raise
        try:
            forget(layout)
        except (OocError, OSError) as error:  # the rows are in: who is told of an error appends them again
            message = f"the rows are in the index; what was needed for it is left to the next change: {error}"
            self._emit(Note(message=message, kind="left-over", level="warning"))
        return figures

    def _is_published(self, before: Live, plan: Plan, ids: IntArray | None) -> bool:
        """Whether this is what an interrupted run had published."""
        finished = before.finished
        if finished is None or finished.plan != plan.digest:
            return False
        segment = self.layout.segment(f"s{finished.number}")
        if ids is None or not segment.ids.exists():
            return ids is None and not segment.ids.exists()
        return bool(np.array_equal(read_ids(segment, plan.n), ids))

    def _see_unfinished(self, plan: Plan) -> None:
        """See that what was begun in the index, if anything, is this."""
        there = begun(self.layout)
        if there is not None and there.plan.digest != plan.digest:
            raise ConflictError(
                f"another change of {self.layout.root} is unfinished: "
                f"{there.plan.n} rows of {there.plan.store or 'an array'}",
                kind="unfinished",
                hint="Run that again to finish it, or give it up with `ooc gc`.",
            )

    def _figures(self, record: Any, *, added: int, first_id: int | None) -> dict[str, Any]:
        return {
            "index": str(self.layout.root),
            "generation": record["generation"],
            "added": added,
            "first_id": first_id,
            "rows": record["rows"],
            "segments": len(record["segments"]),
            "stages": self._stages,
            "peak_private_bytes": self._memory.peak,
        }
