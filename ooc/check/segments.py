"""The quick check of a segment: its record, its files and their sizes, and where its lists are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from ooc.check.findings import ANEW, MENDED, Findings
from ooc.durable import CHECK_BYTES, block_checksums, check_seal
from ooc.engine import Skeleton, header_skeleton
from ooc.errors import IndexDirError, OocError
from ooc.index.arrays import rows_head
from ooc.index.generation import Entry, Generation, Part
from ooc.index.keys import KeyTable, key_files
from ooc.index.layout import Header, SegmentLayout
from ooc.index.lists import ID_BYTES
from ooc.index.segment import open_vectors, read_checksums, read_ids, read_record, read_sizes
from ooc.types import IntArray, KeyKind

__all__ = ["ROW_BLOCK", "Checked", "Uses", "key_kind", "rows_do", "see_segment"]

#: Rows that a checksum of ``vectors.npy`` and ``scales.npy`` covers.
ROW_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What a generation has from a segment.

    Attributes
    ----------
    entry : Entry, optional
        Its lists.
    part, listed, keyed : Part, optional
        Rows whose vectors, ids or keys are there.
    """

    entry: Entry | None
    part: Part | None
    listed: Part | None
    keyed: Part | None

    @classmethod
    def of(cls, generation: Generation) -> dict[str, Self]:
        """By the name of each segment of which a generation needs something."""
        entries = {entry.name: entry for entry in generation.segments}
        own = {part.own: part for part in generation.parts}
        listed = {part.ids_in: part for part in generation.parts}
        keyed = {part.keyed: part for part in generation.parts}
        names = [name for name in dict.fromkeys([*entries, *own, *listed, *keyed]) if name is not None]
        return {
            name: cls(
                entry=entries.get(name), part=own.get(name), listed=listed.get(name), keyed=keyed.get(name)
            )
            for name in names
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a segment was found to be.

    Attributes
    ----------
    layout : SegmentLayout
    uses : Uses
        What the generation has from it.
    record : mapping
        What it says; empty where it is damaged.
    files : list of Path
        Those that the generation needs.
    checksums : mapping of str to list of str
        By file name.
    sizes, offsets : (nlist,) int64, optional
        Of its lists; None where they are not known.
    code_size : int
    """

    layout: SegmentLayout
    uses: Uses
    record: Mapping[str, Any]
    files: list[Path]
    checksums: Mapping[str, list[str]]
    sizes: IntArray | None
    offsets: IntArray | None
    code_size: int


def see_segment(
    layout: SegmentLayout,
    uses: Uses,
    header: Header,
    template: Skeleton | None,
    findings: Findings,
    *,
    first: bool,
) -> Checked:
    """Look at a segment.

    Parameters
    ----------
    layout : SegmentLayout
    uses : Uses
    header : Header
    template : Skeleton, optional
        What the template is, where that is known.
    first : bool
        Whether it is the first segment, which has a header.
    """
    record: dict[str, Any] = {}
    entry, part, keyed = uses.entry, uses.part, uses.keyed
    mending = rows_do(part)
    with findings.of(layout.record, "record", MENDED):
        record = read_record(layout)
        findings.count(records=1)
        if not check_seal(layout.record, what="the segment's record"):
            findings.skip(f"{layout.root.name}/segment.json", "the record has no checksum")
    files = _files(layout, uses, record, first=first)
    if keyed is not None:
        files += key_files(layout, key_kind(layout, record))
    _see_sizes(layout, files, record, findings, mending)
    checksums: Mapping[str, list[str]] = {}
    if layout.checksums.is_file():
        with findings.of(layout.checksums, "record", MENDED):
            checksums = read_checksums(layout.checksums)
    _see_heads(layout, files, record, findings, mending)
    sizes = offsets = None
    code_size = 0 if template is None else template.code_size
    if entry is not None:
        sizes, offsets, code_size = _see_lists(layout, entry, header, template, record, findings, first=first)
    if part is not None:
        _see_rows(layout, part, header, findings, mending)
    if uses.listed is not None and layout.ids.is_file():
        with findings.of(layout.ids, "structure"):
            read_ids(layout, uses.listed.rows)
    if keyed is not None and all(path.is_file() for path in files):
        with findings.of(key_files(layout, key_kind(layout, record))[0], "structure", MENDED):
            KeyTable(layout, keyed.rows)
    for path in files:
        _see_count(path, checksums.get(path.name), layout, part, findings)
    return Checked(
        layout=layout,
        uses=uses,
        record=record,
        files=files,
        checksums=checksums,
        sizes=sizes,
        offsets=offsets,
        code_size=code_size,
    )


def key_kind(layout: SegmentLayout, record: Mapping[str, Any]) -> KeyKind:
    """What the keys of a segment are: as its record says, else as its files look."""
    said = record.get("keys")
    kind = said.get("kind") if isinstance(said, Mapping) else None
    if kind in ("int64", "str"):
        return cast("KeyKind", kind)
    return "int64" if layout.keys.is_file() else "str"


def rows_do(part: Part | None) -> str:
    """What to do where rows that the index keeps are damaged: they may be in their store still."""
    return MENDED if part is not None and part.origin.uri and part.first_id is not None else ANEW


def _files(layout: SegmentLayout, uses: Uses, record: Mapping[str, Any], *, first: bool) -> list[Path]:
    """The files that a generation needs, but for keys."""
    files = [layout.checksums]
    if uses.entry is not None:
        files += [layout.header if first else layout.sizes, layout.lists]
    if uses.part is not None:
        files.append(layout.vectors)
        files += [path for path in (layout.scales,) if path.name in _said(record, "bytes") or path.exists()]
    if uses.listed is not None:
        files.append(layout.ids)
    return files


def _said(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a record says by file name."""
    said = record.get(name)
    return said if isinstance(said, Mapping) else {}


def _see_sizes(
    layout: SegmentLayout, files: list[Path], record: Mapping[str, Any], findings: Findings, mending: str
) -> None:
    said = _said(record, "bytes")
    if record and not said:
        findings.add(layout.record, "record", "it does not say how large the files are", MENDED)
    for path in files:
        do = mending if path in (layout.vectors, layout.scales, layout.ids) else MENDED
        findings.count(files=1)
        if not path.is_file():
            findings.add(path, "missing", "it is missing", do)
            continue
        size = path.stat().st_size
        if record and size != said.get(path.name):
            findings.add(path, "size", f"it has {size} bytes and its record says {said.get(path.name)}", do)


def _see_heads(
    layout: SegmentLayout, files: list[Path], record: Mapping[str, Any], findings: Findings, mending: str
) -> None:
    """What checksums of blocks leave out: headers of rows, and the file of checksums itself."""
    heads = record.get("heads")
    if not isinstance(heads, Mapping):
        if record:
            findings.skip(
                f"{layout.root.name}: headers of rows", "an earlier version wrote no checksums of them"
            )
        return
    for path in files:
        if path.name not in heads or not path.is_file():
            continue
        own = path == layout.checksums
        do = MENDED if own else mending
        with findings.of(path, "checksum", do):
            found = "".join(block_checksums(path)) if own else rows_head(path)
            if found != heads[path.name]:
                what = "it is not what was written" if own else "its header is not what was written"
                findings.add(path, "checksum", what, do)


def _see_lists(
    layout: SegmentLayout,
    entry: Entry,
    header: Header,
    template: Skeleton | None,
    record: Mapping[str, Any],
    findings: Findings,
    *,
    first: bool,
) -> tuple[IntArray | None, IntArray | None, int]:
    """Sizes and places of the lists, and bytes of a code; None where they are not sound."""
    place = layout.header if first else layout.sizes
    skeleton = template
    sizes: IntArray | None = None
    with findings.of(place, "structure", MENDED):
        if first:
            skeleton = header_skeleton(layout.header)
            sizes = skeleton.sizes
            if template is not None and _kind(skeleton) != _kind(template):
                findings.add(place, "structure", "it is not of the kind of the template", MENDED)
            if (skeleton.d, skeleton.l2) != (header.d, header.metric == "l2"):
                findings.add(place, "structure", "it is for other vectors or another metric", MENDED)
        elif template is not None:
            sizes = read_sizes(layout.sizes, template.nlist)
    if sizes is None or skeleton is None:
        return None, None, 0
    entry_bytes = skeleton.code_size + ID_BYTES
    bytes_ = layout.lists.stat().st_size if layout.lists.is_file() else -1
    if (sizes < 0).any() or (sizes > max(bytes_, 0) // entry_bytes).any():
        findings.add(place, "structure", f"its lists are larger than the {bytes_} bytes of lists", MENDED)
        return None, None, 0
    offsets = (np.cumsum(sizes) - sizes) * entry_bytes
    entries = int(sizes.sum())
    if first and (skeleton.offsets != offsets).any():
        findings.add(place, "structure", "its lists do not lie one after the other", MENDED)
    if first and (skeleton.entries, skeleton.end) != (entries, entries * entry_bytes):
        findings.add(place, "structure", f"it speaks of {skeleton.entries} entries and has {entries}", MENDED)
    if bytes_ != entries * entry_bytes:
        what = f"it has {bytes_} bytes, and {entries} entries take {entries * entry_bytes}"
        findings.add(layout.lists, "size", what, MENDED)
        return None, None, 0
    for name, said in (("rows", record.get("rows", entry.rows)), ("rows", entry.rows)):
        if said * header.lists_per_row != entries:
            findings.add(place, "structure", f"it has {entries} entries of {said} {name}", MENDED)
    if record.get("entries", entries) != entries:
        findings.add(
            layout.record, "record", f"it speaks of {record['entries']} entries of {entries}", MENDED
        )
    return sizes, offsets, skeleton.code_size


def _kind(skeleton: Skeleton) -> tuple[int, int, int, int, bool]:
    return skeleton.d, skeleton.d_code, skeleton.nlist, skeleton.code_size, skeleton.l2


def _see_rows(layout: SegmentLayout, part: Part, header: Header, findings: Findings, do: str) -> None:
    """Rows that the index keeps, and ids: shapes and dtypes."""
    if layout.vectors.is_file():
        try:
            with open_vectors(layout) as store:
                if (store.n, store.d) != (part.rows, header.d):
                    what = f"it is {store.n} x {store.d}, not {part.rows} x {header.d}"
                    findings.add(layout.vectors, "structure", what, do)
        except IndexDirError as error:
            findings.add(layout.vectors, "structure", error.message, do)
        except OocError as error:  # of the formats of stores
            findings.add(layout.vectors, "structure", error.message, do)


def _see_count(
    path: Path,
    digests: list[str] | None,
    layout: SegmentLayout,
    part: Part | None,
    findings: Findings,
) -> None:
    """Whether there are as many checksums of a file as there should be."""
    if path == layout.checksums or not path.is_file() or not findings.is_sound(path):
        return
    if path in (layout.vectors, layout.scales):
        wanted = -(-part.rows // ROW_BLOCK) if part is not None else 0
    else:
        wanted = -(-path.stat().st_size // CHECK_BYTES)
    if len(digests or ()) != wanted and findings.is_sound(layout.checksums):
        what = f"it has {len(digests or [])} checksums of {path.name}, not {wanted}"
        findings.add(layout.checksums, "structure", what, MENDED)
