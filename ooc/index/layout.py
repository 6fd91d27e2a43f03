"""Where everything lies in an index directory, and the small records that say what it is.

    my.ooc/
      ooc.json                 what this directory is: format version, dimensions, metric
      CURRENT                  the number of the live generation; replaced atomically
      lock                     one publisher at a time; fillers have leases of their shards
      template/                template.faiss  centroids.npy  spread.npy  train.json
      [template<n>/]           the same, of generations that were trained anew
      segments/<name>/         index.faiss  lists.ivfdata  [vectors.npy]  [scales.npy]
                               [keys.npy, or keys.utf8  key_offsets.npy]  [key_hashes.npy  key_rows.npy]
                               blocks.xxh3  segment.json
      generations/<n>.json     segments, store, plan, order of the lists, recall by setting
      [generations/<n>.sketch.faiss]   by which many lists are found
      [generations/publishing]   the number of one that is being published
      generations/<n>.report.json   times and figures of the build that made it
      build/<digest>/          the build in the making; gone once it is published
      [retrain/<n>/]           the live rows of a generation, while they are built anew

All names inside are relative: the directory can be moved, copied, and mounted read-only.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import xxhash

from ooc import disk
from ooc.durable import (
    check_seal,
    make_directory,
    partial_name,
    read_json,
    remove_file,
    rename,
    write_bytes,
    write_json,
    write_sealed,
)
from ooc.engine import LISTS_NAME
from ooc.errors import ArgumentError, ConflictError, IndexDirError, ResourceError
from ooc.types import METRICS, Metric, PathOrStr

__all__ = [
    "FORMAT_VERSION",
    "MOST_D",
    "SCALED",
    "SPILL",
    "BuildLayout",
    "Header",
    "Layout",
    "SegmentLayout",
    "see_outside",
    "see_plain",
]

#: Raised when a reader of the version before could give wrong answers.
FORMAT_VERSION = 1

#: The feature of an index whose rows are in two lists each: its lists hold every id twice.
SPILL = "spill"

#: The feature of an index whose own rows are int8 with a scale each: without it they mean nothing.
SCALED = "scaled-rows"

#: What this version can read; a directory that asks for another is refused, not misread.
_KNOWN_FEATURES = frozenset({SPILL, SCALED})

#: More dimensions than faiss reads.
MOST_D = 1 << 20

#: More bytes of ``CURRENT`` than are looked at, and digits of a number in it.
_CURRENT_BYTES, _DIGITS = 64, 18
_NUMBER = re.compile(r"[0-9]{1,18}")

#: The directory of the first template; those that came later have a number behind it.
_TEMPLATE = "template"


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What ``ooc.json`` says."""

    d: int
    metric: Metric
    features: frozenset[str] = frozenset()
    format_version: int = FORMAT_VERSION

    @property
    def lists_per_row(self) -> int:
        """How many lists a row is in."""
        return 2 if SPILL in self.features else 1


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of an index directory."""

    root: Path
    #: The directory of the template: a generation that was trained anew names its own.
    template_name: str = _TEMPLATE

    @classmethod
    def of(cls, path: PathOrStr) -> Layout:
        """The layout below ``path``, which need not exist.

        Raises
        ------
        ArgumentError
            It is no path.
        """
        if not isinstance(path, str | os.PathLike):
            raise ArgumentError(
                f"an index is named by the path of its directory, not by {path!r}", kind="index"
            )
        return cls(Path(path).expanduser().absolute())

    def of_generation(self, record: Mapping[str, Any]) -> Layout:
        """The layout with the template that the record of a generation names.

        Raises
        ------
        IndexDirError
            It is no name of a template.
        """
        name = record.get("template", _TEMPLATE)
        if not isinstance(name, str) or not re.fullmatch(_TEMPLATE + "[0-9]*", name):
            raise IndexDirError(f"{self.root} names a template {name!r}", kind="index-damaged")
        return replace(self, template_name=name)

    def of_live(self) -> Layout:
        """The layout with the template of the live generation; the first one where none was published."""
        number = self.live()
        if number is None:
            return self
        return self.of_generation(read_json(self.generation(number), what=f"generation {number}"))

    @property
    def templates(self) -> list[Path]:
        """The directories of all templates that are there."""
        return [path for path in self.root.glob(_TEMPLATE + "*") if path.is_dir()]

    @property
    def header(self) -> Path:
        return self.root / "ooc.json"

    @property
    def current(self) -> Path:
        return self.root / "CURRENT"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def template(self) -> Path:
        return self.root / self.template_name

    @property
    def template_file(self) -> Path:
        return self.template / "template.faiss"

    @property
    def centroids_file(self) -> Path:
        return self.template / "centroids.npy"

    @property
    def spread_file(self) -> Path:
        return self.template / "spread.npy"

    @property
    def template_files(self) -> tuple[Path, ...]:
        """All of a template but its record."""
        return self.template_file, self.centroids_file, self.spread_file

    @property
    def train_record(self) -> Path:
        return self.template / "train.json"

    @property
    def segments(self) -> Path:
        return self.root / "segments"

    def segment(self, name: str) -> SegmentLayout:
        return SegmentLayout(self.segments / name)

    def generation(self, number: int) -> Path:
        return self.root / "generations" / f"{number}.json"

    @property
    def publishing(self) -> Path:
        """Names the generation that is being published: there only meanwhile, or after a crash."""
        return self.root / "generations" / "publishing"

    def report(self, number: int) -> Path:
        return self.root / "generations" / f"{number}.report.json"

    def sketch(self, number: int) -> Path:
        """The sketch of the centroids by which a generation finds lists, where it has one."""
        return self.root / "generations" / f"{number}.sketch.faiss"

    @property
    def builds(self) -> Path:
        return self.root / "build"

    @property
    def retraining(self) -> Path:
        """Where live rows are built anew, those of each generation in a directory named by its number."""
        return self.root / "retrain"

    def build(self, digest: str, scratch: Path | None = None) -> BuildLayout:
        return BuildLayout(self.builds / digest, scratch)

    def is_index(self) -> bool:
        """Whether the directory is one of ours, finished or not."""
        return self.header.is_file()

    def claim(self, header: Header) -> None:
        """Make the directory one of ours, or see that it is one already for such vectors.

        Raises
        ------
        ConflictError
            When something else is there; it is left as it is.
        """
        if self.is_index():
            found = self.read_header()
            if (found.d, found.metric) != (header.d, header.metric):
                raise ConflictError(
                    f"{self.root} is an index of {found.d}-d vectors with metric {found.metric}, "
                    f"not of {header.d}-d vectors with metric {header.metric}",
                    kind="index-exists",
                    hint="Name another directory, or remove this one first.",
                )
            return
        begun = partial_name(self.header)  # a run was killed that had come no further
        if self.root.exists() and (not self.root.is_dir() or any(p != begun for p in self.root.iterdir())):
            raise ConflictError(
                f"{self.root} exists and is not an index of ours",
                kind="destination-exists",
                hint="Name a directory that does not exist or is empty.",
            )
        make_directory(self.root)
        record = {"format": "ooc", "format_version": FORMAT_VERSION, "features": sorted(header.features)}
        write_sealed(self.header, {**record, "d": header.d, "metric": header.metric})

    def read_header(self) -> Header:
        """What ``ooc.json`` says.

        Raises
        ------
        IndexDirError
            When the directory is missing, something else, of a newer format, or damaged.
        """
        try:
            there, ours = self.root.exists(), self.header.is_file()
        except OSError as error:
            raise IndexDirError(
                f"{self.root} cannot be read: {error.strerror}",
                kind="index-unreadable",
                hint="Ask for the right to enter and read this directory.",
            ) from error
        if not there:
            raise IndexDirError(f"there is no index at {self.root}", kind="index-missing")
        if not ours:
            raise IndexDirError(
                f"{self.root} is not an index directory: it has no ooc.json",
                kind="index-foreign",
                hint="Name the directory that `ooc build` made.",
            )
        see_plain(self.root, but=(self.builds, self.retraining))
        what = "the index's header"
        # A newer format may have other checksums: what it is comes first.
        record = read_json(self.header, what=what, sealed=False)
        if record.get("format") != "ooc":
            raise IndexDirError(f"{self.header} is not a header of ours", kind="index-foreign")
        number = record.get("format_version")
        features = record.get("features")
        named = frozenset(map(str, features)) if isinstance(features, list) else frozenset()
        unknown = sorted(named - _KNOWN_FEATURES)
        if not _is_whole(number) or number > FORMAT_VERSION or unknown:
            written = f"features {', '.join(unknown)}" if unknown else f"format {number!r}"
            raise IndexDirError(
                f"{self.root} was written in {written}; this version reads format {FORMAT_VERSION}",
                kind="index-newer",
                hint="Install a newer ooc.",
            )
        check_seal(self.header, what=what)
        d, metric = record.get("d"), record.get("metric")
        if not _is_whole(d) or not 1 <= d <= MOST_D or metric not in METRICS:
            raise IndexDirError(f"{self.header} is damaged: d {d!r}, metric {metric!r}", kind="index-damaged")
        return Header(d=d, metric=metric, features=named, format_version=number)

    def live(self) -> int | None:
        """The live generation's number; None before the first was published."""
        return _number_in(self.current)

    def published(self) -> int:
        """The live generation's number.

        Raises
        ------
        IndexDirError
            None was published yet.
        """
        number = self.live()
        if number is None and self.numbers():
            raise IndexDirError(
                f"{self.current} is missing: it names the generation that is read, and some were published",
                kind="index-damaged",
                hint="`ooc verify INDEX --repair` writes it anew.",
            )
        if number is None:
            raise IndexDirError(
                f"the index {self.root} was not finished",
                kind="index-unfinished",
                hint="Run the same `ooc build` again: it goes on where it ended.",
            )
        return number

    def numbers(self) -> list[int]:
        """The numbers of the generations that were published and are there, ascending."""
        unpublished = self.unpublished()
        return [number for number in self.records() if number != unpublished]

    def records(self) -> list[int]:
        """The numbers of the generations of which there are records, ascending."""
        names = (path.stem for path in self.generation(0).parent.glob("*.json"))
        return sorted(int(name) for name in names if _NUMBER.fullmatch(name))

    def unpublished(self) -> int | None:
        """The generation that is being published, or was when a process was killed; it does not count yet."""
        number = self.named_unpublished()
        return None if number == self.live() else number

    def named_unpublished(self) -> int | None:
        """What ``publishing`` says, whichever generation is live."""
        return _number_in(self.publishing)

    def make_live(self, number: int) -> None:
        """Make a generation that is there the live one."""
        write_bytes(self.current, _numbered(number))

    def publish(
        self, number: int, record: dict[str, Any], report: dict[str, Any], sketch: Path | None = None
    ) -> None:
        """Make a generation durable, with the sketch that was made for it, and then the live one.

        From before its record is there until it is the live one, ``publishing`` has its number. So one whose
        publisher was killed is told from one that is not live because the index went back.
        """
        make_directory(self.generation(number).parent)
        write_bytes(self.publishing, _numbered(number))
        if sketch is not None and sketch.exists():  # else a run before this one moved it
            rename(sketch, self.sketch(number))
        write_json(self.report(number), report)
        write_sealed(self.generation(number), record)
        self.make_live(number)
        remove_file(self.publishing)


def see_outside(path: Path) -> None:
    """See that a file to be written is not within an index directory, where it would count as damage.

    Raises
    ------
    ArgumentError
        ``out-name``.
    """
    wanted = Path(os.path.realpath(path))
    for root in (wanted, *wanted.parents):
        if Layout(root).is_index():
            raise ArgumentError(
                f"{path} is within the index {root} itself" if root != wanted else f"{path} is an index",
                kind="out-name",
                hint="Name a file outside of it.",
            )


def see_plain(directory: Path, but: Sequence[Path] = ()) -> None:
    """See that there are files and directories alone below a directory of an index.

    It may come from somebody else: a link could lead anywhere, and who opens a pipe waits for its other end.

    Parameters
    ----------
    directory : Path
    but : sequence of Path
        Directories that are not gone into.

    Raises
    ------
    IndexDirError
        There is a symbolic link, a pipe or a device.
    """
    left = [str(directory)]
    passed = {str(path) for path in but}
    while left:
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left += [entry.path] if entry.path not in passed else []
                elif not entry.is_file(follow_symlinks=False):
                    raise IndexDirError(
                        f"{entry.path} is a symbolic link, a pipe or a device: all files of an index lie in "
                        "its directory",
                        kind="index-link",
                        hint="Put what it leads to in its place, if you trust it.",
                    )


def _numbered(number: int) -> bytes:
    """What ``_number_in`` reads: beside the number a word, which a digit that was changed does not fit."""
    word = xxhash.xxh3_64_hexdigest(str(number).encode())[:8]
    return f"{number} {word}\n".encode()


def _number_in(path: Path) -> int | None:
    try:
        data = disk.read_bytes(path, most=_CURRENT_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        raise IndexDirError(f"{path} cannot be read: {error}", kind="index-damaged") from error
    digits = data.split()[0] if data.split() else b""
    number = int(digits) if digits.isdigit() and len(digits) <= _DIGITS else None
    # A number alone was written by an earlier version, or by hand.
    if number is None or data not in (_numbered(number), digits + b"\n", digits):
        raise IndexDirError(
            f"{path} is damaged: it holds {data[:40]!r}",
            kind="index-damaged",
            hint="`ooc verify --repair` makes the newest sound generation the live one.",
        )
    return number


@dataclass(frozen=True, slots=True)
class BuildLayout:
    """The paths of a build in the making; sample and shards may be on another disk, in ``scratch``."""

    root: Path
    scratch: Path | None = None

    @property
    def place(self) -> Path:
        """Where sample and shards are."""
        return self.scratch or self.root

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def sample(self) -> Path:
        return self.place / "sample.npy"

    @property
    def witnesses(self) -> Path:
        """Queries whose true neighbours are looked for while shards are filled."""
        return self.root / "witnesses.npz"

    @property
    def sketch(self) -> Path:
        """The sketch of the centroids, until it is published."""
        return self.root / "sketch.faiss"

    @property
    def calibration(self) -> Path:
        """What recall was measured, until it is published."""
        return self.root / "calibration.json"

    @property
    def keys(self) -> Path:
        """That the keys of the rows are there, whole."""
        return self.root / "keys.json"

    @property
    def shards(self) -> Path:
        return self.place / "shards"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    def lease(self, shard: int) -> Path:
        """The lock file of a numbered shard."""
        return self.leases / str(shard)

    @property
    def copy_lease(self) -> Path:
        """The lock file for making the file of copied rows."""
        return self.leases / "vectors"

    @property
    def witnesses_lease(self) -> Path:
        """The lock file for drawing the witnesses."""
        return self.leases / "witnesses"

    @property
    def segment(self) -> SegmentLayout:
        """Where the segment grows; the copied rows come first."""
        return SegmentLayout(self.root / "segment")


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """The paths of a segment, published or in the making."""

    root: Path

    @property
    def header(self) -> Path:
        return self.root / "index.faiss"

    @property
    def sizes(self) -> Path:
        """Entries of each list, of a segment without a header of its own."""
        return self.root / "sizes.npy"

    @property
    def lists(self) -> Path:
        return self.root / LISTS_NAME

    @property
    def ids(self) -> Path:
        """The id of each of its rows, where they are not numbered one after another."""
        return self.root / "ids.npy"

    @property
    def vectors(self) -> Path:
        return self.root / "vectors.npy"

    @property
    def scales(self) -> Path:
        return self.root / "scales.npy"

    @property
    def keys(self) -> Path:
        """The key of each of its rows, where keys are whole numbers."""
        return self.root / "keys.npy"

    @property
    def key_text(self) -> Path:
        """The keys of its rows, one after another, where they are strings."""
        return self.root / "keys.utf8"

    @property
    def key_offsets(self) -> Path:
        """Where each of these strings begins."""
        return self.root / "key_offsets.npy"

    @property
    def key_hashes(self) -> Path:
        """Hashes of keys, ascending: by which a key is found."""
        return self.root / "key_hashes.npy"

    @property
    def key_rows(self) -> Path:
        """The row of each of these hashes."""
        return self.root / "key_rows.npy"

    @property
    def checksums(self) -> Path:
        return self.root / "blocks.xxh3"

    @property
    def record(self) -> Path:
        return self.root / "segment.json"

    @property
    def of_rows(self) -> frozenset[Path]:
        """What is of its rows and not of its lists, and what tells of it."""
        keys = (self.keys, self.key_text, self.key_offsets, self.key_hashes, self.key_rows)
        return frozenset((self.vectors, self.scales, self.ids, *keys, self.checksums, self.record))


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
