"""Checking an index, and mending what can be: what ``ooc verify`` does."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from ooc.check.codes import Rows, choose, moved_stores, see_codes, see_stores, template_bytes
from ooc.check.contents import file_bytes, see_blocks, see_ids, see_lists, see_segment_blocks
from ooc.check.findings import ANEW, MENDED, Findings
from ooc.check.records import Template, read_generation, see_header, see_sketch_of, see_template
from ooc.check.segments import Checked, key_kind, rows_do, see_segment
from ooc.errors import ArgumentError, IndexDirError
from ooc.events import Finished, Observer, Stage, Started, ignore, stage
from ooc.index.dead import Dead
from ooc.index.generation import Generation
from ooc.index.keys import KeyTable, key_files
from ooc.index.layout import Header, Layout
from ooc.index.lists import ID_BYTES
from ooc.index.segment import read_ids
from ooc.types import PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY, parse_bytes
from ooc.update.publish import numbers

__all__ = ["Check", "verify"]


def verify(
    index: PathOrStr,
    *,
    full: bool = False,
    repair: bool = False,
    generation: int | None = None,
    every: bool = False,
    store: StoreLike | Mapping[str, StoreLike] | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """See whether an index is what it was when it was written; see ``ooc.verify``."""
    layout, tell = Layout.of(index), observer or ignore
    began = time.monotonic()
    if repair and (every or generation is not None):
        raise ArgumentError(
            "the live generation is what is repaired",
            kind="repair",
            hint="Leave the other option out, or make that generation live first (`ooc rollback`).",
        )
    stages = {"verify": 0.5, "fill": 0.3, "merge": 0.1, "publish": 0.1} if repair else {"verify": 1.0}
    tell(Started(operation="verify", stages=stages, memory_bytes=parse_bytes(memory)))
    check = Check(layout, full=full, memory=parse_bytes(memory), store=store, stop=stop)
    check.run(tell, generation=generation, every=every)
    repaired: list[str] = []
    # What was mended may have hidden other damage: a header that of segments.
    while repair and check.findings.found:
        from ooc.check.repair import mend

        more = mend(check, memory=memory, threads=threads, observer=tell, stop=stop)
        if not set(more) - set(repaired):
            break
        repaired += more
        check = Check(layout, full=full, memory=parse_bytes(memory), store=store, stop=stop)
        check.run(tell)
    seconds = time.monotonic() - began
    figures = {
        "index": str(layout.root),
        "generations": check.seen,
        "full": full,
        **check.findings.to_record(),
        "repaired": repaired,
        "seconds": seconds,
    }
    tell(Finished(operation="verify", seconds=seconds, figures={"sound": figures["sound"]}))
    return figures


class Check:
    """One look at an index.

    Attributes
    ----------
    layout : Layout
    header : Header, optional
        Where it is sound.
    live : int, optional
        The live generation, where ``CURRENT`` is sound.
    generation : Generation, optional
        The last one that was looked at, where its record is sound.
    template : Template
    segments : list of Checked
        Of that generation.
    findings : Findings
    seen : list of int
        Generations that were looked at.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        full: bool,
        memory: int,
        store: StoreLike | Mapping[str, StoreLike] | None,
        stop: threading.Event | None,
    ) -> None:
        self.layout, self.full, self.store = layout, full, store
        self._memory, self._stop = memory, stop
        self.findings = Findings(layout.root)
        self.header: Header | None = None
        self.live: int | None = None
        self.generation: Generation | None = None
        self.dead: Dead | None = None
        self.template = Template(skeleton=None, record={})
        self.segments: list[Checked] = []
        self.seen: list[int] = []
        #: Files whose blocks were compared, of several generations once.
        self._done: set[str] = set()

    def run(self, tell: Observer, *, generation: int | None = None, every: bool = False) -> None:
        """Look at the live generation, at one, or at all.

        Raises
        ------
        IndexDirError
            There is no index.
        ArgumentError
            There is no such generation.
        Stopped
            The caller asked for it.
        """
        findings, layout = self.findings, self.layout
        self.header = see_header(layout, findings)
        there = numbers(layout)
        with findings.of(layout.current, "record", MENDED):
            self.live = layout.live()
            if self.live is None and there:
                findings.add(layout.current, "missing", "it is missing", MENDED)
            elif self.live is not None:
                findings.count(records=1)
        if self.live is None and not there:
            raise IndexDirError(
                f"the index {layout.root} was not finished",
                kind="index-unfinished",
                hint="Run the same `ooc build` again: it goes on where it ended.",
            )
        if generation is not None and generation not in there:
            raise ArgumentError(
                f"{layout.root} has no generation {generation}; there are {', '.join(map(str, there))}",
                kind="generation",
                hint="`ooc info INDEX --generations` tells of each.",
            )
        one = self.live if self.live is not None else there[-1]
        chosen = there if every else [one if generation is None else generation]
        self.template = see_template(layout, self.header, findings)
        looked = [self._look(number) for number in chosen]
        total = self._bytes(looked) if self.full else 0
        with stage(tell, "verify", total, unit="bytes") as at:
            if self.full:
                self._read(looked, at)
            at.figures.update(findings=len(findings.found), **findings.checked)
        self.generation, self.dead, self.segments = looked[-1]

    def _look(self, number: int) -> tuple[Generation | None, Dead | None, list[Checked]]:
        """The quick check of a generation."""
        self.seen.append(number)
        found = read_generation(self.layout, number, self.findings)
        if found is None:
            return None, None, []
        generation, dead = found
        header, layout, skeleton = self.header, self.layout, self.template.skeleton
        if header is None:
            return generation, dead, []
        entries = {entry.name: entry for entry in generation.segments}
        parts = {part.own: part for part in generation.parts if part.own is not None}
        keyed = {part.keyed: part for part in generation.parts if part.keyed is not None}
        segments = []
        first = generation.segments[0].name
        for name in dict.fromkeys([*entries, *parts, *keyed]):
            place = layout.segment(name)
            uses = entries.get(name), parts.get(name), keyed.get(name)
            segments.append(see_segment(place, *uses, header, skeleton, self.findings, first=name == first))
        if skeleton is not None:
            see_sketch_of(layout, generation, header, skeleton, self.findings)
        return generation, dead, segments

    def _bytes(self, looked: list[tuple[Generation | None, Dead | None, list[Checked]]]) -> int:
        """Bytes that a full check reads."""
        layout = self.layout
        names = (layout.template_file, layout.centroids_file, layout.spread_file)
        total = sum(map(file_bytes, names))
        for _, _, segments in looked:
            for one in segments:
                if self._first(one, "blocks"):
                    total += sum(file_bytes(path) for path in one.files)
                if one.sizes is not None:
                    total += int(one.sizes.sum()) * ID_BYTES
        self._done.clear()
        return total

    def _first(self, one: Checked, what: str) -> bool:
        """Whether a segment is met for the first time, as several generations have it."""
        uses = [use is not None for use in (one.entry, one.part, one.keyed)]
        key = f"{what} {one.layout.root.name} {uses}"
        new = key not in self._done
        self._done.add(key)
        return new

    def _read(self, looked: list[tuple[Generation | None, Dead | None, list[Checked]]], at: Stage) -> None:
        """The full check."""
        findings, stop, layout = self.findings, self._stop, self.layout
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            at.tell(done)

        checksums = self.template.record.get("checksums", {})
        for path in (layout.template_file, layout.centroids_file, layout.spread_file):
            do = MENDED if path == layout.template_file else ANEW
            see_blocks(path, checksums.get(path.name, []), findings, told, stop, do)
        for generation, dead, segments in looked:
            if generation is None or dead is None or self.header is None:
                continue
            for one in segments:
                if self._first(one, "blocks"):
                    see_segment_blocks(one, findings, told, stop, rows_do(one.part))
            self._contents(generation, dead, self.header, segments, told)

    def _contents(
        self,
        generation: Generation,
        dead: Dead,
        header: Header,
        segments: list[Checked],
        told: Any,
    ) -> None:
        """What the files of a generation say."""
        findings, stop, layout = self.findings, self._stop, self.layout
        seed = generation.record["plan"].get("seed", 0)
        chosen = [
            choose(one, generation, seed if isinstance(seed, int) and seed >= 0 else 0) for one in segments
        ]
        for one, some in zip(segments, chosen, strict=True):
            sample = None if some is None else some.sample
            see_lists(one, dead, header.lists_per_row, self._memory, findings, told, stop, sample)
            if one.keyed is not None and all(map(findings.is_sound, one.files)):
                path = key_files(one.layout, key_kind(one.layout, one.record))[-2]
                with findings.of(path, "ids", MENDED):
                    KeyTable(one.layout, one.keyed.rows).see(stop)
            if one.part is not None and one.part.first_id is None and findings.is_sound(one.layout.ids):
                see_ids(read_ids(one.layout, one.part.rows), one.layout.ids, generation.id_end, findings)
        exact = {
            one.layout.root.name: "copy_error" not in one.record and findings.is_sound(one.layout.vectors)
            for one in segments
        }
        rows = Rows(layout, generation, header.d, moved_stores(self.store, generation), exact, findings)
        try:
            see_stores(rows, generation)
            template = (layout.template_file, layout.centroids_file)
            if self.template.skeleton is None or not all(map(findings.is_sound, template)):
                findings.skip("codes in the lists", "the template is damaged")
            elif template_bytes(layout) > self._memory:
                findings.skip("codes in the lists", "the memory does not do for the centroids")
            else:
                # Where lists are damaged already, codes say nothing new.
                whole = [
                    one for one in chosen if one is not None and findings.is_sound(one.checked.layout.lists)
                ]
                see_codes(layout, header, whole, rows, findings, stop)
        finally:
            rows.close()
