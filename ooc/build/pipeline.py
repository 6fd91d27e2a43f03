"""A build from store to published index: runs the stages, goes on where an earlier run ended.

    plan → sample → train → fill → merge → publish

Each stage leaves a record; a stage whose record is there is not done again. What is published is
never changed, and the build's own directory goes when its index is.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ooc import engine
from ooc.build.fill import Shard, fill, segment_in_making, shards_done
from ooc.build.merge import merge
from ooc.build.plan import Options, Plan, check_disk, plan_store
from ooc.build.sample import sample
from ooc.build.status import StatusWriter
from ooc.build.train import Template, load_template, train, training_rows
from ooc.durable import make_directory, read_json, remove_tree, rename, write_bytes, write_json
from ooc.errors import ConflictError, DataError, OocError, Stopped
from ooc.events import (
    Event,
    Finished,
    Note,
    Observer,
    Progress,
    StageFinished,
    StageStarted,
    Started,
    broadcast,
)
from ooc.index.layout import Header, Layout, SegmentLayout
from ooc.index.lock import publisher
from ooc.mapping import private_bytes, release_free_memory
from ooc.stores import Store, open_store
from ooc.types import CopyVectors, Metric, OnBad, PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY

__all__ = ["build"]

_SEGMENT = "s1"
_GENERATION = 1


def build(
    store: StoreLike,
    index: PathOrStr,
    *,
    memory: int | str = DEFAULT_MEMORY,
    metric: Metric = "l2",
    factory: str | None = None,
    seed: int = 0,
    shard_rows: int | None = None,
    threads: int | None = None,
    copy_vectors: CopyVectors = "auto",
    on_bad: OnBad = "stop",
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Build an index of a store; see ``ooc.build``, which adds the live display to it."""
    options = Options(
        memory=memory,
        metric=metric,
        factory=factory,
        seed=seed,
        shard_rows=shard_rows,
        threads=threads,
        copy_vectors=copy_vectors,
        on_bad=on_bad,
    )
    layout = Layout.of(index)
    with open_store(store) as opened:
        return _Run(opened, layout, options, observer, stop or threading.Event()).run()


class _Run:
    """One call of ``build``: what its stages share."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        options: Options,
        observer: Observer | None,
        stop: threading.Event,
    ) -> None:
        self._store = store
        self._layout = layout
        self._options = options
        self._observer = observer
        self._emit = broadcast([observer])
        self._stop = stop
        self._stages: dict[str, dict[str, Any]] = {}
        self._private = 0
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        plan = self._plan()
        live = self._layout.live() if self._layout.is_index() else None
        if live is not None:
            return self._nothing_to_do(plan, live)
        fresh = not self._layout.is_index()
        build_dir = self._layout.build(plan.digest)
        check_disk(self._layout.root, needed=plan.peak_disk_bytes - _bytes_below(build_dir))
        self._layout.claim(Header(d=plan.d, metric=plan.metric))  # refuses what is not ours
        try:
            with publisher(self._layout.lock):
                live = self._layout.live()
                if live is not None:  # another process was quicker
                    return self._nothing_to_do(plan, live)
                return self._build(plan, build_dir)
        except Stopped:
            raise
        except (OocError, OSError):
            if fresh and not shards_done(build_dir):
                remove_tree(self._layout.root)  # nothing durable was made: leave nothing behind
            raise

    def _plan(self) -> Plan:
        """The plan; for as many rows as an earlier run had, where the store has grown since."""
        began = time.monotonic()
        plan = plan_store(self._store, self._options)
        earlier = self._earlier()
        if earlier is not None and earlier["n"] < self._store.n:
            prefix = plan_store(self._store, self._options, n=earlier["n"])
            if prefix.fingerprint == earlier["fingerprint"]:
                self._tell(
                    f"the store has grown by {self._store.n - prefix.n} rows since this build began; "
                    f"it goes on with the first {prefix.n}",
                    "store-grown",
                )
                plan = prefix
        if earlier is not None:
            self._see_same(plan, earlier)
        self._stages["plan"] = {"seconds": time.monotonic() - began}
        return plan

    def _earlier(self) -> dict[str, Any] | None:
        """What the build that is there, finished or not, was of."""
        if not self._layout.is_index():
            return None
        self._layout.read_header()
        live = self._layout.live()
        if live is not None:
            record = read_json(self._layout.generation(live), what=f"generation {live}")
            return dict(record["plan"])
        for path in sorted(self._layout.builds.glob("*/plan.json")):
            record = read_json(path, what="the plan of the unfinished build")
            return dict(Plan.from_record(record).identity)
        return None

    def _see_same(self, plan: Plan, earlier: dict[str, Any]) -> None:
        differing = {k: v for k, v in plan.identity.items() if earlier.get(k) != v}
        if not differing:
            return
        finished = self._layout.live() is not None
        what = "index" if finished else "unfinished build"
        if set(differing) <= {"fingerprint", "n"}:
            raise ConflictError(
                f"{self._layout.root} holds an {what} of other rows: the store {self._store.uri or 'given'} "
                "is another one, or it was changed since",
                kind="store-changed",
                hint=f"Name another directory, or remove {self._layout.root} to start over.",
            )
        differing.pop("fingerprint", None)
        said = ", ".join(
            f"{key} {earlier.get(key)!r} there and {value!r} now" for key, value in differing.items()
        )
        raise ConflictError(
            f"{self._layout.root} holds an {what} with another plan: {said}",
            kind="index-exists",
            hint="Give the same settings, name another directory, or remove that one first.",
        )

    def _nothing_to_do(self, plan: Plan, live: int) -> dict[str, Any]:
        record = read_json(self._layout.generation(live), what=f"generation {live}")
        self._tell("this index is built already: same store, same plan", "already-built")
        return self._figures(plan, record, already_built=True)

    def _build(self, plan: Plan, build_dir: Path) -> dict[str, Any]:
        make_directory(build_dir)
        if not (build_dir / "plan.json").exists():
            write_json(build_dir / "plan.json", plan.to_record())
        status = StatusWriter(build_dir / "status.json")
        self._emit = broadcast([status, self._observer])
        try:
            self._emit(
                Started(
                    operation="build",
                    stages=_shares(plan),
                    memory_bytes=plan.memory_bytes,
                    settings=plan.to_record(),
                )
            )
            self._emit(StageFinished(stage="plan", seconds=self._stages["plan"]["seconds"]))
            segment = self._layout.segment(_SEGMENT)
            if not segment.record.exists():
                template = self._train(plan, build_dir)
                shards = self._fill(plan, template, build_dir)
                self._merge(plan, template, shards, build_dir)
            return self._publish(plan, build_dir)
        except Stopped as error:
            status.stopped("stopped")
            error.hint = "Everything finished so far is kept; the same command goes on from there."
            raise
        except BaseException as error:
            status.stopped("failed", str(error))
            raise

    def _train(self, plan: Plan, build_dir: Path) -> Template:
        template = load_template(self._layout, plan)
        if template is None:
            path = build_dir / "sample.npy"
            done = build_dir / "sample.done"
            if not done.exists():
                with self._stage("sample", plan.sample_rows, row_bytes=self._store.row_bytes) as (
                    told,
                    figures,
                ):
                    sample(self._store, plan, path, progress=told, check=self._check)
                    write_bytes(done, b"")
                    figures["rows"] = plan.sample_rows
            with self._stage("train", training_rows(plan), row_bytes=4 * plan.d) as (told, figures):
                train(path, plan, self._layout, progress=told, check=self._check)
                figures["nlist"] = plan.nlist
            template = load_template(self._layout, plan)
            if template is None:
                raise OocError("the template was written and is not there", kind="internal")
        (build_dir / "sample.npy").unlink(missing_ok=True)
        return template

    def _fill(self, plan: Plan, template: Template, build_dir: Path) -> list[Shard]:
        there = sum(shard.stop - shard.start for shard in shards_done(build_dir))
        with self._stage("fill", plan.n, done=there, row_bytes=self._store.row_bytes) as (told, figures):
            shards = fill(self._store, plan, template, build_dir, progress=told, stop=self._stop.is_set)
            skipped = sum(shard.skipped for shard in shards)
            zeros = sum(shard.zeros for shard in shards)
            rows = sum(shard.rows for shard in shards)
            figures.update(rows=rows, shards=len(shards), skipped_rows=skipped, zero_rows=zeros)
            if skipped:
                first = next(shard.first_skipped for shard in shards if shard.skipped)
                self._tell(
                    f"{skipped} rows hold NaN or infinity and are left out, the first is row {first}",
                    "rows-skipped",
                    warning=True,
                )
            if zeros:
                self._tell(
                    f"{zeros} rows are zero: their cosine with anything is taken as 0",
                    "zero-rows",
                    warning=True,
                )
            if not rows:
                raise DataError("every row holds NaN or infinity: there is nothing to index", kind="bad-rows")
        return shards

    def _merge(self, plan: Plan, template: Template, shards: list[Shard], build_dir: Path) -> None:
        segment = segment_in_making(build_dir)
        total = sum(shard.path.stat().st_size for shard in shards)
        with self._stage("merge", total, unit="bytes") as (told, figures):
            if not segment.record.exists():
                merged = merge(shards, template.codec, segment, progress=told, check=self._check)
                checksums = dict(merged.checksums)
                if plan.copy_vectors:
                    checksums[segment.vectors.name] = [c for shard in shards for c in shard.row_checksums]
                _write_segment(segment, plan, shards, checksums)
                figures.update(bytes=total, **list_figures(merged.sizes))

    def _publish(self, plan: Plan, build_dir: Path) -> dict[str, Any]:
        segment = self._layout.segment(_SEGMENT)
        with self._stage("publish", 1) as (told, _):
            if not segment.record.exists():
                remove_tree(segment.root)
                make_directory(segment.root.parent)
                rename(segment_in_making(build_dir).root, segment.root)
            told(1)
        written = read_json(segment.record, what="the segment's record")
        record = {
            "generation": _GENERATION,
            "rows": written["rows"],
            "skipped_rows": written["skipped_rows"],
            "zero_rows": written["zero_rows"],
            "segments": [{"name": _SEGMENT, "rows": written["rows"]}],
            "plan": plan.identity,
            "store": {"uri": plan.store, "format": plan.store_format, "mapped": plan.mapped},
        }
        figures = self._figures(plan, record, already_built=False)
        report = {
            **figures,
            "index": None,  # the directory may move
            "plan": plan.to_record(),
            "finished": time.time(),
            "peak_private_bytes": self._private,
            "versions": {
                "faiss": engine.version(),
                "numpy": np.__version__,
                "python": sys.version.split()[0],
            },
        }
        self._layout.publish(_GENERATION, record, report)
        self._emit(Finished(operation="build", seconds=figures["seconds"], figures=figures))
        remove_tree(self._layout.builds)
        return figures

    def _figures(self, plan: Plan, record: dict[str, Any], *, already_built: bool) -> dict[str, Any]:
        return {
            "index": str(self._layout.root),
            "generation": record["generation"],
            "rows": record["rows"],
            "skipped_rows": record["skipped_rows"],
            "zero_rows": record["zero_rows"],
            "bytes": sum(
                _bytes_below(path)
                for path in (
                    self._layout.template,
                    *(self._layout.segment(s["name"]).root for s in record["segments"]),
                )
            ),
            "seconds": time.monotonic() - self._began,
            "stages": self._stages,
            "already_built": already_built,
        }

    @contextmanager
    def _stage(
        self, stage: str, total: int, *, unit: str = "rows", done: int = 0, row_bytes: int = 0
    ) -> Iterator[tuple[Callable[[int], None], dict[str, Any]]]:
        began = time.monotonic()
        figures: dict[str, Any] = {}
        self._emit(
            StageStarted(
                stage=stage,
                total=total,
                unit="bytes" if unit == "bytes" else "rows",
                done=done,
                row_bytes=row_bytes,
            )
        )

        def told(count: int) -> None:
            self._private = max(self._private, private_bytes())
            self._emit(Progress(stage=stage, done=count))

        yield told, figures
        seconds = time.monotonic() - began
        self._stages[stage] = {"seconds": seconds, **figures}
        release_free_memory()  # the next stage's budget is its own
        self._emit(StageFinished(stage=stage, seconds=seconds, figures=figures))

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped("stopped at a safe point")

    def _tell(self, message: str, kind: str, *, warning: bool = False) -> None:
        note: Event = Note(message=message, kind=kind, level="warning" if warning else "info")
        self._emit(note)


def _write_segment(
    segment: SegmentLayout, plan: Plan, shards: list[Shard], checksums: dict[str, list[str]]
) -> None:
    lines = [
        f"{digest}  {name}  {number}\n"
        for name, digests in checksums.items()
        for number, digest in enumerate(digests)
    ]
    write_bytes(segment.checksums, "".join(lines).encode())
    files = [segment.header, segment.lists, segment.checksums]
    if plan.copy_vectors:
        files.append(segment.vectors)
    write_json(
        segment.record,
        {
            "rows": sum(shard.rows for shard in shards),
            "skipped_rows": sum(shard.skipped for shard in shards),
            "zero_rows": sum(shard.zeros for shard in shards),
            "bytes": {path.name: path.stat().st_size for path in files},
        },
    )


def list_figures(sizes: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, Any]:
    """How even the lists are: the mean, and the mean weighted by size, which is what a probe meets."""
    total = int(sizes.sum())
    return {
        "mean": total / len(sizes),
        "weighted_mean": float((sizes.astype(np.float64) ** 2).sum() / max(total, 1)),
        "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
    }


def _bytes_below(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.exists() else 0


def _shares(plan: Plan) -> dict[str, float]:
    """What part of the time each stage is expected to take, from operations and bytes."""
    multiply = 1 / 150e9  # seconds an operation of a matrix product takes
    byte = 1 / 800e6
    pick = 8e-5  # a row here and there
    rows = plan.n * plan.d
    lists = plan.n * (plan.code_size + 8)
    seconds = {
        "plan": 0.1,
        "sample": plan.sample_rows * pick,
        "train": 2 * training_rows(plan) * plan.d * plan.nlist * multiply,
        "fill": 2 * rows * plan.nlist * multiply + rows * 1.5e-8 + plan.n * 4e-6,
        "merge": 2 * lists * byte + 0.1,
        "publish": 0.1,
    }
    whole = sum(seconds.values())
    return {stage: share / whole for stage, share in seconds.items()}
