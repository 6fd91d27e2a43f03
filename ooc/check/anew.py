"""What is damaged of a generation made anew: lists, rows, keys and the sketch, each in a segment of its own.

The files that are there stay as they are. Lists are encoded again, by the stages of a build, from the stores
or from rows that the index keeps; rows are copied, where they are sound, or come from their store; what finds
keys follows from the keys, and the sketch from the centroids.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import xxhash

from ooc.build.begun import begin, begun, forget
from ooc.build.copies import Copies
from ooc.build.fill import fill
from ooc.build.merge import merge, write_record
from ooc.build.plan import Options, Plan, check_disk, plan_store
from ooc.build.train import published_template
from ooc.check.codes import moved_stores
from ooc.check.contents import dead_entries
from ooc.check.segments import ROW_BLOCK, Checked, key_kind
from ooc.durable import (
    DurableFile,
    make_directory,
    read_json,
    remove_tree,
    rename,
)
from ooc.engine import Codec, Sketch, header_skeleton, sketched
from ooc.errors import ConflictError, OocError, ResourceError, Stopped, StoreError
from ooc.events import Note, Observer, Stage, stage
from ooc.index.arrays import ROWS_BEGIN
from ooc.index.generation import Entry, Generation, Part
from ooc.index.keys import key_files, stored_keys, write_keys
from ooc.index.layout import Header, SegmentLayout
from ooc.index.order import Order
from ooc.index.segment import read_sizes
from ooc.search.source import open_origin, open_own
from ooc.stores import Store
from ooc.stores.picked import RangeStore
from ooc.stores.spans import Span, SpannedStore
from ooc.types import CopyDtype
from ooc.update.publish import Next, live

if TYPE_CHECKING:
    from ooc.check.verify import Check

__all__ = ["Anew"]

_COPY_BYTES = 1 << 20


class Anew:
    """Damaged segments made anew, and the generation that has them.

    Parameters
    ----------
    check : Check
        What was found.
    header, generation : Header, Generation
        Of the index, and of what was looked at.
    memory, threads
        For encoding rows.
    observer, stop
        As for ``ooc.verify``.
    """

    def __init__(
        self,
        check: Check,
        header: Header,
        generation: Generation,
        memory: int | str,
        threads: int | None,
        observer: Observer,
        stop: threading.Event | None,
    ) -> None:
        self._check, self._layout, self._header = check, check.last.layout, header
        self._generation, self._memory, self._threads = generation, memory, threads
        self._moved = moved_stores(check.store, generation)
        self._tell, self._stop = observer, stop
        self._done: list[str] = []
        #: New names of segments whose lists, and whose rows, were made anew.
        self._lists: dict[str, Entry] = {}
        self._rows: dict[str, str] = {}
        self._keys: dict[str, str] = {}

    def run(self) -> list[str]:
        """Make anew what can be, and publish it; what was done."""
        damaged, layout = self._check.findings.damaged, self._layout
        there = self._check.last.segments
        lists = [one for one in there if one.uses.entry is not None and self._lists_damaged(one)]
        rows = [one for one in there if one.uses.part is not None and self._rows_damaged(one)]
        keys = [one for one in there if one.uses.keyed is not None and self._keys_damaged(one)]
        sketch = self._sketch_damaged()
        if not (lists or rows or keys or sketch) or self._generation.number != layout.live():
            return self._done
        dead = self._generation.dead_file
        if dead is not None and layout.generation(0).parent / dead["file"] in damaged:
            return self._done  # which rows count is not known
        made = Next(live(layout))
        # s5a to s5z, then s5aa, s5bb
        names = (f"s{made.number}{ascii_lowercase[i % 26] * (i // 26 + 1)}" for i in itertools.count())
        for one in rows:
            self._copy(one, next(names))
        for one in keys:
            self._rekey(one, next(names))
        if not {layout.template_file, layout.centroids_file, layout.train_record} & damaged:
            self._encode_all([(one, next(names)) for one in lists])
        if sketch and layout.spread_file not in damaged:
            self._sketch(made)
        if not self._done:
            return []
        made.segments = [self._lists.get(entry.name, entry) for entry in made.segments]
        made.parts = list(self._parts())
        record = made.publish({"operation": "repair", "repaired": self._done})
        return [*self._done, f"generation {record['generation']} has what was made anew"]

    def _lists_damaged(self, one: Checked) -> bool:
        damaged, layout = self._check.findings.damaged, one.layout
        return bool({layout.record, layout.checksums, layout.lists, layout.header, layout.sizes} & damaged)

    def _rows_damaged(self, one: Checked) -> bool:
        damaged, layout = self._check.findings.damaged, one.layout
        return bool({layout.record, layout.checksums, layout.vectors, layout.scales} & damaged)

    def _keys_damaged(self, one: Checked) -> bool:
        kind = key_kind(one.layout, one.record)
        files = {one.layout.record, one.layout.checksums, *key_files(one.layout, kind)}
        return bool(files & self._check.findings.damaged)

    def _sketch_damaged(self) -> bool:
        order = self._generation.record.get("order") or {}
        number = order.get("sketch_of", self._generation.number)
        return bool(order.get("sketch")) and not self._check.findings.is_sound(self._layout.sketch(number))

    def _parts(self) -> list[Part]:
        """The parts, with the rows that were made anew."""
        return [
            dataclasses.replace(
                part,
                own=self._rows.get(str(part.own), part.own),
                keyed=self._keys.get(str(part.keyed), part.keyed),
            )
            for part in self._generation.parts
        ]

    def _copy(self, one: Checked, name: str) -> None:
        """Rows that the index keeps: copied, where they are sound, else from their store."""
        part, layout = one.uses.part, one.layout
        if part is None or layout.ids in self._check.findings.damaged:
            return
        place = self._layout.segment(name)
        remove_tree(place.root)
        make_directory(place.root)
        try:
            checksums = self._recopied(one, part, place)
        except OocError as error:
            remove_tree(place.root)
            if isinstance(error, Stopped | ResourceError):
                raise
            self._not_made(layout.vectors, error)
            return
        if part.first_id is None:
            checksums[place.ids.name] = _copied(layout.ids, place.ids)
        kept = {key: one.record[key] for key in ("plan", "copy_error") if key in one.record}
        write_record(place, checksums, rows=0, entries=0, **kept)
        self._rows[str(part.own)] = name
        self._done.append(f"the {part.rows} rows that {layout.root.name} kept were written anew as {name}")

    def _rekey(self, one: Checked, name: str) -> None:
        """Keys, where they are sound: what finds them follows from them."""
        keyed, layout = one.uses.keyed, one.layout
        if keyed is None:
            return
        kind, place = key_kind(layout, one.record), self._layout.segment(name)
        own = set(key_files(layout, kind)) - {layout.key_hashes, layout.key_rows}
        if own & self._check.findings.damaged:
            return
        remove_tree(place.root)
        try:
            made = write_keys(stored_keys(layout, kind, keyed.rows), place, stop=self._stop)
        except OocError as error:
            remove_tree(place.root)
            if isinstance(error, Stopped | ResourceError):
                raise
            self._not_made(layout.root, error)
            return
        kept = {"keys": {key: made[key] for key in ("kind", "longest")}}
        write_record(place, made["checksums"], rows=0, entries=0, **kept)
        self._keys[str(keyed.keyed)] = name
        self._done.append(f"the {keyed.rows} keys of {layout.root.name} were written anew as {name}")

    def _recopied(self, one: Checked, part: Part, place: SegmentLayout) -> dict[str, list[str]]:
        """The rows of a part in a new place; their checksums by file name."""
        layout, findings = one.layout, self._check.findings
        names = [layout.vectors, *([layout.scales] if layout.scales in one.files else [])]
        with stage(self._tell, "fill", part.rows, row_bytes=4 * self._header.d) as at:
            if all(map(findings.is_sound, names)):
                checksums = {
                    path.name: _copied(path, place.root / path.name, rows=part.rows) for path in names
                }
                at.tell(part.rows)
                return checksums
            store = open_origin(self._layout, part, self._header.d, self._moved)
            with store:
                dtype: CopyDtype = "int8" if layout.scales in one.files else "store"
                if dtype == "store" and "copy_error" in one.record:
                    dtype = "float16"
                return self._from_store(
                    RangeStore(store, part.origin.first, part.origin.first + part.rows), place, dtype, at
                )

    def _from_store(
        self, rows: Store, place: SegmentLayout, dtype: CopyDtype, at: Stage
    ) -> dict[str, list[str]]:
        files = [place.vectors, *([place.scales] if dtype == "int8" else [])]
        copies = Copies(rows.dtype.name, dtype, (rows.n, rows.d), place)
        checksums: dict[str, list[str]] = {path.name: [] for path in files}
        try:
            for block in rows.blocks(ROW_BLOCK):
                Stopped.raise_if(self._stop)
                written = copies.write(block.start, block.rows)
                for path, digest in zip(files, written.checksums, strict=True):
                    checksums[path.name].append(digest)
                at.tell(block.start + len(block.rows))
            copies.flush()
        finally:
            copies.close()
        return checksums

    def _encode_all(self, lists: list[tuple[Checked, str]]) -> None:
        """The lists of segments, under new names; first those at which a killed run had come."""
        there, before = begun(self._layout), len(self._done)
        if there is not None:
            lists = sorted(lists, key=lambda one: self._digest(one[0]) != there.plan.digest)
        for one, name in lists:
            self._encode(one, name)
        # What is told, and recorded, is the same in whichever order they were made.
        self._done[before:] = sorted(self._done[before:])

    def _digest(self, one: Checked) -> str | None:
        """That of the plan of new lists; None where there can be none."""
        with contextlib.suppress(StoreError, ConflictError), contextlib.ExitStack() as opened:
            if one.uses.entry is not None:
                rows = opened.enter_context(contextlib.closing(self._vectors(one.uses.entry)))
                return self._plan(rows).digest
        return None

    def _plan(self, rows: Store) -> Plan:
        options = Options(
            memory=self._memory,
            threads=self._threads,
            metric=self._header.metric,
            copy_vectors="never",
            spill="on" if self._header.lists_per_row > 1 else "off",
            on_bad="skip" if self._generation.record.get("skipped_rows") else "stop",
            template=self._layout.root,
        )
        return dataclasses.replace(plan_store(rows, options), witnesses=0)

    def _encode(self, one: Checked, name: str) -> None:
        """The lists of a segment, from the vectors of its rows."""
        entry, layout = one.uses.entry, self._layout
        if entry is None:
            return
        try:
            vectors = self._vectors(entry)
        except StoreError as error:
            self._not_made(layout.segment(entry.name).lists, error)
            return
        with contextlib.closing(vectors) as rows:
            try:
                plan = self._plan(rows)
            except (StoreError, ConflictError) as error:
                self._not_made(layout.segment(entry.name).lists, error)
                return
            there = begun(layout)
            if there is not None and there.plan.digest != plan.digest:
                raise ConflictError(
                    f"a change of {layout.root} is unfinished",
                    kind="unfinished",
                    hint="Run that again to finish it, or give it up with `ooc gc`; then repair.",
                )
            check_disk(layout.root, needed=plan.peak_disk_bytes)
            there = begin(layout, plan, None, after=self._generation.number)
            template = published_template(layout, plan.metric, rows=plan.n)
            watched: dict[str, Any] = {"observer": self._tell, "stop": self._stop}
            shards = fill(rows, plan, template, there.build, **watched)
            segment = there.build.segment
            merge(shards, plan, template.codec, segment, first_row=entry.first_row, **watched)
        record = read_json(segment.record, what="the segment's record")
        dead = self._dead_in(segment, entry, template.codec)
        place = layout.segment(name)
        remove_tree(place.root)
        rename(segment.root, place.root)
        forget(layout)
        self._lists[entry.name] = dataclasses.replace(entry, name=name, rows=record["rows"], dead=dead)
        self._done.append(f"the lists of {entry.name}, {record['rows']} rows, were written anew as {name}")

    def _not_made(self, path: Path, error: OocError) -> None:
        self._tell(Note(message=f"{path}: {error.message}", kind="not-repaired", level="warning"))

    def _vectors(self, entry: Entry) -> Store:
        """The rows of a segment: from their stores, else as the index keeps them."""
        spans = []
        for part in self._parts():
            begin, end = max(entry.first_row, part.first_row), min(entry.stop_row, part.stop_row)
            if begin < end:
                opens, first = self._opens(part)
                spans.append(Span(open=opens, first=first + begin - part.first_row, rows=end - begin))
        return SpannedStore(spans, self._header.d, mapped=False)

    def _opens(self, part: Part) -> tuple[Callable[[], Store], int]:
        d = self._header.d
        if part.own is not None:
            try:
                # Rows that are kept may be rounded.
                open_origin(self._layout, part, d, self._moved).close()
            except OocError as error:
                place = self._layout.segment(part.own)
                if {place.vectors, place.scales} & self._check.findings.damaged:
                    raise StoreError(
                        f"the rows that the index keeps are damaged, and {error.message}", kind=error.kind
                    ) from error
                return partial(open_own, self._layout, part, d), 0
        return partial(open_origin, self._layout, part, d, self._moved), part.origin.first

    def _dead_in(self, segment: SegmentLayout, entry: Entry, codec: Codec) -> int:
        """How many of the rows in new lists are dead."""
        dead = self._check.last.dead
        if dead is None or not dead.count:
            return 0
        if entry.first_row:
            sizes = read_sizes(segment.sizes, codec.nlist)
        else:
            sizes = header_skeleton(segment.header).sizes
        return dead_entries(segment.lists, sizes, codec.code_size, dead) // self._header.lists_per_row

    def _sketch(self, made: Next) -> None:
        """The sketch of the centroids: the same, of the same centroids."""
        layout = self._layout
        record = dict(self._generation.record)
        order = Order.read(layout, self._generation.number, record, self._header.metric)
        first = self._lists.get(self._generation.segments[0].name, self._generation.segments[0])
        codec = Codec.of_header(layout.segment(first.name).header)
        if not sketched(codec.nlist, codec.d_code):  # a record says so that is not of this index
            said = dataclasses.replace(order, sketch=None).record
            kept = {name: value for name, value in record["order"].items() if not name.startswith("sketch_")}
            made.set(order={**kept, **said})
            self._done.append("a sketch was left out: there are too few centroids for one")
            return
        sketch = layout.sketch(made.number)
        Sketch.make(codec.centroids(), self._header.metric, order.handicap).save(sketch)
        said = dataclasses.replace(order, sketch=sketch).record
        made.set(order={**record["order"], **said, "sketch_of": made.number})
        self._done.append("the sketch of the centroids was made anew")


def _copied(source: Path, target: Path, *, rows: int = 0) -> list[str]:
    """Copy a file; its checksums: of each 64 MiB, or of blocks of its rows."""
    digests: list[str] = []
    with source.open("rb") as reading, DurableFile(target) as file:
        if not rows:
            while piece := reading.read(_COPY_BYTES):
                file.write(piece)
            return file.checksums()
        file.write(reading.read(ROWS_BEGIN))
        wide = (source.stat().st_size - ROWS_BEGIN) // rows * ROW_BLOCK
        while piece := reading.read(wide):
            file.write(piece)
            digests.append(xxhash.xxh3_128_hexdigest(piece))
    return digests
