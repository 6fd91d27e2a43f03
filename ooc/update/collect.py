"""Generations that are no longer read: what they are, how to go back to one, how to remove them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ooc.build.begun import forget
from ooc.durable import read_json, remove_files, remove_tree
from ooc.errors import ArgumentError, ResourceError
from ooc.index.generation import Generation
from ooc.index.layout import Layout
from ooc.index.lock import is_held, publisher
from ooc.index.segment import Segments
from ooc.search.queries import check_at_least
from ooc.types import PathOrStr
from ooc.update.changing import clear

__all__ = ["gc", "generations", "rollback"]


@ResourceError.if_refused("looking at generations")
def generations(index: PathOrStr) -> list[dict[str, Any]]:
    """The generations of an index that are there, the oldest first; see ``ooc.generations``."""
    layout = Layout.of(index)
    layout.read_header()
    current = layout.live()
    found = []
    for number in layout.numbers():
        one = Generation.read(layout, number)
        report = layout.report(number)
        said = read_json(report, what="the report") if report.exists() else {}
        found.append(
            {
                "generation": number,
                "live": number == current,
                "held": is_held(layout.generation(number)),
                "operation": said.get("operation", "build"),
                "before": one.record.get("before"),
                "rows": one.rows,
                "dead_rows": sum(entry.dead for entry in one.segments),
                "segments": [entry.name for entry in one.segments],
                "published": layout.generation(number).stat().st_mtime,
            }
        )
    return found


@ResourceError.if_refused("going back")
def rollback(index: PathOrStr, generation: int) -> dict[str, Any]:
    """Make an earlier generation the live one again; see ``ooc.rollback``."""
    layout = Layout.of(index)
    header = layout.read_header()
    with publisher(layout.lock):
        before = layout.live()
        if before is not None:
            clear(layout)
        there = layout.numbers()
        if generation not in there:
            raise ArgumentError(
                f"{layout.root} has no generation {generation}; there are {', '.join(map(str, there))}",
                kind="generation",
                hint="`ooc info INDEX --generations` tells of each.",
            )
        one = Generation.read(layout, generation)
        one.read_dead(layout)
        layouts = [layout.segment(entry.name) for entry in one.segments]
        Segments(layouts, header.lists_per_row).close()  # says so where something is missing
        layout.make_live(generation)
        return {"index": str(layout.root), "generation": generation, "before": before, "rows": one.rows}


@ResourceError.if_refused("collecting")
def gc(index: PathOrStr, *, keep: int = 0) -> dict[str, Any]:
    """Remove generations that nobody reads, and what was left unfinished; see ``ooc.gc``."""
    layout = Layout.of(index)
    layout.read_header()
    keep = check_at_least("keep", keep, 0)
    with publisher(layout.lock):
        current = layout.published()
        there_bytes = _bytes(layout)
        clear(layout)
        there = layout.numbers()
        others = [number for number in there if number != current]
        before = [number for number in others if number < current]
        kept = {current, *before[max(0, len(before) - keep) :]}
        kept |= {number for number in others if is_held(layout.generation(number))}
        if layout.builds.exists():  # before numbers of generations go that its plan speaks of
            with contextlib.suppress(OSError):
                forget(layout)
        _remove(layout, [number for number in there if number not in kept], kept)
        return {
            "index": str(layout.root),
            "removed": sorted(set(there) - kept),
            "kept": sorted(kept),
            "freed_bytes": there_bytes - _bytes(layout),
        }


def _bytes(layout: Layout) -> int:
    """All that is in the directory."""
    return sum(path.stat().st_size for path in layout.root.rglob("*") if path.is_file())


def _remove(layout: Layout, gone: list[int], kept: set[int]) -> None:
    """Remove records of generations, then what none of those kept needs."""
    records = layout.generation(0).parent
    staying: set[Path] = set()
    lists: set[str] = set()
    rows: set[str] = set()
    templates: set[Path] = set()
    for number in kept:
        one = Generation.read(layout, number)
        staying |= {layout.generation(number), layout.report(number), layout.sketch(number)}
        order = one.record.get("order") or {}
        staying.add(layout.sketch(int(order.get("sketch_of", number))))
        staying.add(layout.report(int(one.record.get("built", number))))
        if one.dead_file is not None:
            staying.add(records / one.dead_file["file"])
        lists |= {entry.name for entry in one.segments}
        rows |= one.holding_rows
        templates.add(layout.of_generation(one.record).template)
    # Records first: a generation whose files are gone is not there.
    remove_files([layout.generation(number) for number in gone])
    remove_files([path for path in records.glob("*") if path not in staying])
    for directory in sorted(layout.segment("s0").root.parent.glob("*")):
        if directory.name in lists:
            remove_files(directory.glob(".*.partial"))
        elif directory.name in rows:  # vectors or keys, but not the lists
            place = layout.segment(directory.name)
            remove_files([path for path in directory.glob("*") if path not in place.of_rows])
        else:
            remove_tree(directory)
    for directory in layout.templates:
        if directory not in templates:
            remove_tree(directory)
    remove_files(layout.root.glob(".*.partial"))
    remove_tree(layout.retraining)
