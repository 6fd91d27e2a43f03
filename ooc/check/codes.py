"""The full check of what is in the lists: of a sample of rows, codes made anew from the vectors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ooc.build.rows import prepare
from ooc.build.train import Template, published_template
from ooc.build.workers import workers
from ooc.check.contents import Sample
from ooc.check.findings import MENDED, Findings
from ooc.check.segments import ROW_BLOCK, Checked
from ooc.errors import ConflictError, IndexDirError, OocError, Stopped, StoreError
from ooc.index.generation import Generation, Part
from ooc.index.layout import Header, Layout
from ooc.search.source import open_origin, open_own
from ooc.stores import Store
from ooc.types import AnyArray, BytesArray, FloatArray, IntArray, StoreLike

__all__ = ["Chosen", "Rows", "choose", "moved_stores", "see_codes", "see_stores", "template_bytes"]

#: Blocks of each segment whose codes are made anew.
_BLOCKS = 16
#: Of a code another processor may make up to this share otherwise, where it rounds otherwise.
_MOST_OTHER = 0.02
#: Lists that are so nearly as near may take each other's rows, for the same reason.
_AS_NEAR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Rows that were encoded together: ``first`` to ``stop`` of the index, from row ``at`` of a part on."""

    part: Part
    first: int
    stop: int
    at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The blocks of a segment that are looked at, and their entries in its lists."""

    checked: Checked
    blocks: list[Block]
    sample: Sample


def choose(checked: Checked, generation: Generation, seed: int) -> Chosen | None:
    """Some blocks of a segment, the same for the same seed: all where they are few."""
    entry = checked.uses.entry
    if entry is None or checked.sizes is None:
        return None
    blocks = [
        Block(
            part=part,
            first=max(part.first_row + at, entry.first_row),
            stop=min(part.first_row + min(at + ROW_BLOCK, part.rows), entry.stop_row),
            at=at,
        )
        for part, at in _grid(generation, entry.first_row, entry.stop_row, seed)
    ]
    blocks = [block for block in blocks if block.first < block.stop]
    starts = np.array([block.first for block in blocks], np.int64)
    stops = np.array([block.stop for block in blocks], np.int64)
    return Chosen(checked=checked, blocks=blocks, sample=Sample(starts, stops, checked.code_size))


def _grid(generation: Generation, first: int, stop: int, seed: int) -> Iterator[tuple[Part, int]]:
    """Blocks of the parts that lie between two rows, by where they begin in their part."""
    counts = []
    for part in generation.parts:
        begin, end = max(first - part.first_row, 0), min(stop - part.first_row, part.rows)
        counts.append(max(-(-end // ROW_BLOCK) - begin // ROW_BLOCK, 0) if begin < end else 0)
    total = sum(counts)
    rng = np.random.default_rng([seed, first])
    # The last one is often shorter; and any of them is as likely as the others.
    some = np.sort(rng.choice(total, min(total, _BLOCKS), replace=False)) if total else np.empty(0, np.int64)
    ends = np.cumsum(counts)
    for number in some.tolist():
        i = int(np.searchsorted(ends, number, side="right"))
        part = generation.parts[i]
        before = int(ends[i]) - counts[i]
        yield part, (max(first - part.first_row, 0) // ROW_BLOCK + number - before) * ROW_BLOCK


def moved_stores(
    store: StoreLike | Mapping[str, StoreLike] | None, generation: Generation
) -> dict[str, StoreLike]:
    """Where stores are now, by the URI under which they were indexed."""
    if store is None:
        return {}
    if isinstance(store, Mapping):
        return dict(store)
    return {generation.parts[0].origin.uri: store}


def template_bytes(layout: Layout) -> int:
    """Private memory that encoding takes, about: centroids thrice, and what is rotated."""
    return 3 * layout.centroids_file.stat().st_size + (64 << 20)


class Rows:
    """The vectors of the parts: the stores where they can be opened, else rows that the index keeps exactly.

    Why a part has none is told of.
    """

    def __init__(
        self,
        layout: Layout,
        generation: Generation,
        d: int,
        moved: Mapping[str, StoreLike],
        exact: Mapping[str, bool],
        findings: Findings,
    ) -> None:
        self._layout, self._generation, self._d, self._moved = layout, generation, d, moved
        self._exact, self._findings = exact, findings
        self._opened: dict[int, tuple[Store, int] | None] = {}

    def of(self, part: Part) -> tuple[Store, int] | None:
        """A store, and the row of it that is the part's first."""
        key = part.first_row
        if key not in self._opened:
            self._opened[key] = self._open(part)
        return self._opened[key]

    def _open(self, part: Part) -> tuple[Store, int] | None:
        name = part.origin.uri or f"the rows from {part.first_row} on"
        try:
            store = open_origin(self._layout, part, self._d, self._moved)
            self._findings.count(stores=1)
            return store, part.origin.first
        except ConflictError as error:
            if part.own is None:
                self._findings.add(
                    name, "store", error.message, error.hint or "name the store that was indexed"
                )
                return None
        except OocError as error:
            if part.own is None:
                self._findings.skip(f"the rows of {name}, and their codes", error)
                return None
        if not self._exact.get(str(part.own), False):
            self._findings.skip(f"codes of {name}", "the index keeps its rows rounded, or they are damaged")
            return None
        try:
            return open_own(self._layout, part, self._d), 0
        except (IndexDirError, StoreError) as error:
            self._findings.skip(f"codes of {name}", error)
            return None

    def close(self) -> None:
        """Close what was opened."""
        for one in self._opened.values():
            if one is not None:
                one[0].close()
        self._opened.clear()


def see_stores(rows: Rows, generation: Generation) -> None:
    """See that the stores hold the rows that were indexed."""
    for part in generation.parts:
        rows.of(part)


def see_codes(
    layout: Layout,
    header: Header,
    chosen: list[Chosen],
    rows: Rows,
    imported: Part | None,
    findings: Findings,
    stop: threading.Event | None,
) -> None:
    """Compare codes in the lists with codes made anew, and lists with those that the rows belong to.

    Which lists the rows of the part ``imported`` belong to is not known: others chose them.
    """
    blocks = [block for one in chosen for block in one.blocks if rows.of(block.part) is not None]
    if not blocks:
        return
    template = published_template(layout, header.metric)
    with workers(1) as pool:
        for one in chosen:
            found = one.sample.entries()
            for block in one.blocks:
                Stopped.raise_if(stop)
                there = rows.of(block.part)
                if there is None:
                    continue
                store, first = there
                begin = block.at + first
                data = store.read(begin, min(begin + ROW_BLOCK, block.part.rows + first))
                # As when they were filled: a block at a time, by one thread.
                made = pool.submit(_encode, template, data, header).result()
                trusted = block.part is not imported
                _compare(one.checked, block, found, made, template, findings, placed=trusted)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A block as it is encoded now.

    ``x`` as rows are assigned, ``y`` as the code sees them; ``lists`` ``(m, lists)``, ``codes``, and ``bad``,
    the rows that are in none.
    """

    x: FloatArray
    y: FloatArray
    lists: IntArray
    codes: BytesArray
    bad: IntArray


def _encode(template: Template, data: AnyArray, header: Header) -> _Made:
    prepared = prepare(data, header.metric)
    low = None if template.basis is None else prepared.x @ template.basis
    lists, codes = template.encode(prepared.x, low, spill=header.lists_per_row > 1)
    y = template.codec.transform(prepared.x)
    x = prepared.x if template.codec.isometric else y
    return _Made(x=x, y=y, lists=lists, codes=codes, bad=prepared.bad)


def _compare(
    checked: Checked,
    block: Block,
    found: tuple[IntArray, IntArray, BytesArray],
    made: _Made,
    template: Template,
    findings: Findings,
    *,
    placed: bool,
) -> None:
    """Hold a block's entries in the lists against it; ``placed``: they must be in the lists that are near."""
    rows, lists, codes = found
    begin, end = np.searchsorted(rows, [block.first, block.stop]).tolist()
    rows, lists, codes = rows[begin:end], lists[begin:end], codes[begin:end]
    findings.count(codes=len(rows))
    inside = rows - block.part.first_row - block.at
    path = checked.layout.lists
    if np.isin(inside, made.bad).any():
        row = int(rows[np.isin(inside, made.bad)][0])
        findings.add(path, "codes", f"row {row} is in it, and holds NaN or infinity", MENDED)
        return
    same = made.lists[inside] == lists[:, None]
    expected = made.codes[inside, same.argmax(axis=1)]
    rest = np.flatnonzero(~same.any(axis=1))
    if len(rest):
        expected[rest] = template.codec.encode(made.y[inside[rest]], lists[rest])
        near = np.full(len(rest), not placed)
        if placed:
            # Where two lists are as near, which comes first is a matter of rounding.
            near |= template.assigner.as_near(
                made.x[inside[rest]], made.lists[inside[rest], 0], lists[rest], _AS_NEAR
            )
        if made.lists.shape[1] > 1:
            # The second list hangs on the first; few rows have one that another processor would not choose.
            near |= len(rest) <= max(2, int(_MOST_OTHER * len(rows)))
        if not near.all():
            row, number = int(rows[rest[~near]][0]), int(lists[rest[~near]][0])
            what = f"row {row} and {int((~near).sum()) - 1} more are in lists that they do not belong to"
            findings.add(path, "codes", f"{what}; it is in list {number}", MENDED)
    other = ~template.codec.alike(codes, expected, _MOST_OTHER)
    if other.any():
        row = int(rows[other][0])
        what = f"the code of row {row} and of {int(other.sum()) - 1} more is not that of its vector"
        findings.add(path, "codes", what, MENDED)
