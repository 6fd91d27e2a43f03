"""The next generation: what every change of an index ends with.

The live generation stays as it is, files and all. A change adds a segment, a bitmap of dead rows, or both,
then writes the record of the next generation, and then ``CURRENT``: before that last step the index is as it
was, after it, it is the new one. One process at a time changes an index (``ooc.index.lock.publisher``).
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from ooc.durable import make_directory, remove_tree, rename, write_bytes
from ooc.index.dead import Dead
from ooc.index.generation import Entry, Generation, Origin, Part, id_end
from ooc.index.layout import Header, Layout, SegmentLayout
from ooc.index.live_keys import LiveKeys
from ooc.index.numbering import IdFiles, Numbering
from ooc.index.segment import Segments
from ooc.types import IntArray

__all__ = ["Finished", "Live", "Next", "live", "next_number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A change that was published by a process that did not come to its end: its plan, and its generation."""

    plan: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The generation that a change begins with, and what an interrupted one had published already."""

    layout: Layout
    header: Header
    generation: Generation
    dead: Dead
    finished: Finished | None = None

    @property
    def numbering(self) -> Numbering:
        """Which row an id is."""
        return Numbering(self.generation, self.dead, IdFiles(self.layout))

    @property
    def keys(self) -> LiveKeys | None:
        """The keys of the rows, where they have some."""
        return LiveKeys(self.layout, self.generation, self.dead) if self.generation.keyed else None


def live(layout: Layout) -> Live:
    """The live generation of an index.

    Raises
    ------
    IndexDirError
        There is no index, it was not finished, or it is damaged.
    """
    header = layout.read_header()
    generation = Generation.read(layout, layout.published())
    layout = layout.of_generation(generation.record)
    return Live(layout=layout, header=header, generation=generation, dead=generation.read_dead(layout))


def next_number(layout: Layout) -> int:
    """The number of the next generation: the highest of those that are there, live or not, and one more.

    ``ooc.update.changing`` sees to it that no file of one that was not published has it.
    """
    return max([*layout.numbers(), layout.live() or 0]) + 1


class Next:
    """A generation in the making: begins as the live one is.

    Parameters
    ----------
    before : Live

    Attributes
    ----------
    number : int
    segments : list of Entry
    parts : list of Part
    dead : Dead
    """

    def __init__(self, before: Live) -> None:
        self._before, self._layout = before, before.layout
        self.number = next_number(before.layout)
        self.segments: list[Entry] = list(before.generation.segments)
        self.parts: list[Part] = list(before.generation.parts)
        self.dead = before.dead
        self._record: dict[str, Any] = dict(before.generation.record)

    @property
    def segment_name(self) -> str:
        """Of the segment that this generation adds."""
        return f"s{self.number}"

    @property
    def row_end(self) -> int:
        """The number of the next row."""
        return self.parts[-1].stop_row

    @property
    def id_end(self) -> int:
        """The next id."""
        return id_end(self._record, self.parts)

    def set(self, **entries: Any) -> Self:
        """Other entries of the record than those of the generation before."""
        self._record.update(entries)
        return self

    def count(self, **more: int) -> Self:
        """Add to figures of the record."""
        return self.set(**{name: self._record.get(name, 0) + times for name, times in more.items()})

    def add_segment(self, made: SegmentLayout, entry: Entry) -> None:
        """Move a finished segment into its place."""
        place = self._layout.segment(entry.name)
        remove_tree(place.root)
        make_directory(place.root.parent)
        rename(made.root, place.root)
        self.segments.append(entry)

    def renumber(self, parts: list[Part], dead: Dead, gone: list[Origin]) -> None:
        """Other parts, in which some rows that were dead are not; ids that were given are not given again.

        ``gone`` are the stores of parts that are no longer there.
        """
        known = [*self._before.generation.gone, *gone]
        self.set(id_end=self.id_end, **({"gone": [asdict(one) for one in known]} if known else {}))
        self.parts, self.dead = parts, dead

    def bury(self, rows: IntArray) -> None:
        """Rows ``(m,)``, live until now, are dead."""
        self.dead = self.dead.joined(rows, self.row_end)
        if self._record["skipped_rows"]:  # rows that no list holds: only the lists know which
            rows = self._in_lists(rows)
        self.segments = [
            replace(one, dead=one.dead + int(((rows >= one.first_row) & (rows < one.stop_row)).sum()))
            for one in self.segments
        ]

    def _in_lists(self, rows: IntArray) -> IntArray:
        """Those of the rows that are in lists."""
        wanted, found = Dead(self.row_end).joined(rows), Dead(self.row_end)
        layouts = [self._layout.segment(one.name) for one in self._before.generation.segments]
        with contextlib.closing(Segments(layouts, self._before.header.lists_per_row)) as segments:
            for ids in segments.all_ids():
                found = found.joined(ids[wanted.contains(ids)])
        return rows[found.contains(rows)]

    def publish(self, report: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make it durable, and then the live generation; its record."""
        before, layout = self._before.generation, self._layout
        dead = before.dead_file
        if self.dead is not self._before.dead:
            dead = None
            self._record.pop("dead", None)
            if self.dead.count:
                data, digest = self.dead.to_bytes()
                name = f"{self.number}.dead"
                write_bytes(layout.generation(self.number).parent / name, data)
                dead = {"file": name, "digest": digest, "rows": self.dead.count}
        order = dict(self._record.get("order") or {})
        if order.get("sketch"):  # it is a file of an earlier generation, and stays that
            order.setdefault("sketch_of", before.number)
        self.set(
            generation=self.number,
            before=before.number,
            rows=sum(one.rows - one.dead for one in self.segments),
            segments=[asdict(one) for one in self.segments],
            parts=[part.to_record() for part in self.parts],
            built=self._record.get("built", before.number),
            **({"dead": dead} if dead else {}),
            **({"order": order} if order else {}),
        )
        Generation.from_record(self.number, self._record)  # what is written can be read
        layout.publish(self.number, self._record, report or {})
        return self._record
