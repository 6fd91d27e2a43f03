"""The quick check of what a generation is made of, but for segments: records, the template, dead rows."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ooc.build.reuse import see_template_record
from ooc.check.findings import ANEW, MENDED, Findings
from ooc.durable import CHECK_BYTES, block_checksums, check_seal, read_json
from ooc.engine import Skeleton, see_sketch, sketched, template_skeleton
from ooc.errors import IndexDirError
from ooc.index.arrays import read_array
from ooc.index.dead import Dead
from ooc.index.generation import Generation
from ooc.index.layout import Header, Layout
from ooc.index.order import Order
from ooc.search.promise import Promise

__all__ = [
    "Template",
    "digests",
    "published_numbers",
    "read_generation",
    "see_header",
    "see_sketch_of",
    "see_template",
]

#: Files up to this size are read in a quick check too.
SMALL_BYTES = 1 << 20

_ROLL_BACK = "go back to an earlier generation (`ooc rollback`), or copy the directory anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What is known of the template: its structure, where that is sound, and its record."""

    skeleton: Skeleton | None
    record: Mapping[str, Any]


def see_header(layout: Layout, findings: Findings) -> Header | None:
    """What ``ooc.json`` says, where it is sound.

    Raises
    ------
    IndexDirError
        There is no index, something else, or one of a newer format: nothing can be checked.
    """
    read: list[Header] = []
    with findings.of(layout.header, "record", MENDED, but=("index-missing", "index-foreign", "index-newer")):
        read.append(layout.read_header())
        _sealed(layout.header, findings)
    return read[0] if read else None


def published_numbers(layout: Layout) -> list[int]:
    """The numbers of the generations that were published, ascending, whatever ``CURRENT`` is."""
    try:
        return layout.numbers()
    except IndexDirError:
        unpublished = None
        with contextlib.suppress(IndexDirError):
            unpublished = layout.named_unpublished()
        return [number for number in layout.records() if number != unpublished]


def read_generation(layout: Layout, number: int, findings: Findings) -> tuple[Generation, Dead] | None:
    """The record of a generation and what is dead in it, where they are sound."""
    path = layout.generation(number)
    read: list[Generation] = []
    with findings.of(path, "record", _ROLL_BACK):
        read.append(Generation.read(layout, number))
        _sealed(path, findings)
        layout.of_generation(read[0].record)
        Promise.of(read[0].record)
    if not read:
        return None
    generation = read[0]
    dead = Dead(generation.row_end)
    if generation.dead_file is not None:
        file = path.parent / generation.dead_file["file"]
        with findings.of(file, "checksum", _ROLL_BACK):
            dead = generation.read_dead(layout)
        findings.count(files=1)
    return generation, dead


def see_template(layout: Layout, header: Header | None, findings: Findings) -> Template:
    """The template: its record, the sizes and structure of its files, and the checksums of small ones."""
    record: dict[str, Any] = {}
    with findings.of(layout.train_record, "record", MENDED):
        record = read_json(layout.train_record, what="the template's record")
        see_template_record(layout.train_record, record)
        _sealed(layout.train_record, findings)
    skeleton: Skeleton | None = None
    with findings.of(layout.template_file, "structure", MENDED):
        skeleton = template_skeleton(layout.template_file)
        if header is not None and (skeleton.d, skeleton.l2) != (header.d, header.metric == "l2"):
            findings.add(
                layout.template_file, "structure", "it is for other vectors or another metric", MENDED
            )
    if skeleton is not None:
        widths = {skeleton.d, skeleton.d_code}
        with findings.of(layout.centroids_file, "structure"):
            centroids = read_array(layout.centroids_file, "<f4", (skeleton.nlist, None), mapped=True)
            if centroids.shape[1] not in widths:
                findings.add(layout.centroids_file, "structure", "its centroids are of other dimensions")
        with findings.of(layout.spread_file, "structure"):
            read_array(layout.spread_file, "<f4", (skeleton.nlist,))
    findings.count(files=3)
    checksums = record.get("checksums")
    if not isinstance(checksums, Mapping):
        findings.skip("checksums of the template", "its record has none")
        return Template(skeleton=skeleton, record={})
    for path in layout.template_files:
        if not path.is_file() or not findings.is_sound(path):
            continue
        said = digests(checksums.get(path.name))
        size = path.stat().st_size
        if len(said) != -(-size // CHECK_BYTES):
            findings.add(path, "size", f"it has {size} bytes, and its record {len(said)} checksums of 64 MiB")
        elif size <= SMALL_BYTES and block_checksums(path) != said:
            do = MENDED if path == layout.template_file else ANEW
            findings.add(path, "checksum", "it is not what was written", do, block=0)
    return Template(skeleton=skeleton, record=record)


def digests(said: object) -> list[str]:
    """The checksums that a record has of a file; none where it has something else."""
    return said if isinstance(said, list) and all(isinstance(one, str) for one in said) else []


def see_sketch_of(
    layout: Layout, generation: Generation, header: Header, skeleton: Skeleton, findings: Findings
) -> None:
    """The order of the lists, and the sketch by which they are found."""
    path = layout.generation(generation.number)
    order = Order()
    with findings.of(path, "record", _ROLL_BACK):
        order = Order.read(layout, generation.number, generation.record, header.metric)
    if order.handicap is not None and len(order.handicap) != skeleton.nlist:
        findings.add(layout.spread_file, "structure", "it is of another number of lists")
    if order.sketch is None:
        return
    findings.count(files=1)
    with findings.of(order.sketch, "structure", MENDED):
        see_sketch(order.sketch, skeleton.nlist, skeleton.d_code)
        said = generation.record["order"].get("sketch_checksums")
        if said is None:
            findings.skip(str(order.sketch.relative_to(layout.root)), "its checksum was not recorded")
        elif block_checksums(order.sketch) != said:
            findings.add(order.sketch, "checksum", "it is not what was written", MENDED, block=0)
        elif not sketched(skeleton.nlist, skeleton.d_code):
            findings.add(order.sketch, "structure", "there are too few lists for a sketch", MENDED)


def _sealed(path: Path, findings: Findings) -> None:
    """Count a record that was read; one without a checksum is told of."""
    findings.count(records=1)
    if not check_seal(path, what="the record"):
        findings.skip(path.name, "the record has no checksum: an earlier version wrote it")
