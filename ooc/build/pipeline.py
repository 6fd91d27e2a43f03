"""A build from store to published index: runs the stages, goes on where an earlier run ended.

    plan → sample → train → fill → merge → publish

Each stage leaves a record and does nothing where its record is there. What is published is never
changed, and the build's own directory goes when its index is.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ooc import engine
from ooc.build.fill import fill, shards_done
from ooc.build.kmeans import rows_looked_at
from ooc.build.merge import is_done, merge
from ooc.build.plan import Options, Plan, check_disk, plan_store
from ooc.build.publish import FIRST_SEGMENT, publish
from ooc.build.sample import sample
from ooc.build.status import StatusWriter
from ooc.build.train import load_template, train
from ooc.durable import make_directory, read_json, remove_tree, write_json
from ooc.errors import ConflictError, OocError, Stopped
from ooc.events import Event, Finished, Note, Observer, Progress, StageFinished, Started, broadcast
from ooc.index.layout import BuildLayout, Header, Layout
from ooc.index.lock import publisher
from ooc.index.segment import Segment
from ooc.mapping import private_bytes, release_free_memory
from ooc.stores import Store, open_store
from ooc.types import PathOrStr, StoreLike

__all__ = ["build"]


def build(
    store: StoreLike,
    index: PathOrStr,
    options: Options,
    *,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Build an index of a store; see ``ooc.build``, which takes the options one by one."""
    with open_store(store) as opened:
        return _Run(opened, Layout.of(index), options, observer, stop).run()


class _Run:
    """One call of ``build``: what its stages share."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        options: Options,
        observer: Observer | None,
        stop: threading.Event | None,
    ) -> None:
        self._store = store
        self._layout = layout
        self._options = options
        self._outside = observer
        self._emit = broadcast([self._watch, observer])
        self._stop = stop
        self._stages: dict[str, dict[str, Any]] = {}
        self._peak = 0
        self._began = time.monotonic()

    def _watch(self, event: Event) -> None:
        """What the run itself learns from the events."""
        if isinstance(event, Progress):
            self._peak = max(self._peak, private_bytes())
        elif isinstance(event, StageFinished):
            self._stages[event.stage] = {"seconds": event.seconds, **event.figures}
            release_free_memory()  # the next stage's budget is its own

    def run(self) -> dict[str, Any]:
        plan = self._plan()
        fresh = not self._layout.is_index()
        if not fresh and self._layout.live() is not None:
            self._clear()
            return self._nothing_to_do()
        build = self._layout.build(plan.digest)
        check_disk(self._layout.root, needed=plan.peak_disk_bytes - _bytes_below(build.root))
        self._layout.claim(Header(d=plan.d, metric=plan.metric))  # refuses what is not ours
        try:
            with publisher(self._layout.lock):
                if self._layout.live() is not None:  # another process was quicker
                    return self._nothing_to_do()
                return self._build(plan, build)
        except Stopped:
            raise
        except (OocError, OSError):
            if fresh and not shards_done(build):
                remove_tree(self._layout.root)  # nothing durable was made: leave nothing behind
            raise

    def _plan(self) -> Plan:
        """The plan; for as many rows as an earlier run had, where the store has grown since."""
        plan = plan_store(self._store, self._options)
        earlier = self._earlier()
        if earlier is not None and earlier["n"] < self._store.n:
            prefix = plan_store(self._store, self._options, n=earlier["n"])
            if prefix.fingerprint == earlier["fingerprint"]:
                self._note(
                    f"the store has grown by {self._store.n - prefix.n} rows since this build began; "
                    f"the index is of the first {prefix.n}",
                    kind="store-grown",
                )
                plan = prefix
        if earlier is not None:
            self._see_same(plan, earlier)
        return plan

    def _earlier(self) -> Mapping[str, Any] | None:
        """What the build that is there, finished or not, was of."""
        if not self._layout.is_index():
            return None
        self._layout.read_header()
        live = self._layout.live()
        if live is not None:
            return dict(self._generation(live)["plan"])
        for path in sorted(self._layout.builds.glob("*/plan.json")):
            return Plan.from_record(read_json(path, what="the plan of the unfinished build")).identity
        return None

    def _see_same(self, plan: Plan, earlier: Mapping[str, Any]) -> None:
        differing = {k: v for k, v in plan.identity.items() if earlier.get(k) != v}
        if not differing:
            return
        what = "index" if self._layout.live() is not None else "unfinished build"
        if set(differing) <= {"fingerprint", "n"}:
            raise ConflictError(
                f"{self._layout.root} holds an {what} of other rows: the store {self._store.uri or 'given'} "
                "is another one, or it was changed since",
                kind="store-changed",
                hint=f"Name another directory, or remove {self._layout.root} to start over.",
            )
        differing.pop("fingerprint", None)
        said = ", ".join(f"{key} {earlier.get(key)!r} there and {v!r} now" for key, v in differing.items())
        raise ConflictError(
            f"{self._layout.root} holds an {what} with another plan: {said}",
            kind="index-exists",
            hint="Give the same settings, name another directory, or remove that one first.",
        )

    def _clear(self) -> None:
        """Remove what a run left that ended between publishing and clearing up."""
        if self._layout.builds.exists():
            with contextlib.suppress(ConflictError), publisher(self._layout.lock):
                remove_tree(self._layout.builds)

    def _nothing_to_do(self) -> dict[str, Any]:
        live = self._layout.live()
        record = self._generation(live or 0)
        for segment in record["segments"]:
            Segment(self._layout.segment(segment["name"])).close()  # says so where it is damaged
        self._note("this index is built already: same store, same plan", kind="already-built")
        return self._figures(record, already_built=True)

    def _generation(self, number: int) -> dict[str, Any]:
        return read_json(self._layout.generation(number), what=f"generation {number}")

    def _build(self, plan: Plan, build: BuildLayout) -> dict[str, Any]:
        make_directory(build.root)
        if not build.plan.exists():
            write_json(build.plan, plan.to_record())
        status = StatusWriter(build.status)
        self._emit = broadcast([self._watch, status, self._outside])
        self._emit(
            Started(
                operation="build",
                stages=_shares(plan),
                memory_bytes=plan.memory_bytes,
                settings=plan.to_record(),
            )
        )
        self._emit(StageFinished(stage="plan", seconds=time.monotonic() - self._began))
        try:
            if not is_done(self._layout.segment(FIRST_SEGMENT), plan):
                self._fill_and_merge(plan, build)
            record = publish(plan, self._layout, self._report(plan), observer=self._emit)
        except Stopped as error:
            status.stopped("stopped")
            error.hint = "Everything finished so far is kept; the same command goes on from there."
            raise
        except BaseException as error:
            status.stopped("failed", str(error))
            raise
        figures = self._figures(record, already_built=False)
        self._emit(Finished(operation="build", seconds=figures["seconds"], figures=figures))
        remove_tree(self._layout.builds)
        return figures

    def _fill_and_merge(self, plan: Plan, build: BuildLayout) -> None:
        if load_template(self._layout, plan) is None:
            sample(self._store, plan, build.sample, observer=self._emit, stop=self._stop)
        template = train(build.sample, plan, self._layout, observer=self._emit, stop=self._stop)
        build.sample.unlink(missing_ok=True)
        shards = fill(self._store, plan, template, build, observer=self._emit, stop=self._stop)
        merge(shards, plan, template.codec, build.segment, observer=self._emit, stop=self._stop)

    def _report(self, plan: Plan) -> dict[str, Any]:
        return {
            "plan": plan.to_record(),
            "seconds": time.monotonic() - self._began,
            "stages": self._stages,
            "finished": time.time(),
            "peak_private_bytes": self._peak,
            "versions": {
                "faiss": engine.version(),
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
        }

    def _figures(self, record: Mapping[str, Any], *, already_built: bool) -> dict[str, Any]:
        segments = [self._layout.segment(segment["name"]).root for segment in record["segments"]]
        return {
            "index": str(self._layout.root),
            "generation": record["generation"],
            "rows": record["rows"],
            "skipped_rows": record["skipped_rows"],
            "zero_rows": record["zero_rows"],
            "bytes": sum(_bytes_below(path) for path in (self._layout.template, *segments)),
            "seconds": time.monotonic() - self._began,
            "stages": self._stages,
            "already_built": already_built,
        }

    def _note(self, message: str, *, kind: str) -> None:
        self._emit(Note(message=message, kind=kind))


def _bytes_below(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.exists() else 0


def _shares(plan: Plan) -> dict[str, float]:
    """What part of the time each stage is expected to take, from operations and bytes."""
    multiply = 1 / 150e9  # seconds an operation of a matrix product takes
    byte = 1 / 800e6
    pick = 8e-5  # a row here and there
    values = plan.n * plan.d
    lists = plan.n * (plan.code_size + 8)
    seconds = {
        "plan": 0.1,
        "sample": plan.sample_rows * pick,
        "train": 2 * rows_looked_at(plan.sample_rows, plan.nlist) * plan.d * plan.nlist * multiply,
        "fill": 2 * values * plan.nlist * multiply + values * 1.5e-8 + plan.n * 4e-6,
        "merge": 2 * lists * byte + 0.1,
        "publish": 0.1,
    }
    whole = sum(seconds.values())
    return {stage: share / whole for stage, share in seconds.items()}
