"""Taking over an index of plain faiss: its template, and a copy of its lists in our order.

    FILE ─> template ─> ids seen ─> lists, ids ascending ─> segment ─> generation

The file is mapped and gone through in the order of its lists, so any number of rows fits in bounded memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ooc.build.begun import begun
from ooc.build.merge import write_record
from ooc.build.publish import FIRST_GENERATION, FIRST_SEGMENT
from ooc.build.train import write_template
from ooc.build.work import Work
from ooc.durable import DurableFile, make_directory, remove_tree, rename, write_array, write_bytes
from ooc.engine import Foreign, Sketch, check_platform, read_foreign, sketched
from ooc.errors import ArgumentError, ConflictError, ResourceError, Stopped
from ooc.events import Observer, Stage, Started, stage
from ooc.exchange.ids import Listed, Numbered, span
from ooc.exchange.same import see_vectors
from ooc.index.generation import Generation, Origin, Part
from ooc.index.layout import Header, Layout, SegmentLayout
from ooc.index.lists import ID_BYTES, evenness
from ooc.index.lock import publisher
from ooc.index.order import Order
from ooc.mapping import MappedFile
from ooc.stores import Store, open_store
from ooc.types import METRICS, AnyArray, BytesArray, IntArray, Metric, PathOrStr, StoreLike

__all__ = ["import_index"]

#: Entries whose ids are looked at together, and bytes of codes that are copied at a time.
_ENTRIES, _CODE_BYTES = 1 << 18, 16 * 1024 * 1024
#: Ids are the numbers of the rows where they are below so many times the number of rows.
_SPARSE = 2


@ResourceError.if_refused("importing")
def import_index(
    path: PathOrStr,
    index: PathOrStr,
    *,
    store: StoreLike | None = None,
    metric: Metric | None = None,
    lists: PathOrStr | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Take over what ``faiss.write_index`` wrote; see ``ooc.import_index``."""
    check_platform()
    if metric is not None and metric not in METRICS:
        raise ArgumentError(f"metric must be one of {', '.join(METRICS)}, not {metric!r}", kind="metric")
    layout = Layout.of(index)
    _see_free(layout)
    source = Path(path).expanduser().absolute()
    where = None if lists is None else Path(lists).expanduser().absolute()
    foreign = read_foreign(source, metric=metric, lists=where)
    with contextlib.ExitStack() as stack:
        opened = None if store is None else stack.enter_context(open_store(store))
        run = _Run(layout, foreign, source, opened, observer, stop)
        stack.callback(run.close)
        return run.take()


def _see_free(layout: Layout) -> None:
    """See that nothing is there, or nothing but what such a run left."""
    if layout.is_index() and (layout.live() is not None or begun(layout) is not None):
        raise ConflictError(
            f"{layout.root} holds an index",
            kind="index-exists",
            hint="Name another directory, or remove that one first.",
        )


class _Run(Work):
    """One import."""

    def __init__(
        self,
        layout: Layout,
        foreign: Foreign,
        source: Path,
        store: Store | None,
        observer: Observer | None,
        stop: threading.Event | None,
    ) -> None:
        super().__init__("import", layout, observer, stop)
        self._foreign, self._source, self._store = foreign, source, store
        self._file = MappedFile(foreign.lists)

    def take(self) -> dict[str, Any]:
        """Copy and publish; the figures."""
        foreign, layout = self._foreign, self.layout
        weights = {"ids": 0.2, "merge": 0.75, "publish": 0.05}
        self._emit(Started(operation="import", stages=weights, settings={"file": str(self._source)}))
        fresh = not layout.is_index()
        layout.claim(Header(d=foreign.codec.d, metric=foreign.metric))
        with publisher(layout.lock):
            _see_free(layout)
            made = layout.builds / "import"
            try:
                remove_tree(made)
                make_directory(made)
                record = self._publish(*self._made(made))
            except BaseException:
                if layout.live() is None:  # leave nothing behind
                    remove_tree(layout.root if fresh else made)
                raise
            remove_tree(layout.builds)
        generation = Generation.from_record(FIRST_GENERATION, record)
        return self.finish(
            {
                "index": str(layout.root),
                "generation": FIRST_GENERATION,
                "rows": generation.rows,
                "ids": generation.id_end,
                "factory": foreign.factory,
                "metric": foreign.metric,
                "vectors": self._store is not None,
                "left_out": foreign.left_out,
                "bytes": foreign.entries * (foreign.codec.code_size + ID_BYTES),
                "stages": self._stages,
            }
        )

    def _made(self, place: Path) -> tuple[SegmentLayout, Part, Numbered | Listed, dict[str, Any]]:
        """Template and segment, written; which rows there are; the plan's record."""
        foreign, codec, store = self._foreign, self._foreign.codec, self._store
        with stage(self._emit, "ids", foreign.entries) as at:
            largest, count = span(lambda: self._ids(at))
            if store is not None and (largest >= store.n or store.d != codec.d):
                raise ConflictError(
                    f"{store.describe()} are not the vectors of {self._source}: that has vectors of "
                    f"{codec.d} dimensions and ids up to {largest}",
                    kind="store-changed",
                    hint="Row i of the store must be the vector of id i; leave the store out to search by "
                    "codes.",
                )
            numbers: Numbered | Listed
            if store is not None or largest < _SPARSE * count:
                numbers, end, listed = Numbered(self._ids, largest + 1, count), largest + 1, False
            else:
                numbers, end, listed = Listed(self._ids, count, place), count, True
        if store is not None:
            see_vectors(foreign, self._file.bytes, store)
        origin = Origin(
            uri="" if store is None else store.uri,
            format="" if store is None else store.format,
            mapped=store is not None and store.mapped,
            fingerprint="" if store is None else store.fingerprint(end),
            n=end,
        )
        part = Part(
            first_row=0,
            rows=end,
            first_id=None if listed else 0,
            own=None,
            origin=origin,
            listed=FIRST_SEGMENT if listed else None,
            id_stop=largest + 1 if listed else 0,
        )
        plan = self._plan(part)
        write_template(
            self.layout,
            codec,
            codec.row_centroids(),
            np.ones(codec.nlist, np.float32),  # rows are not known: no list is handicapped
            **{key: plan[key] for key in ("factory", "metric", "seed", "sample_rows")},
            plan=plan["digest"],
            nlist=codec.nlist,
        )
        segment = SegmentLayout(place / "segment")
        make_directory(segment.root)
        with stage(self._emit, "merge", self._file.size, unit="bytes") as at:
            self._copy(segment, numbers, plan["digest"], at)
        return segment, part, numbers, plan

    def _plan(self, part: Part) -> dict[str, Any]:
        """What the record of a generation says of how it was made."""
        identity = {
            "fingerprint": part.origin.fingerprint,
            "n": part.rows,
            "d": self._foreign.codec.d,
            "metric": self._foreign.metric,
            "factory": self._foreign.factory,
            "sample_rows": 0,
            "seed": 0,
            "copy_vectors": False,
            "spill": False,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        return {**identity, "digest": digest}

    def _ids(self, at: Stage | None = None) -> Iterator[IntArray]:
        """All ids, in the order of the lists, some at a time."""
        held: list[AnyArray] = []
        waiting = done = 0
        for begin, size in zip(self._foreign.ids_at.tolist(), self._foreign.sizes.tolist(), strict=True):
            for first in range(0, size, _ENTRIES):
                some = min(size - first, _ENTRIES)
                held.append(self._bytes(begin + first * ID_BYTES, some * ID_BYTES))
                waiting += some
                if waiting >= _ENTRIES:
                    Stopped.raise_if(self._stop)
                    yield np.concatenate(held).view(np.int64)
                    done += waiting
                    held, waiting = [], 0
                    if at is not None:
                        at.tell(done)
        if held:
            yield np.concatenate(held).view(np.int64)

    def _bytes(self, begin: int, length: int) -> BytesArray:
        return self._file.bytes[begin : begin + length]

    def _copy(self, segment: SegmentLayout, numbers: Numbered | Listed, digest: str, at: Stage) -> None:
        """Write the segment, its record last."""
        foreign, codec = self._foreign, self._foreign.codec
        sizes, code_size = foreign.sizes, codec.code_size
        with DurableFile(segment.lists, size=foreign.entries * (code_size + ID_BYTES)) as file:
            places = zip(sizes.tolist(), foreign.codes_at.tolist(), foreign.ids_at.tolist(), strict=True)
            for size, codes_at, ids_at in places:
                Stopped.raise_if(self._stop)
                if not size:
                    continue
                codes = self._bytes(codes_at, size * code_size).reshape(size, code_size)
                rows = numbers.rows(self._bytes(ids_at, size * ID_BYTES).copy().view(np.int64))
                order = None if (rows[1:] > rows[:-1]).all() else np.argsort(rows)
                step = max(1, _CODE_BYTES // code_size)
                for first in range(0, size, step):
                    some = slice(first, first + step)
                    file.write(codes[some] if order is None else codes[order[some]])
                file.write(np.ascontiguousarray(rows if order is None else rows[order]))
                at.tell(file.written)
            checksums = {segment.lists.name: file.checksums()}
        if isinstance(numbers, Listed):
            checksums[segment.ids.name] = write_array(segment.ids, numbers.ids)
        checksums[segment.header.name] = codec.save_header(segment.header, sizes)
        write_record(
            segment,
            checksums,
            plan=digest,
            rows=foreign.entries,
            entries=foreign.entries,
            skipped_rows=0,
            zero_rows=0,
        )
        at.figures.update(bytes=foreign.entries * (code_size + ID_BYTES), **evenness(sizes))

    def _publish(
        self, segment: SegmentLayout, part: Part, numbers: Numbered | Listed, plan: dict[str, Any]
    ) -> dict[str, Any]:
        """Make it the live generation; its record."""
        layout, foreign, codec = self.layout, self._foreign, self._foreign.codec
        with stage(self._emit, "publish", 1) as at:
            sketch = segment.root.parent / "sketch.faiss" if self._wants_sketch() else None
            if sketch is not None:
                Sketch.make(codec.centroids(), foreign.metric).save(sketch)
            place = layout.segment(FIRST_SEGMENT)
            remove_tree(place.root)
            make_directory(place.root.parent)
            rename(segment.root, place.root)
            said = {key: value for key, value in plan.items() if key != "digest"}
            record: dict[str, Any] = {
                "generation": FIRST_GENERATION,
                "rows": foreign.entries,
                "skipped_rows": 0,
                "zero_rows": 0,
                "segments": [{"name": FIRST_SEGMENT, "rows": foreign.entries}],
                "parts": [part.to_record()],
                "plan": said,
                "chosen": False,
                "order": Order(None, sketch).record,
                "calibration": {},
                "store": {key: getattr(part.origin, key) for key in ("uri", "format", "mapped")},
                "imported": {"file": str(self._source), "kind": foreign.kind, "left_out": foreign.left_out},
            }
            make_directory(layout.generation(FIRST_GENERATION).parent)
            if isinstance(numbers, Numbered) and numbers.dead.count:
                data, digest = numbers.dead.to_bytes()
                name = f"{FIRST_GENERATION}.dead"
                write_bytes(layout.generation(FIRST_GENERATION).parent / name, data)
                record["dead"] = {"file": name, "digest": digest, "rows": numbers.dead.count}
            Generation.from_record(FIRST_GENERATION, record)  # what is written can be read
            at.tell(1)
        report = {**self.report(plan), "operation": "import"}
        layout.publish(FIRST_GENERATION, record, report, sketch)
        return record

    def _wants_sketch(self) -> bool:
        codec = self._foreign.codec
        return sketched(codec.nlist, codec.d_code) and not codec.has_graph

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
