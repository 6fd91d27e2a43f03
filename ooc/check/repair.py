"""Mending an index: what is damaged is made anew from the vectors, beside what is there.

Published files never change. Lists, headers and rows that are damaged get a segment of their own, and a
generation that has it in place of the old one; the files of that are for ``ooc gc``. Three things have no
other place, and are replaced by what they were or must have been: ``ooc.json``, ``CURRENT``, the template.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ooc.build.plan import Plan
from ooc.build.train import published_template
from ooc.check.anew import Anew
from ooc.check.records import published_numbers
from ooc.durable import (
    block_checksums,
    write_sealed,
)
from ooc.engine import Codec
from ooc.errors import IndexDirError
from ooc.events import Note, Observer
from ooc.index.generation import Generation
from ooc.index.layout import FORMAT_VERSION, SCALED, SPILL, Layout
from ooc.index.lock import publisher
from ooc.index.segment import Segments
from ooc.update.changing import clear

if TYPE_CHECKING:
    from ooc.check.verify import Check

__all__ = ["mend"]


def mend(
    check: Check,
    *,
    memory: int | str,
    threads: int | None,
    observer: Observer,
    stop: threading.Event | None,
) -> list[str]:
    """Mend what a check found, as far as that can be; what was done, a line each.

    Raises
    ------
    ConflictError
        Another process writes the index, or a change of it is unfinished.
    PlanError, ResourceError, StoreError, Stopped
        As ``ooc.append``. What is damaged is as it was.
    """
    layout, generation = check.last.layout, check.last.generation
    sound = check.findings.is_sound
    done: list[str] = []
    with publisher(layout.lock):
        if not sound(layout.header):
            done += _header(layout, generation)
        if not sound(layout.current):
            done += _current(layout)
        if generation is not None and not sound(layout.train_record):
            done += _train_record(layout, generation)
        if generation is not None and not sound(layout.template_file):
            done += _template(layout, check, generation)
        if generation is not None and check.header is not None and layout.live() == generation.number:
            clear(layout)  # what a change left that was killed
            done += Anew(check, check.header, generation, memory, threads, observer, stop).run()
    for line in done:
        observer(Note(message=line, kind="repaired"))
    return done


def _header(layout: Layout, generation: Generation | None) -> list[str]:
    """``ooc.json`` again, by what the generation says that it was built of."""
    if generation is None:
        return []
    plan = generation.record["plan"]
    has = {SPILL: bool(plan.get("spill")), SCALED: plan.get("copy_dtype") == "int8"}
    features = sorted(name for name, there in has.items() if there)
    record = {"format": "ooc", "format_version": FORMAT_VERSION, "features": features}
    write_sealed(layout.header, {**record, "d": plan.get("d"), "metric": plan.get("metric")})
    layout.read_header()  # says so where that is none
    return ["ooc.json was written anew, by what the generation was built of"]


def _current(layout: Layout) -> list[str]:
    """The newest generation whose record is sound is live again."""
    header = layout.read_header()
    for number in reversed(published_numbers(layout)):
        try:
            one = Generation.read(layout, number)
            one.read_dead(layout)
            places = [layout.segment(entry.name) for entry in one.segments]
            Segments(places, header.lists_per_row).close()
        except IndexDirError:
            continue
        layout.make_live(number)
        return [f"CURRENT names generation {number} again, the newest that is sound"]
    return []


def _train_record(layout: Layout, generation: Generation) -> list[str]:
    """The template's record, by what the generation says and what its files are."""
    plan = generation.record["plan"]
    try:
        codec = Codec.load(layout.template_file)
        published_template(layout, plan["metric"])
    except IndexDirError:
        return []
    record = {
        "plan": Plan.digest_of(plan),
        **{name: plan[name] for name in ("metric", "seed", "sample_rows") if name in plan},
        "factory": generation.factory,
        "nlist": codec.nlist,
        "checksums": {path.name: block_checksums(path) for path in layout.template_files},
        **({"reused": plan["template"]} if "template" in plan else {}),
    }
    write_sealed(layout.train_record, record)
    return ["train.json was written anew, by what the generation says and what the files of the template are"]


def _template(layout: Layout, check: Check, generation: Generation) -> list[str]:
    """``template.faiss`` is the header without lists: where that gives the same bytes, these are it."""
    header = layout.segment(generation.segments[0].name).header
    said = check.last.template.record.get("checksums", {}).get(layout.template_file.name)
    if said is None or not check.findings.is_sound(header):
        return []
    try:
        codec = Codec.of_header(header)
    except IndexDirError:
        return []
    if codec.checksums() != said:
        return []
    codec.save(layout.template_file)
    check.findings.damaged.discard(layout.template_file)
    return ["template.faiss was written anew, from the header of the lists: the same bytes"]
