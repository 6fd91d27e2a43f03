"""What an earlier run began: its plan, which numbers the shards, and where it keeps them."""

from __future__ import annotations

import dataclasses
import errno
import re
import secrets
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ooc import disk
from ooc.build.choose import Compared
from ooc.build.glance import Glance
from ooc.build.plan import Options, Plan, plan_store
from ooc.build.shards import Numbered, format_numbers
from ooc.durable import (
    make_directory,
    partial_name,
    read_json,
    remove_file,
    remove_files,
    remove_tree,
    sync_directory,
    write_sealed,
)
from ooc.errors import ConflictError, IndexDirError, ResourceError
from ooc.events import Note, Observer
from ooc.index.layout import BuildLayout, Layout, see_plain
from ooc.stores import Store
from ooc.types import PathOrStr

__all__ = [
    "Begun",
    "begin",
    "begun",
    "forget",
    "left_over",
    "need_begun",
    "plan_again",
    "plan_as_begun",
    "published",
    "see_whole",
]


#: How a directory of shards outside the index is called: the index's name, and twelve digits.
_SCRATCH_NAME = re.compile(r".+-[0-9a-f]{12}", re.S)


@dataclass(frozen=True, slots=True)
class Begun:
    """A build that is not published yet: its plan as it was recorded, and its paths.

    ``after`` is the highest number that a generation had when it began, of rows that come to an index: what
    it publishes has a higher one, and none that was gone back from is taken for it.
    """

    plan: Plan
    build: BuildLayout
    after: int | None = None


def begun(layout: Layout) -> Begun | None:
    """The build in the making, None where there is none.

    Raises
    ------
    ResourceError
        Its scratch directory is not there.
    """
    see_plain(layout.builds)
    for path in sorted(layout.builds.glob("*/plan.json")):
        record = read_json(path, what="the plan of the unfinished build")
        scratch = _scratch(path, record)
        if scratch is not None and not scratch.is_dir():
            raise ResourceError(
                f"the shards of this build are in {scratch}, which is not there",
                kind="scratch-missing",
                hint=f"Mount that disk, or remove {layout.builds} to fill them anew.",
            )
        after = record.get("after")
        try:
            plan = Plan.from_record(record)
            if after is not None and type(after) is not int:
                raise ValueError(f"after {after!r}")
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise _damaged(path, layout.builds, repr(error)) from error
        return Begun(plan, BuildLayout(path.parent, scratch), after)
    return None


def begin(layout: Layout, plan: Plan, scratch: PathOrStr | None, *, after: int | None = None) -> Begun:
    """Record the plan of a build, or go on with the one that is there.

    Raises
    ------
    ConflictError
        The build that is there keeps its shards elsewhere than in ``scratch``.
    """
    wanted = None if scratch is None else Path(scratch).expanduser().absolute()
    there = begun(layout)
    if there is not None:
        place = there.build.scratch
        if wanted is not None and (place is None or place.parent != wanted):
            raise ConflictError(
                f"the shards of this build are in {there.build.place}, not in {wanted}",
                kind="scratch-differs",
                hint="Leave --scratch out to go on there.",
            )
        if there.plan.on_bad != plan.on_bad:
            # The one setting that may change: processes that fill take it from the record.
            record = {**read_json(there.build.plan, what="the plan"), "on_bad": plan.on_bad}
            write_sealed(there.build.plan, record)
            changed = dataclasses.replace(there.plan, on_bad=plan.on_bad)
            there = Begun(changed, there.build, there.after)
        return there
    place = None if wanted is None else _place_in(wanted, layout)
    build = layout.build(plan.digest, place)
    if place is not None:
        make_directory(place)
    make_directory(build.root)
    write_sealed(build.plan, {**plan.to_record(), "scratch": str(place or ""), "after": after})
    return Begun(plan, build, after)


def _place_in(scratch: Path, layout: Layout) -> Path:
    """A directory for this build, of which one disk may have several.

    The same one where a run was killed before its plan named it: then it is empty.
    """
    whose = xxhash.xxh3_64_hexdigest(f"{socket.gethostname()}:{layout.root}".encode())
    place = scratch / f"{layout.root.name}-{whose[:12]}"
    if place.exists() and any(place.iterdir()):
        place = place.with_name(f"{layout.root.name}-{secrets.token_hex(6)}")
    return place


def _scratch(path: Path, record: Mapping[str, Any]) -> Path | None:
    """The directory of shards that the record of a plan names, where it is another one.

    What is in it is read, and removed in the end: so it must have a name as ``_place_in`` gives.
    """
    name = record.get("scratch") or None
    if name is None:
        return None
    if not isinstance(name, str) or "\0" in name or not _SCRATCH_NAME.fullmatch(Path(name).name):
        raise _damaged(path, path.parent.parent, f"scratch {name!r}")
    return Path(name)


def _damaged(path: Path, builds: Path, why: str) -> IndexDirError:
    return IndexDirError(
        f"the plan of the unfinished build is damaged: {path}: {why}",
        kind="index-damaged",
        hint=f"Remove {builds} to begin anew.",
    )


def forget(layout: Layout) -> None:
    """Remove all that a build keeps until it is published; its plan last, by which the rest is known."""
    for path in layout.builds.glob("*/plan.json"):
        scratch = _scratch(path, read_json(path, what="the plan of the unfinished build"))
        if scratch is not None:
            place = BuildLayout(path.parent, scratch)
            remove_tree(place.shards)  # what is ours, and nothing else
            remove_files([place.sample, partial_name(place.sample)])
            try:
                disk.remove_directory(scratch)
                sync_directory(scratch.parent)
            except OSError as error:  # somebody's files are there, or the disk is not
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
        for beside in path.parent.iterdir():
            if beside != path:
                remove_tree(beside) if beside.is_dir() else remove_file(beside)
        remove_file(path)
    remove_tree(layout.builds)


def left_over(layout: Layout) -> Begun | None:
    """The unfinished change of an index that some build published; what is left of that build is removed.

    The caller holds the lock.
    """
    try:
        there = begun(layout)
    except ResourceError:  # the build was clearing up, and its scratch went first
        there = None
    if there is None or there.after is None:
        forget(layout)
        return None
    return there


def published(layout: Layout) -> dict[str, Any] | None:
    """The record of the live generation, None before the first."""
    if not layout.is_index():
        return None
    layout.read_header()
    live = layout.live()
    return None if live is None else read_json(layout.generation(live), what=f"generation {live}")


def _earlier(layout: Layout) -> tuple[Mapping[str, Any] | None, bool, tuple[Compared, ...]]:
    """The identity of the build that is there, finished or not; whether its code was chosen, and among which.

    Of a finished one its report knows among which.
    """
    record = published(layout)
    if record is not None:
        return dict(record["plan"]), bool(record.get("chosen", False)), ()
    there = begun(layout) if layout.is_index() else None
    if there is None:
        return None, False, ()
    return there.plan.identity, there.plan.chosen, there.plan.compared


def plan_again(
    store: Store,
    layout: Layout,
    options: Options,
    glance: Glance,
    observer: Observer,
    stop: threading.Event | None = None,
) -> Plan:
    """The plan; for as many rows as an earlier run had, where the store has grown since.

    When ``stop`` is set, ``Stopped`` is raised.

    Raises
    ------
    ConflictError
        What is in the directory is of another plan, or of other rows.
    """
    earlier, chosen, compared = _earlier(layout)
    if earlier is None:
        return plan_store(store, options, glance=glance, stop=stop)
    again = options
    if chosen and options.factory is None and options.template is None:
        # It was measured, and would be again.
        again = dataclasses.replace(options, factory=earlier["factory"])
    plan = plan_store(store, again, glance=glance, stop=stop)
    if earlier["n"] < store.n:
        prefix = plan_store(store, again, n=earlier["n"], stop=stop)
        if prefix.fingerprint == earlier["fingerprint"]:
            message = (
                f"the store has grown by {store.n - prefix.n} rows since this build began; "
                f"the index is of the first {prefix.n}"
            )
            observer(Note(message=message, kind="store-grown"))
            plan = prefix
    _see_same(store, layout, plan.identity, earlier)
    return dataclasses.replace(plan, chosen=chosen, compared=compared)


def plan_as_begun(
    store: Store, there: Begun, layout: Layout, *, memory: int | str, threads: int | None
) -> Plan:
    """The plan that a build was begun with, cut for another budget; training is over.

    Raises
    ------
    ConflictError
        The store is another one.
    PlanError
        The memory is too small.
    """
    before = there.plan
    if store.d != before.d or store.n < before.n or store.fingerprint(before.n) != before.fingerprint:
        raise _other_rows(store, layout, "unfinished build")
    options = Options(
        memory=memory,
        threads=threads,
        metric=before.metric,
        factory=before.factory,
        seed=before.seed,
        copy_vectors="always" if before.copy_vectors else "never",
        copy_dtype=before.copy_dtype,
        spill="on" if before.spill else "off",
        on_bad=before.on_bad,
    )
    plan = plan_store(store, options, n=before.n, trained=True)
    plan = dataclasses.replace(
        plan,
        sample_rows=before.sample_rows,
        template=before.template,
        witnesses=before.witnesses,
        queries=before.queries,
        keys=before.keys,
        chosen=before.chosen,
        compared=before.compared,
        forecast=before.forecast,
    )
    _see_same(store, layout, plan.identity, before.identity)
    return plan


def _see_same(store: Store, layout: Layout, identity: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    keys = [*identity, *(key for key in earlier if key not in identity)]
    differing = [key for key in keys if earlier.get(key) != identity.get(key)]
    if not differing:
        return
    what = "index" if layout.live() is not None else "unfinished build"
    if set(differing) <= {"fingerprint", "n"}:
        raise _other_rows(store, layout, what)
    said = ", ".join(
        f"{key} {earlier.get(key)!r} there and {identity.get(key)!r} now"
        for key in differing
        if key != "fingerprint"
    )
    raise ConflictError(
        f"{layout.root} holds an {what} with another plan: {said}",
        kind="index-exists",
        hint="Give the same settings, name another directory, or remove that one first.",
    )


def _other_rows(store: Store, layout: Layout, what: str) -> ConflictError:
    return ConflictError(
        f"{layout.root} holds an {what} of other rows: the store {store.uri or 'given'} "
        "is another one, or it was changed since",
        kind="store-changed",
        hint=f"Name another directory, or remove {layout.root} to start over.",
    )


def need_begun(layout: Layout) -> Begun:
    """The build in the making.

    Raises
    ------
    IndexDirError
        There is none.
    """
    layout.read_header()
    there = begun(layout)
    if there is None:
        raise IndexDirError(
            f"no build was begun in {layout.root}",
            kind="not-trained",
            hint="Begin it with `ooc train STORE INDEX`.",
        )
    return there


def see_whole(there: Begun) -> None:
    """See that every shard is on disk.

    Raises
    ------
    ConflictError
        Some are missing; names them.
    """
    numbered = Numbered(there.build, there.plan.n, there.plan.shard_rows)
    missing = numbered.missing()
    if missing:
        shards = format_numbers(missing)
        raise ConflictError(
            f"{len(missing)} of {numbered.count} shards are not filled: {shards}",
            kind="shards-missing",
            hint=f"Fill them with `ooc fill STORE INDEX --shards {shards}`, then merge again.",
        )
