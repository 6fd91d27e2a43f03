"""Checking an index, and mending what can be: what ``ooc verify`` does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ooc.check.codes import Rows, choose, moved_stores, see_codes, see_stores, template_bytes
from ooc.check.contents import Told, file_bytes, see_blocks, see_ids, see_lists, see_segment_blocks
from ooc.check.findings import ANEW, MENDED, Findings
from ooc.check.records import (
    Template,
    digests,
    published_numbers,
    read_generation,
    see_header,
    see_sketch_of,
    see_template,
)
from ooc.check.segments import Checked, Uses, key_kind, rows_do, see_segment
from ooc.errors import ArgumentError, IndexDirError, ResourceError
from ooc.events import Finished, Observer, Stage, Started, ignore, stage
from ooc.index.dead import Dead
from ooc.index.generation import Generation
from ooc.index.keys import KeyTable, key_files
from ooc.index.layout import Header, Layout
from ooc.index.lists import ID_BYTES
from ooc.index.lock import Hold
from ooc.index.segment import read_ids
from ooc.types import PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY, parse_bytes

__all__ = ["Check", "Looked", "verify"]


@ResourceError.if_refused("checking")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was found of a generation.

    Attributes
    ----------
    layout : Layout
        With its template.
    generation : Generation, optional
        Where its record is sound; and what is dead in it, where that is.
    dead : Dead, optional
    template : Template
    segments : list of Checked
        Those of which it needs something.
    """

    layout: Layout
    generation: Generation | None = None
    dead: Dead | None = None
    template: Template = field(default_factory=lambda: Template(skeleton=None, record={}))
    segments: list[Checked] = field(default_factory=list)


class Check:
    """One look at an index.

    Attributes
    ----------
    layout : Layout
    header : Header, optional
        Where it is sound.
    live : int, optional
        The live generation, where ``CURRENT`` is sound.
    last : Looked
        The last generation that was looked at.
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
        self.last = Looked(layout=layout)
        self.seen: list[int] = []
        self._templates: dict[str, Template] = {}
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
        there = published_numbers(layout)
        with findings.of(layout.current, "record", MENDED):
            self.live = layout.live()
            if self.live is None and there:
                findings.add(layout.current, "missing", "it is missing", MENDED)
            elif self.live is not None:
                findings.count(records=1)
        if self.live is None and not there:
            layout.published()  # says that it was not finished, or cannot be read
        if generation is not None and generation not in there:
            raise ArgumentError(
                f"{layout.root} has no generation {generation}; there are {', '.join(map(str, there))}",
                kind="generation",
                hint="`ooc info INDEX --generations` tells of each.",
            )
        with contextlib.ExitStack() as held:
            if every or generation is not None:
                chosen = there if generation is None else [generation]
                for number in chosen:
                    self._hold(number, held)
            else:
                one = self.live if self.live is not None else there[-1]
                while not self._hold(one, held) and self.live is not None and layout.live() != one:
                    one = self.live = layout.published()  # another one was published, and this one collected
                chosen = [one]
            looked = [self._look(number) for number in chosen]
            total = self._bytes(looked) if self.full else 0
            with stage(tell, "verify", total, unit="bytes") as at:
                if self.full:
                    self._read(looked, at)
                    at.tell(total)  # headers of rows count, and have been looked at before
                at.figures.update(findings=len(findings.found), **findings.checked)
        self.last = looked[-1]

    def _hold(self, number: int, held: contextlib.ExitStack) -> bool:
        """Keep a generation from being collected while it is looked at; whether it is there."""
        with contextlib.suppress(IndexDirError):
            held.enter_context(contextlib.closing(Hold(self.layout.generation(number))))
            return True
        return False

    def _look(self, number: int) -> Looked:
        """The quick check of a generation."""
        self.seen.append(number)
        findings, header = self.findings, self.header
        found = read_generation(self.layout, number, findings)
        if found is None:
            return Looked(layout=self.layout)
        generation, dead = found
        layout = self.layout.of_generation(generation.record)
        template = self._templates.get(layout.template_name)
        if template is None:
            template = self._templates[layout.template_name] = see_template(layout, header, findings)
        if header is None:
            return Looked(layout=layout, generation=generation, dead=dead, template=template)
        first = generation.segments[0].name
        segments = [
            see_segment(layout.segment(name), uses, header, template.skeleton, findings, first=name == first)
            for name, uses in Uses.of(generation).items()
        ]
        if template.skeleton is not None:
            see_sketch_of(layout, generation, header, template.skeleton, findings)
        return Looked(layout=layout, generation=generation, dead=dead, template=template, segments=segments)

    def _bytes(self, looked: list[Looked]) -> int:
        """Bytes that a full check reads."""
        total = 0
        for one in looked:
            if self._new(f"template {one.layout.template_name}"):
                total += sum(map(file_bytes, one.layout.template_files))
            for segment in one.segments:
                if self._first(segment):
                    total += sum(file_bytes(path) for path in segment.files)
                if segment.sizes is not None:
                    total += int(segment.sizes.sum()) * ID_BYTES
        self._done.clear()
        return total

    def _new(self, what: str) -> bool:
        """Whether something is met for the first time, as several generations have it."""
        new = what not in self._done
        self._done.add(what)
        return new

    def _first(self, one: Checked) -> bool:
        return self._new(f"{one.layout.root.name} {sorted(path.name for path in one.files)}")

    def _read(self, looked: list[Looked], at: Stage) -> None:
        """The full check."""
        findings, stop = self.findings, self._stop
        done = 0

        def told(more: int) -> None:
            nonlocal done
            done += more
            at.tell(done)

        for one in looked:
            layout = one.layout
            if self._new(f"template {layout.template_name}"):
                checksums = one.template.record.get("checksums", {})
                for path in layout.template_files:
                    do = MENDED if path == layout.template_file else ANEW
                    see_blocks(path, digests(checksums.get(path.name)), findings, told, stop, do)
            if one.generation is None or one.dead is None or self.header is None:
                continue
            for segment in one.segments:
                if self._first(segment):
                    see_segment_blocks(segment, findings, told, stop, rows_do(segment.uses.part))
            self._contents(one, one.generation, one.dead, self.header, told)

    def _contents(
        self, looked: Looked, generation: Generation, dead: Dead, header: Header, told: Told
    ) -> None:
        """What the files of a generation say."""
        findings, stop, layout, segments = self.findings, self._stop, looked.layout, looked.segments
        seed = generation.record["plan"].get("seed", 0)
        chosen = [
            choose(one, generation, seed if isinstance(seed, int) and seed >= 0 else 0) for one in segments
        ]
        for one, some in zip(segments, chosen, strict=True):
            sample = None if some is None else some.sample
            see_lists(one, dead, header.lists_per_row, self._memory, findings, told, stop, sample)
            keyed, listed = one.uses.keyed, one.uses.listed
            if keyed is not None and all(map(findings.is_sound, one.files)):
                path = key_files(one.layout, key_kind(one.layout, one.record))[-2]
                with findings.of(path, "ids", MENDED):
                    KeyTable(one.layout, keyed.rows).see(stop)
            if listed is not None and findings.is_sound(one.layout.ids):
                see_ids(read_ids(one.layout, listed.rows), one.layout.ids, generation.id_end, findings)
        exact = {
            one.layout.root.name: "copy_error" not in one.record and findings.is_sound(one.layout.vectors)
            for one in segments
        }
        rows = Rows(layout, generation, header.d, moved_stores(self.store, generation), exact, findings)
        try:
            see_stores(rows, generation)
            template = (layout.template_file, layout.centroids_file)
            if looked.template.skeleton is None or not all(map(findings.is_sound, template)):
                findings.skip("codes in the lists", "the template is damaged")
            elif template_bytes(layout) > self._memory:
                findings.skip("codes in the lists", "the memory does not do for the centroids")
            else:
                # Where lists are damaged already, codes say nothing new.
                whole = [
                    one for one in chosen if one is not None and findings.is_sound(one.checked.layout.lists)
                ]
                imported = generation.parts[0] if "imported" in generation.record else None
                see_codes(layout, header, whole, rows, imported, findings, stop)
        finally:
            rows.close()
