"""A generation: the segments, deletions and places of rows that a reader sees together.

Rows are numbered in the order in which they came into the index: first those of the store it was built
of, then what was appended or replaced since. Lists hold these numbers. A row's id, which a search returns,
is its number too, until something is replaced: the new row keeps the id of the old one
(``ooc.index.numbering``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ooc.durable import read_json
from ooc.errors import IndexDirError
from ooc.index.dead import Dead
from ooc.index.layout import Layout

__all__ = ["MOST_ROWS", "OWN_TEMPLATE", "Entry", "Generation", "Origin", "Part", "id_end"]

#: An index numbers fewer rows: what is kept of each of them in memory, a bit where rows are dead, is bounded.
MOST_ROWS = 1 << 33
#: Ids of an import may be any.
_MOST_ID = (1 << 63) - 1

_DEAD_FILE = re.compile(r"[0-9]{1,18}\.dead")
_SEGMENT = re.compile(r"[0-9A-Za-z]{1,64}")

#: The feature of a generation that was trained anew: its lists mean nothing under the first template.
OWN_TEMPLATE = "own-template"

#: What of generations this version can read; one that asks for more is refused, not misread.
_KNOWN_FEATURES = frozenset({OWN_TEMPLATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where rows came from.

    Attributes
    ----------
    uri, format : str
        Of the store; the URI is empty for an array in memory.
    mapped : bool
        Whether rows can be read from there one by one.
    fingerprint : str
        Of the first ``n`` rows of the store.
    n : int
    first : int
        The row of the store that comes first here.
    """

    uri: str
    format: str
    mapped: bool
    fingerprint: str
    n: int
    first: int = 0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What ``asdict`` gave; errors of many kinds where it is damaged."""
        one = cls(**_known(cls, record))
        _see_whole(one.n, one.first)
        kinds = {"uri": str, "format": str, "fingerprint": str, "mapped": bool}
        if any(type(getattr(one, name)) is not kind for name, kind in kinds.items()) or "\0" in one.uri:
            raise ValueError(f"origin {one}")
        return one


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows that are numbered one after another and whose vectors lie together.

    Attributes
    ----------
    first_row, rows : int
    first_id : int, optional
        The id of the first one; those of the others follow. None: ``ids.npy`` of a segment has them.
    own : str, optional
        The segment in whose directory the index keeps these rows itself.
    origin : Origin
    keyed : str, optional
        The segment in whose directory the keys of these rows are; None where they have none.
    id_stop : int
        One more than the largest id of a part whose ids are in a file.
    listed : str, optional
        The segment whose ``ids.npy`` has the ids, where that is not ``own``.
    """

    first_row: int
    rows: int
    first_id: int | None
    own: str | None
    origin: Origin
    keyed: str | None = None
    id_stop: int = 0
    listed: str | None = None

    @property
    def picked(self) -> bool:
        """Whether its rows are some that replaced others, or that a compaction left.

        What its origin had in their places is not known then: they are read from the index.
        """
        return self.first_id is None and self.listed is None

    @property
    def ids_in(self) -> str | None:
        """The segment whose ``ids.npy`` has the ids; None where they follow one another."""
        return None if self.first_id is not None else self.listed or self.own

    @property
    def id_end(self) -> int:
        """One more than the largest id."""
        return self.id_stop if self.first_id is None else self.first_id + self.rows

    @property
    def stop_row(self) -> int:
        """One more than the number of the last."""
        return self.first_row + self.rows

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """What ``to_record`` gave; errors of many kinds where it is damaged."""
        one = cls(**{**_known(cls, record), "origin": Origin.from_record(record["origin"])})
        _see_whole(one.first_row, one.rows)
        _see_whole(one.id_stop, one.first_id or 0, most=_MOST_ID)
        for name in (one.own, one.listed, one.keyed):
            if name is not None:
                _see_segment(name)
        return one

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A segment of a generation: its name, rows in its lists, and how many of these are dead.

    ``first_row`` and ``stop_row`` are those between which its rows lie.
    """

    name: str
    rows: int
    first_row: int
    stop_row: int
    dead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What the record of a generation says.

    Attributes
    ----------
    number : int
    record : mapping
        All of it.
    segments : tuple of Entry
        In the order of their rows.
    parts : tuple of Part
        In the order of their rows, without a gap from 0 on.
    dead_file : mapping, optional
        ``file``, ``digest`` and ``rows``: the bitmap of rows that were deleted or replaced.
    """

    number: int
    record: Mapping[str, Any]
    segments: tuple[Entry, ...]
    parts: tuple[Part, ...]
    dead_file: Mapping[str, Any] | None

    @property
    def factory(self) -> str:
        """What its lists are, as faiss reads it."""
        return str(self.record.get("factory") or self.record["plan"]["factory"])

    @property
    def row_end(self) -> int:
        """One more than the largest number of a row."""
        return self.parts[-1].stop_row

    @property
    def id_end(self) -> int:
        """One more than the largest id that was given."""
        return id_end(self.record, self.parts)

    @property
    def gone(self) -> tuple[Origin, ...]:
        """The stores of rows that are no longer there: what is known of them is that they were."""
        return tuple(Origin.from_record(one) for one in self.record.get("gone", ()))

    @property
    def keyed(self) -> bool:
        """Whether the rows have keys."""
        return self.parts[0].keyed is not None

    @property
    def directories(self) -> frozenset[str]:
        """The segments whose files it needs: lists, or vectors, ids and keys."""
        return frozenset(entry.name for entry in self.segments) | self.holding_rows

    @property
    def holding_rows(self) -> frozenset[str]:
        """The segments of which it needs vectors, ids or keys."""
        names = (name for part in self.parts for name in (part.own, part.ids_in, part.keyed))
        return frozenset(name for name in names if name is not None)

    @property
    def rows(self) -> int:
        """Rows that a search may find."""
        return sum(one.rows - one.dead for one in self.segments)

    @property
    def unfinished_deletions(self) -> bool:
        """Whether lists hold rows that are dead."""
        return any(one.dead for one in self.segments)

    def read_dead(self, layout: Layout) -> Dead:
        """The rows that are dead."""
        if self.dead_file is None:
            return Dead(self.row_end)
        path = layout.generation(self.number).parent / self.dead_file["file"]
        dead = Dead.read(path, self.dead_file["digest"], self.row_end)
        if dead.count != self.dead_file["rows"]:
            raise IndexDirError(
                f"{path} has {dead.count} dead rows, "
                f"and generation {self.number} speaks of {self.dead_file['rows']}",
                kind="index-damaged",
                hint="Copy the directory anew, or go back to a generation before it (`ooc rollback`).",
            )
        return dead

    @classmethod
    def read(cls, layout: Layout, number: int) -> Self:
        """The generation of that number.

        Raises
        ------
        IndexDirError
            Its record is missing or damaged, or has features that this version does not know.
        """
        record = read_json(layout.generation(number), what=f"generation {number}")
        features = record.get("features")
        unknown = set(map(str, features)) - _KNOWN_FEATURES if isinstance(features, list) else set()
        if unknown:
            raise IndexDirError(
                f"{layout.generation(number)} was written with features {', '.join(sorted(unknown))}, "
                "which this version does not know",
                kind="index-newer",
                hint="Install a newer ooc.",
            )
        try:
            return cls.from_record(number, record)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise IndexDirError(
                f"{layout.generation(number)} is damaged: {error!r}",
                kind="index-damaged",
                hint="Copy the directory anew, or remove it and build.",
            ) from error

    @classmethod
    def from_record(cls, number: int, record: Mapping[str, Any]) -> Self:
        """As ``read``; errors of many kinds where the record is damaged."""
        parts = tuple(Part.from_record(part) for part in record.get("parts") or [_only_part(record)])
        at = 0
        for part in parts:
            if part.first_row != at or part.rows < 1 or (part.first_id is None and part.ids_in is None):
                raise ValueError(f"part {part}")
            if (part.keyed is None) != (parts[0].keyed is None):
                raise ValueError(f"part {part}")
            at = part.stop_row
        _see_whole(at)
        ids = [(part.first_id, part.rows) for part in parts if part.first_id is not None]
        # They are given in the order of the rows.
        ends = [0, *(first + rows for first, rows in ids)]
        if any(first < end for (first, _), end in zip(ids, ends, strict=False)):
            raise ValueError("ids of parts")
        segments = tuple(
            Entry(**{"first_row": 0, "stop_row": at, **_known(Entry, entry)}) for entry in record["segments"]
        )
        before = 0
        for one in segments:
            _see_segment(one.name)
            _see_whole(one.rows, one.first_row, one.stop_row, one.dead)
            if not before <= one.first_row <= one.stop_row <= at or not 0 <= one.dead <= one.rows:
                raise ValueError(f"segment {one}")
            before = one.stop_row
        if not segments or len({one.name for one in segments}) != len(segments):
            raise ValueError("no segments, or one twice")
        plan = record["plan"]
        for said in (plan["factory"], record.get("factory") or ""):
            if not isinstance(said, str):
                raise ValueError(f"factory {said!r}")
        # Other generations and files are named by these.
        for name in ("generation", "built", "before", "skipped_rows", "zero_rows"):
            _see_whole(record.get(name, 0))
        _see_whole(record.get("id_end", 0), most=_MOST_ID)
        for origin in record.get("gone", ()):
            Origin.from_record(origin)
        if record.get("generation", number) != number:
            raise ValueError(f"it is the record of generation {record['generation']}")
        store = record["store"]
        if not isinstance(store, Mapping) or not all(
            isinstance(store[name], str) for name in ("uri", "format")
        ):
            raise ValueError(f"the store is {store!r}")
        order = record.get("order") or {}
        if not isinstance(order, Mapping):
            raise ValueError(f"the order of the lists is {order!r}")
        _see_whole(order.get("sketch_of", 0))
        by = record.get("calibrated", {"generation": number, "segments": []})
        _see_whole(by["generation"], by.get("live", 0), record["skipped_rows"])
        for entry in by["segments"]:
            _see_whole(entry["rows"])
            error = entry.get("assignment_error", 0)
            if type(error) not in (int, float) or not 0 <= error < math.inf:
                raise ValueError(f"calibrated by {entry!r}")
        dead = record.get("dead")
        if dead is not None:
            if not _DEAD_FILE.fullmatch(dead["file"]) or not isinstance(dead["digest"], str):
                raise ValueError(f"dead rows in {dead['file']!r}")
            _see_whole(dead["rows"])
        return cls(number=number, record=record, segments=segments, parts=parts, dead_file=dead)


def id_end(record: Mapping[str, Any], parts: Sequence[Part]) -> int:
    """One more than the largest id that was given: of parts, and of those that are no longer there."""
    given: int = max(int(record.get("id_end", 0)), *(part.id_end for part in parts), 0)
    return given


def _see_whole(*values: object, most: int = MOST_ROWS) -> None:
    """See that these are numbers of rows: whole, and no more than there can be."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"{value!r} where a number of rows is wanted")


def _see_segment(name: object) -> None:
    """See that a name is that of a segment, and leads nowhere else."""
    if not isinstance(name, str) or not _SEGMENT.fullmatch(name):
        raise ValueError(f"segment {name!r}")


def _known(kind: type[Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of a record; a newer one may have written more."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in record.items() if name in names}


def _only_part(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a generation that was built of one store and not changed since."""
    plan, store = record["plan"], record["store"]
    return {
        "first_row": 0,
        "rows": plan["n"],
        "first_id": 0,
        "own": record["segments"][0]["name"] if plan["copy_vectors"] else None,
        "keyed": record["segments"][0]["name"] if plan.get("keys") else None,
        "origin": {
            "uri": store["uri"],
            "format": store["format"],
            "mapped": store["mapped"],
            "fingerprint": plan["fingerprint"],
            "n": plan["n"],
            "first": 0,
        },
    }
