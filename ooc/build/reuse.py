"""Reusing the template of another index: what it is of, and the copy of it.

A template holds no rows, so it can serve any collection of the same kind: last month's, a part, a
larger one. It is copied, so the new index needs the old one no more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ooc.build.factory import parse_factory
from ooc.durable import DurableFile, make_directory, read_json, write_sealed
from ooc.errors import IndexDirError, PlanError
from ooc.index.layout import Layout
from ooc.types import PathOrStr

if TYPE_CHECKING:
    from ooc.build.plan import Options, Plan

__all__ = ["Reusable", "copy_files", "copy_template", "reusable", "see_template_record"]

_COPY_BYTES = 1 << 20
_LISTS = re.compile(r"IVF\d+(_HNSW\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reusable:
    """What the record of a template says that a plan takes over.

    ``digest`` is of the contents: templates of equal digests make equal codes.
    """

    factory: str
    seed: int
    sample_rows: int
    digest: str


def reusable(template: PathOrStr, options: Options, *, d: int) -> Reusable:
    """What the template of the index ``template`` is, for rows of ``d`` dimensions.

    Raises
    ------
    IndexDirError
        There is no index, or it was not trained.
    PlanError
        It is for other dimensions, another metric or another code than asked for.
    """
    layout = Layout.of(template).of_live()
    header = layout.read_header()
    record = _record(layout)
    if (header.d, header.metric) != (d, options.metric):
        raise PlanError(
            f"the template of {layout.root} is for {header.d}-d vectors with metric {header.metric}, "
            f"not for {d}-d vectors with metric {options.metric}",
            kind="template-differs",
            hint="Name an index of the same kind of vectors, or train a template.",
        )
    factory = record["factory"]
    if options.factory is not None:
        asked = parse_factory(options.factory, n=1 << 40, d=d, metric=options.metric).text
        # Lists that are left out are the template's.
        same = asked == factory or (
            not re.search(r"IVF\d", options.factory) and _LISTS.sub("", asked) == _LISTS.sub("", factory)
        )
        if not same:
            raise PlanError(
                f"the template of {layout.root} is {factory}, not {options.factory}",
                kind="template-differs",
                hint="Leave --factory out (factory=None) to take the template's, or train a template.",
            )
    return Reusable(
        factory=factory,
        seed=record["seed"],
        sample_rows=record["sample_rows"],
        digest=_digest(record),
    )


def copy_template(source: Layout, plan: Plan, layout: Layout) -> None:
    """Copy the template of the index ``source`` into ``layout``, its record last.

    Raises
    ------
    IndexDirError
        A file of it is missing, or is not what its record says.
    """
    source = source.of_live()
    record = _record(source)
    _copy_files(source, layout, record)
    write_sealed(layout.train_record, {**record, "plan": plan.digest, "reused": plan.template})


def copy_files(source: Layout, layout: Layout) -> None:
    """Copy a template as it is, its record last; raises as ``copy_template``."""
    record = _record(source)
    _copy_files(source, layout, record)
    write_sealed(layout.train_record, record)


def _copy_files(source: Layout, layout: Layout, record: dict[str, Any]) -> None:
    make_directory(layout.template)
    for name, checksums in record["checksums"].items():
        path = source.template / Path(name).name
        try:
            with path.open("rb") as reading, DurableFile(layout.template / path.name) as file:
                while piece := reading.read(_COPY_BYTES):
                    file.write(piece)
                if file.checksums() != checksums:
                    raise IndexDirError(
                        f"{path} is not what its record says: it was damaged or changed",
                        kind="index-damaged",
                        hint="Name another index, or train a template.",
                    )
        except FileNotFoundError:
            raise IndexDirError(f"{path} is missing", kind="index-damaged") from None


def _record(layout: Layout) -> dict[str, Any]:
    if not layout.train_record.exists():
        raise IndexDirError(
            f"{layout.root} holds no trained template",
            kind="not-trained",
            hint="Name an index that was built, or one that `ooc train` made.",
        )
    record = read_json(layout.train_record, what="the template's record")
    see_template_record(layout.train_record, record)
    return record


def see_template_record(path: Path, record: Mapping[str, Any]) -> None:
    """See that the record of a template has what is read of it.

    Raises
    ------
    IndexDirError
        Something is missing, or of another type.
    """
    kinds = {"factory": str, "seed": int, "sample_rows": int, "checksums": dict}
    wrong = [name for name, kind in kinds.items() if type(record.get(name)) is not kind]
    if wrong:
        raise IndexDirError(
            f"{path} is damaged: its {wrong[0]} is {record.get(wrong[0])!r}"[:500],
            kind="index-damaged",
            hint="`ooc verify --repair` makes it anew; or name another index, or train a template.",
        )


def _digest(record: dict[str, Any]) -> str:
    """Of all that the record says of the contents: which plan it was trained for does not count."""
    said = {key: value for key, value in record.items() if key not in ("plan", "reused")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]
