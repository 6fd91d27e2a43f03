"""A build from store to published index: runs the stages, goes on where an earlier run ended.

    plan → sample → train → fill → merge → calibrate → publish

Each stage leaves a record and does nothing where its record is there. What is published is never
changed, and the build's own directory goes when its index is. ``train``, ``fill`` and ``merge`` run
some of the stages: ``build`` is all of them, and goes on with whatever any of them left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ooc.build.begun import (
    Begun,
    begin,
    begun,
    forget,
    left_over,
    need_begun,
    plan_again,
    plan_as_begun,
    published,
    see_whole,
)
from ooc.build.calibrate import calibrate
from ooc.build.fill import fill as fill_shards
from ooc.build.forecast import forecast
from ooc.build.given import planned_queries
from ooc.build.glance import Glance
from ooc.build.keys import keep_keys, kept_keys
from ooc.build.merge import is_done
from ooc.build.merge import merge as merge_shards
from ooc.build.plan import Forecast, Options, Plan, check_disk, plan_store
from ooc.build.processes import Team, fill_in_processes, team
from ooc.build.publish import FIRST_GENERATION, FIRST_SEGMENT, publish
from ooc.build.reuse import copy_template
from ooc.build.room import bytes_below, check_room
from ooc.build.sample import sampled
from ooc.build.shards import Numbered, shards_done
from ooc.build.sizes import most_witnesses
from ooc.build.train import Template, load_template
from ooc.build.train import train as train_template
from ooc.build.witness import Witnesses, neighbours_found
from ooc.build.work import Work
from ooc.build.workers import workers
from ooc.durable import read_json, remove_file, remove_tree, write_sealed
from ooc.errors import ConflictError, IndexDirError, OocError, ResourceError, Stopped
from ooc.events import Note, Observer
from ooc.index.layout import Header, Layout, SegmentLayout
from ooc.index.lock import holder, publisher
from ooc.index.order import Order, read_spread
from ooc.index.segment import Segment, open_vectors
from ooc.mapping import release_free_memory
from ooc.stores import Store, open_store
from ooc.stores.keys import keys_of_rows, open_keys
from ooc.types import PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY

__all__ = ["build", "fill", "merge", "plan", "train"]


def plan(
    store: StoreLike,
    options: Options,
    *,
    index: PathOrStr | None = None,
    stop: threading.Event | None = None,
) -> Plan:
    """What a build will do and cost; see ``ooc.plan``, which takes the options one by one."""
    began = time.monotonic()
    with open_store(store) as opened:
        glance = Glance(opened, options.metric, options.seed)
        made = plan_store(opened, options, glance=glance, stop=stop)
        if index is not None:
            check_disk(Path(index), needed=made.peak_disk_bytes)
        return dataclasses.replace(made, forecast=forecast(opened, made, glance, began, stop))


@ResourceError.if_refused("building")
def build(
    store: StoreLike,
    index: PathOrStr,
    options: Options,
    *,
    scratch: PathOrStr | None = None,
    workers: int = 1,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Build an index of a store; see ``ooc.build``, which takes the options one by one."""
    with open_store(store) as opened:
        run, options = _Run("build", opened, Layout.of(index), observer, stop), _with_keys(options)

        def stages(there: Begun, plan: Plan, share: Team | None) -> dict[str, Any]:
            if not is_done(run.layout.segment(FIRST_SEGMENT), plan):
                run.keep_keys(there, plan, options)
                run.train(there, plan, options)
                run.fill(there, plan, share)
                run.merge(there, plan)
            return run.publish(there, plan)

        def divided(plan: Plan) -> Team | None:
            return None if workers == 1 else team(store, opened, options, plan, workers)

        return run.begin(options, scratch, stages, divided)


@ResourceError.if_refused("training")
def train(
    store: StoreLike,
    index: PathOrStr,
    options: Options,
    *,
    scratch: PathOrStr | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Plan, sample and train, and leave the shards to be filled; see ``ooc.train``."""
    with open_store(store) as opened:
        run, options = _Run("train", opened, Layout.of(index), observer, stop), _with_keys(options)

        def stages(there: Begun, plan: Plan, share: Team | None) -> dict[str, Any]:
            run.keep_keys(there, plan, options)
            run.train(there, plan, options)
            return run.shard_figures(there)

        return run.begin(options, scratch, stages)


@ResourceError.if_refused("filling")
def fill(
    store: StoreLike,
    index: PathOrStr,
    *,
    shards: Iterable[int] | None = None,
    memory: int | str = DEFAULT_MEMORY,
    threads: int | None = None,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Fill shards of a build that was begun; see ``ooc.fill``."""
    with open_store(store) as opened:
        run = _Run("fill", opened, Layout.of(index), observer, stop)
        if published(run.layout) is not None:
            return run.nothing_to_do()
        there = need_begun(run.layout)
        try:
            plan = plan_as_begun(opened, there, run.layout, memory=memory, threads=threads)
            # A file of its own: several processes may fill at once.
            status = there.build.root / f"status-{socket.gethostname()}-{os.getpid()}.json"
            with run.at_work(plan, status):
                run.fill(there, plan, None, shards)
                figures = run.finish(run.shard_figures(there))
            remove_file(status)
            return figures
        except (OocError, OSError):
            if not there.build.plan.exists() and published(run.layout) is not None:
                return run.nothing_to_do()  # another process merged what was whole already
            raise


@ResourceError.if_refused("merging")
def merge(
    store: StoreLike,
    index: PathOrStr,
    *,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Merge the shards of a build and publish the index; see ``ooc.merge``."""
    with open_store(store) as opened:
        run = _Run("merge", opened, Layout.of(index), observer, stop)
        if published(run.layout) is not None:
            return run.nothing_to_do()
        there = need_begun(run.layout)
        # Merging takes as much in every build: the budget that it was begun with will do.
        budget = there.plan.memory_bytes
        plan = plan_as_begun(opened, there, run.layout, memory=budget, threads=there.plan.threads)
        with publisher(run.layout.lock):
            if published(run.layout) is not None:
                return run.nothing_to_do()
            merged = is_done(run.layout.segment(FIRST_SEGMENT), plan)
            if not merged:
                see_whole(there)
            with run.at_work(plan, there.build.status):
                if not merged:
                    run.merge(there, plan)
                figures = run.finish(run.publish(there, plan))
            forget(run.layout)
            return figures


def _with_keys(options: Options) -> Options:
    """With keys that are opened once: their fingerprint is asked for more than once."""
    return options if options.keys is None else dataclasses.replace(options, keys=open_keys(options.keys))


class _Run(Work):
    """One call of a build."""

    def __init__(
        self,
        operation: str,
        store: Store,
        layout: Layout,
        observer: Observer | None,
        stop: threading.Event | None,
    ) -> None:
        super().__init__(operation, layout, observer, stop)
        self._store = store
        self._template: Template | None = None

    def begin(
        self,
        options: Options,
        scratch: PathOrStr | None,
        stages: Callable[[Begun, Plan, Team | None], dict[str, Any]],
        divided: Callable[[Plan], Team | None] = lambda plan: None,
    ) -> dict[str, Any]:
        """Plan, claim the directory, and run the stages as its one publisher."""
        with self._memory:
            glance = Glance(self._store, options.metric, options.seed)
            plan = plan_again(self._store, self.layout, options, glance, self._emit, self._stop)
            fresh = not self.layout.is_index()
            if not fresh and self.layout.live() is not None:
                self._clear()
                return self.nothing_to_do()
            share = divided(plan)
            check_room(self.layout, plan, scratch)
            there = None if fresh else begun(self.layout)
            expected = None if there is None else there.plan.forecast
            expected = expected or forecast(self._store, plan, glance, self._began, self._stop)
            plan = dataclasses.replace(plan, forecast=expected)
            del glance
        # Refuses what is not ours.
        self.layout.claim(Header(d=plan.d, metric=plan.metric, features=plan.features))
        with publisher(self.layout.lock):
            if self.layout.live() is not None:  # another process was quicker
                return self.nothing_to_do()
            try:
                # The shards are numbered by the plan that is recorded.
                numbering = dataclasses.replace(plan, shard_rows=share.shard_rows) if share else plan
                there = begin(self.layout, numbering, scratch)
                with self.at_work(plan, there.build.status):
                    if share is not None:
                        self._emit(Note(message=share.describe(), kind="workers"))
                    figures = self.finish(stages(there, plan, share))
            except (OocError, OSError) as error:
                if fresh and not isinstance(error, Stopped) and not self._made_something():
                    forget(self.layout)
                    remove_tree(self.layout.root)  # nothing durable was made: leave nothing behind
                raise
            if self.layout.live() is not None:
                forget(self.layout)
        return figures

    def _made_something(self) -> bool:
        there = begun(self.layout)
        return self.layout.train_record.exists() or bool(there is not None and shards_done(there.build))

    def _clear(self) -> None:
        """Remove what a run left that ended between publishing and clearing up."""
        layout = self.layout
        if layout.builds.exists() or layout.publishing.exists():
            with contextlib.suppress(ConflictError), publisher(layout.lock):
                left_over(layout)
                if layout.unpublished() is None:
                    remove_file(layout.publishing)

    def nothing_to_do(self) -> dict[str, Any]:
        """The figures of the index that is there."""
        record = published(self.layout) or {}
        for segment in record["segments"]:
            Segment(self.layout.segment(segment["name"])).close()  # says so where it is damaged
        self._emit(Note(message="this index is built already: same store, same plan", kind="already-built"))
        return self._figures(record, None, already_built=True)

    def keep_keys(self, there: Begun, plan: Plan, options: Options) -> None:
        """Write the keys of the rows, where they have some: a key that is there twice is told at once."""
        if options.keys is not None:
            source = keys_of_rows(open_keys(options.keys), 0, plan.n, self._store.n)
            keep_keys(source, plan, there.build, stop=self._stop)

    def train(self, there: Begun, plan: Plan, options: Options) -> None:
        """Sample and train, or copy the template that is to be reused."""
        build = there.build
        self._template = load_template(self.layout, plan)
        if self._template is None and options.template is not None:
            copy_template(Layout.of(options.template), plan, self.layout)
            self._template = load_template(self.layout, plan)
        if self._template is None:
            watched: dict[str, Any] = {"observer": self._emit, "stop": self._stop}
            with (
                workers(plan.threads) as pool,
                sampled(self._store, plan, build.sample, pool, **watched) as rows,
            ):
                self._template = train_template(rows, plan, self.layout, pool, **watched)
        remove_file(build.sample)
        if options.queries is not None and not build.witnesses.exists():
            given = planned_queries(options.queries, plan)
            Witnesses.of(given, plan.seed, most_witnesses(plan.n)).save(build)

    def _trained(self, plan: Plan) -> Template:
        self._template = self._template or load_template(self.layout, plan)
        if self._template is None:
            raise IndexDirError(
                f"{self.layout.root} has no trained template yet",
                kind="not-trained",
                hint=f"Train it with `ooc train STORE INDEX`; now it is {holder(self.layout.lock)} that "
                "writes there, or did last.",
            )
        return self._template

    def fill(self, there: Begun, plan: Plan, share: Team | None, shards: Iterable[int] | None = None) -> None:
        """Fill here, or by processes of their own."""
        grid_rows = there.plan.shard_rows
        if share is None:
            fill_shards(
                self._store,
                plan,
                self._trained(plan),
                there.build,
                shards=shards,
                grid_rows=grid_rows,
                observer=self._emit,
                stop=self._stop,
            )
            return
        self._template = None  # each process reads its own
        release_free_memory()
        fill_in_processes(
            share,
            self.layout,
            plan,
            there.build,
            grid_rows=grid_rows,
            row_bytes=self._store.row_bytes,
            observer=self._emit,
            stop=self._stop,
        )

    def merge(self, there: Begun, plan: Plan) -> None:
        """Merge all shards into the segment."""
        merge_shards(
            shards_done(there.build),
            plan,
            self._trained(plan).codec,
            there.build.segment,
            keys=self._kept_keys(there, plan),
            observer=self._emit,
            stop=self._stop,
        )

    def _kept_keys(self, there: Begun, plan: Plan) -> dict[str, Any] | None:
        """What is to be said of the keys."""
        kept = kept_keys(plan, there.build)
        if plan.keys and kept is None and not is_done(there.build.segment, plan):
            raise IndexDirError(
                f"the keys of the rows are not whole in {there.build.root}",
                kind="keys-missing",
                hint="Give them again: `ooc build STORE INDEX --keys KEYS`.",
            )
        return kept

    def _calibrate(self, there: Begun, plan: Plan) -> dict[str, Any]:
        """The order of the merged lists and what recall they have, measured where that was not done yet."""
        build = there.build
        if build.calibration.exists():
            return read_json(build.calibration, what="the calibration")
        witnesses = Witnesses.load(build)
        earlier = self.layout.generation(FIRST_GENERATION)
        if witnesses is None and earlier.exists():  # published before, and no longer the live one
            before = read_json(earlier, what="the generation")
            return {"times": [], **{key: before[key] for key in ("order", "calibration") if key in before}}
        moved = is_done(self.layout.segment(FIRST_SEGMENT), plan)
        place = self.layout.segment(FIRST_SEGMENT) if moved else build.segment
        record: dict[str, Any] = {"order": Order().record, "calibration": {}, "times": []}
        if witnesses is not None:
            nearest = neighbours_found(shards_done(build), witnesses.depth)
            watched: dict[str, Any] = {"observer": self._emit, "stop": self._stop}
            spread = read_spread(self.layout)
            with self._searched_rows(place, plan) as rows:
                measured = calibrate(
                    plan, [place], spread, build.sketch, witnesses, nearest, rows=rows, **watched
                )
            record = dataclasses.asdict(measured)
        write_sealed(build.calibration, record)
        return record

    @contextlib.contextmanager
    def _searched_rows(self, place: SegmentLayout, plan: Plan) -> Iterator[Store]:
        """The rows that a search compares: those of the segment, where it keeps any, else the store's."""
        if not plan.copy_vectors:
            yield self._store
            return
        with contextlib.closing(open_vectors(place)) as own:
            yield own

    def publish(self, there: Begun, plan: Plan) -> dict[str, Any]:
        """Calibrate, and publish the segment; the figures."""
        measured = self._calibrate(there, plan)
        report = {**self.report(plan.to_record()), "times": measured.pop("times", [])}
        record = publish(plan, self.layout, report, measured, there.build.sketch, observer=self._emit)
        return self._figures(record, plan.forecast, already_built=False)

    def shard_figures(self, there: Begun) -> dict[str, Any]:
        """How far filling is."""
        numbered = Numbered(there.build, there.plan.n, there.plan.shard_rows)
        return {
            "index": str(self.layout.root),
            "rows": there.plan.n,
            "rows_filled": numbered.rows_done(range(numbered.count)),
            "shards": numbered.count,
            "shards_missing": numbered.missing(),
            "shard_rows": there.plan.shard_rows,
            "seconds": time.monotonic() - self._began,
            "stages": self._stages,
            "already_built": False,
        }

    def _figures(
        self, record: Mapping[str, Any], expected: Forecast | None, *, already_built: bool
    ) -> dict[str, Any]:
        segments = [self.layout.segment(segment["name"]).root for segment in record["segments"]]
        sketch = self.layout.sketch(record["generation"])
        sketch_bytes = sketch.stat().st_size if sketch.exists() else 0
        return {
            "index": str(self.layout.root),
            "generation": record["generation"],
            "rows": record["rows"],
            "skipped_rows": record["skipped_rows"],
            "zero_rows": record["zero_rows"],
            "bytes": sum(bytes_below(path) for path in (self.layout.template, *segments)) + sketch_bytes,
            "seconds": time.monotonic() - self._began,
            "stages": self._stages,
            "peak_private_bytes": self._memory.peak,
            "forecast": None if expected is None else dataclasses.asdict(expected),
            "already_built": already_built,
        }
