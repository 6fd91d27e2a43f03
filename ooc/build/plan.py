"""The plan of a build: every size and choice, decided before any work from sizes and the budget.

What decides the bytes of the index (rows, metric, code, lists, sample, seed, copy) does not depend
on the memory budget or the threads; what depends on them (how many rows a block or a shard has)
does not change the bytes. So an interrupted build can go on under another budget.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

from ooc import engine
from ooc.build.assign import scores_bytes
from ooc.build.factory import Factory, parse_factory
from ooc.build.reuse import reusable
from ooc.errors import ArgumentError, PlanError, ResourceError
from ooc.stores import Store, open_store
from ooc.types import METRICS, CopyVectors, Metric, OnBad, PathOrStr, StoreLike
from ooc.units import DEFAULT_MEMORY, MIB, format_bytes, parse_bytes

__all__ = [
    "BATCH_BYTES",
    "BLOCK_ROWS",
    "COPY_BYTES",
    "Options",
    "Plan",
    "check_disk",
    "code_training_rows",
    "plan",
    "plan_store",
]

#: Rows that are assigned and encoded together. Fixed: the last bits of a matrix product change with
#: its shape, and the same rows must give the same bytes under every budget.
BLOCK_ROWS = 1024

#: Private memory of the interpreter with numpy, faiss, zarr, h5py and the display loaded, and what
#: BLAS keeps for two threads.
_BASE_BYTES = 80 * MIB

#: What the decoders of a store that cannot be mapped take besides their chunks.
_DECODER_BYTES = 32 * MIB

#: Rows of the training sample for each list, and never fewer than this many in all.
_SAMPLE_PER_LIST = 64
_SAMPLE_LEAST = 16_384

#: Most rows of a shard: what a crash can cost.
_SHARD_MOST_ROWS = 1 << 20
_SHARD_LEAST_ROWS = 16 * BLOCK_ROWS

#: Buffer through which lists are copied in a merge, and a shard is written.
COPY_BYTES = 16 * MIB

#: Rows of the sample that are asked of the disk together.
BATCH_BYTES = 16 * MIB


def code_training_rows(sample_rows: int, d: int) -> int:
    """Rows of the sample that transforms and code are trained on: enough for both, few in memory."""
    return min(sample_rows, 65_536, max(32 * MIB // (4 * d), 256 * 39))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a build will do and cost. Sizes are bytes; nothing was written to make it.

    Attributes
    ----------
    store, store_format, dtype, mapped, fingerprint
        The store as it was opened; ``store`` is empty for an array in memory.
    n, d : int
        Rows to index and their dimensions.
    metric : str
        ``"l2"``, ``"ip"`` or ``"cosine"``.
    factory : str
        The whole factory string; ``nlist`` lists of ``code_size`` bytes a row.
    sample_rows : int
        Rows trained on.
    seed : int
        Of the sample, the rotation and k-means.
    copy_vectors : bool
        Whether the index keeps its own rows for re-ranking.
    on_bad : str
        ``"stop"`` or ``"skip"`` at rows with NaN or infinity.
    memory_bytes, threads, block_rows, shard_rows : int
        The budget and what it makes of the work: rows read at a time, rows of a shard.
    memory_by_stage : mapping of str to int
        Most private memory each stage takes, start-up included.
    index_bytes : mapping of str to int
        What the finished index takes on disk, by part.
    scratch_bytes : int
        What the build takes on disk besides while it runs.
    template : str
        Digest of the template that is reused; empty where one is trained.
    """

    store: str
    store_format: str
    dtype: str
    mapped: bool
    fingerprint: str
    n: int
    d: int
    metric: Metric
    factory: str
    nlist: int
    code_size: int
    d_code: int
    sample_rows: int
    seed: int
    copy_vectors: bool
    on_bad: OnBad
    memory_bytes: int
    threads: int
    block_rows: int
    shard_rows: int
    memory_by_stage: Mapping[str, int]
    index_bytes: Mapping[str, int]
    scratch_bytes: int
    template: str = ""

    @property
    def digest(self) -> str:
        """Short name of what decides the bytes of the index: equal plans make equal indexes."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the index."""
        reused = {"template": self.template} if self.template else {}
        return {key: getattr(self, key) for key in _IDENTITY} | reused

    @property
    def peak_disk_bytes(self) -> int:
        """The most that a build from the start takes on disk."""
        return sum(self.index_bytes.values()) + self.scratch_bytes

    @property
    def shards(self) -> int:
        """How many shards a build from the start fills."""
        return -(-self.n // self.shard_rows)

    def to_record(self) -> dict[str, Any]:
        """JSON-ready mapping; ``from_record`` reads it back."""
        record = dataclasses.asdict(self)
        return {**record, "digest": self.digest, "shards": self.shards}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The plan that ``to_record`` wrote."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in names})


#: What decides the bytes. The store's name and format are left out: a moved store is the same store.
#: So is ``on_bad``: what was done before the first bad row is good under either.
_IDENTITY = (
    "fingerprint",
    "n",
    "d",
    "metric",
    "factory",
    "sample_rows",
    "seed",
    "copy_vectors",
)


def plan(
    store: StoreLike,
    *,
    memory: int | str = DEFAULT_MEMORY,
    metric: Metric = "l2",
    factory: str | None = None,
    seed: int = 0,
    shard_rows: int | None = None,
    threads: int | None = None,
    copy_vectors: CopyVectors = "auto",
    on_bad: OnBad = "stop",
    template: PathOrStr | None = None,
    index: PathOrStr | None = None,
) -> Plan:
    """What building an index of a store will do and cost. Nothing is written.

    Parameters
    ----------
    store : path, URL, glob, list, array or Store
        What ``ooc.open_store`` takes.
    memory : int or str
        Budget of private memory for the whole process, as in ``"512MiB"``.
    metric : {"l2", "ip", "cosine"}
        ``cosine`` normalises the rows on their way in.
    factory : str, optional
        As faiss's, for example ``"HR,IVF4096,RaBitQ2"`` or ``"SQ8"``; lists and transforms that are
        left out are filled in. Default: a rotation and a few bits a dimension.
    seed : int
        Same store, plan and seed: same bytes.
    shard_rows : int, optional
        Rows of a shard, rounded up to a multiple of 1024; default from the budget.
    threads : int, optional
        Default: the processors this process may use.
    copy_vectors : {"auto", "always", "never"}
        Whether the index keeps its own rows for exact re-ranking. ``auto``: where the store cannot
        be memory-mapped.
    on_bad : {"stop", "skip"}
        At rows with NaN or infinity: stop with an error, or leave them out.
    template : path, optional
        An index whose trained template is reused; nothing is trained then. Its code, lists and seed
        are this plan's.
    index : path, optional
        Where the index shall be: its disk is checked for room.

    Raises
    ------
    StoreError
        The store is missing or is not a 2-d array of vectors.
    PlanError
        The memory is too small for any plan (the message has the least that works), the code
        cannot live on disk, or the template is for other vectors.
    ResourceError
        The disk of ``index`` has too little room.
    ArgumentError
        An argument is out of its range.
    """
    options = Options(
        memory=memory,
        metric=metric,
        factory=factory,
        seed=seed,
        shard_rows=shard_rows,
        threads=threads,
        copy_vectors=copy_vectors,
        on_bad=on_bad,
        template=template,
    )
    with open_store(store) as opened:
        result = plan_store(opened, options)
    if index is not None:
        check_disk(Path(index), needed=result.peak_disk_bytes)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller of ``plan`` and ``build`` may choose; checked when it is made."""

    memory: int | str = DEFAULT_MEMORY
    metric: Metric = "l2"
    factory: str | None = None
    seed: int = 0
    shard_rows: int | None = None
    threads: int | None = None
    copy_vectors: CopyVectors = "auto"
    on_bad: OnBad = "stop"
    template: PathOrStr | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("metric", METRICS),
            ("copy_vectors", get_args(CopyVectors)),
            ("on_bad", get_args(OnBad)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ArgumentError(f"{name} must be one of {', '.join(allowed)}, not {value!r}", kind=name)
        if not 0 <= self.seed < 2**31:
            raise ArgumentError(f"seed must be from 0 to 2**31 - 1, not {self.seed}", kind="seed")
        for name in ("shard_rows", "threads"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ArgumentError(f"{name} must be at least 1, not {count}", kind=name)
        parse_bytes(self.memory)


def plan_store(opened: Store, options: Options, *, n: int | None = None, trained: bool = False) -> Plan:
    """The plan for the first ``n`` rows (default: all) of an open store; see ``plan``.

    Where it is ``trained`` already, the budget need not suffice for training.
    """
    engine.check_platform()
    reused = None if options.template is None else reusable(options.template, options, d=opened.d)
    if reused is not None:
        options, trained = dataclasses.replace(options, factory=reused.factory, seed=reused.seed), True
    n = opened.n if n is None else n
    threads = options.threads or available_threads()
    memory_bytes = parse_bytes(options.memory)
    made = parse_factory(options.factory, n=n, d=opened.d, metric=options.metric)
    copies = not opened.mapped if options.copy_vectors == "auto" else options.copy_vectors == "always"
    sizes = _Sizes(store=opened, n=n, factory=made, threads=threads, trained=trained)
    block_rows, shard_rows = sizes.fit(memory_bytes, options.shard_rows)
    return Plan(
        store=opened.uri,
        store_format=opened.format,
        dtype=opened.dtype.name,
        mapped=opened.mapped,
        fingerprint=opened.fingerprint(n),
        n=n,
        d=opened.d,
        metric=options.metric,
        factory=made.text,
        nlist=made.nlist,
        code_size=made.code_size,
        d_code=made.d_code,
        sample_rows=sizes.sample_rows if reused is None else reused.sample_rows,
        seed=options.seed,
        copy_vectors=copies,
        on_bad=options.on_bad,
        memory_bytes=memory_bytes,
        threads=threads,
        block_rows=block_rows,
        shard_rows=shard_rows,
        memory_by_stage=sizes.memory(block_rows, shard_rows),
        index_bytes=sizes.on_disk(copies),
        scratch_bytes=sizes.scratch(),
        template="" if reused is None else reused.digest,
    )


def available_threads() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_disk(index: Path, *, needed: int) -> None:
    """Raise ResourceError when the disk that shall hold ``index`` has less than ``needed`` bytes free."""
    place = next(p for p in (index, *index.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"the build needs {format_bytes(needed)} on the disk of {place}; {format_bytes(free)} are free",
            kind="disk-full",
            hint="Free some space, name a place on another disk, or plan a smaller code (`ooc plan`).",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """How many bytes each part takes. One model, used to fit the budget and to report it."""

    store: Store
    n: int
    factory: Factory
    threads: int
    trained: bool = False

    @property
    def sample_rows(self) -> int:
        return min(self.n, max(_SAMPLE_PER_LIST * self.factory.nlist, _SAMPLE_LEAST))

    @property
    def _centroids(self) -> int:
        # In the space rows are assigned in, and in faiss's quantizer (with a graph's links).
        links = 4 * 2 * 32 * self.factory.nlist if self.factory.graph else 0
        return self.factory.nlist * 4 * (self.store.d + self.factory.d_code) + links

    @property
    def _worker(self) -> int:
        # A block of rows as float32, transformed, what assigning takes, its codes.
        row = 4 * (2 * self.store.d + 3 * self.factory.d_code) + self.factory.code_size
        return BLOCK_ROWS * (row + scores_bytes(self.factory.nlist, self.store.d))

    def _blocks(self, block_rows: int) -> int:
        if self.store.mapped:
            return 0
        return 3 * block_rows * self.store.row_bytes + 2 * self.store.chunk_bytes + _DECODER_BYTES

    def _shard(self, rows: int) -> int:
        # Code, list number, place in list order; the buffer it is written through.
        return rows * (self.factory.code_size + 4 + 2 * 8) + COPY_BYTES

    def _train(self) -> int:
        # The centroids, their sums, and copies while they change; then either the sums of blocks that
        # wait their turn, or the rows that transforms and code are trained on.
        widest = max(self.store.d, self.factory.d_code)
        waiting = 4 * self.threads * BLOCK_ROWS * 4 * widest
        code = 3 * 4 * widest * code_training_rows(self.sample_rows, self.store.d)
        return 3 * self._centroids + self.threads * self._worker + max(waiting, code)

    def memory(self, block_rows: int, shard_rows: int) -> dict[str, int]:
        """Most private memory by stage."""
        working = self._centroids + self.threads * self._worker + self._blocks(block_rows)
        training = {
            "sample": _BASE_BYTES + self._blocks(0) + 16 * self.sample_rows + 3 * BATCH_BYTES,
            "train": _BASE_BYTES + self._train(),
        }
        return ({} if self.trained else training) | {
            "fill": _BASE_BYTES + working + self._shard(shard_rows),
            "merge": _BASE_BYTES + self._centroids + 3 * COPY_BYTES,
        }

    def fit(self, memory_bytes: int, shard_rows: int | None) -> tuple[int, int]:
        """Rows to a block and to a shard within the budget.

        Raises
        ------
        PlanError
            When not even the smallest do, with the least memory that works.
        """
        whole = -(-self.n // BLOCK_ROWS) * BLOCK_ROWS
        least_shard = min(whole, _SHARD_LEAST_ROWS)
        if shard_rows is not None:
            shard_rows = least_shard = min(whole, -(-shard_rows // BLOCK_ROWS) * BLOCK_ROWS)
        least = max(self.memory(BLOCK_ROWS, least_shard).values())
        if least > memory_bytes:
            needed = -(-least // MIB)
            chunk = self.store.chunk_bytes
            why = f"; one chunk of the store alone is {format_bytes(chunk)}" if chunk > least // 4 else ""
            raise PlanError(
                f"{format_bytes(memory_bytes)} of memory are too little for {self.n} x {self.store.d} "
                f"rows and {self.factory.text}{why}",
                kind="memory-too-small",
                hint=f"The least that works is {needed}MiB; fewer lists or smaller shards need less.",
            )
        block_rows = BLOCK_ROWS
        for rows in (16 * BLOCK_ROWS, 8 * BLOCK_ROWS, 4 * BLOCK_ROWS, 2 * BLOCK_ROWS):
            spare = memory_bytes - max(self.memory(rows, least_shard).values())
            if spare >= 0 and self._blocks(rows) - self._blocks(BLOCK_ROWS) <= memory_bytes // 4:
                block_rows = rows
                break
        if shard_rows is None:
            spare = memory_bytes - self.memory(block_rows, 0)["fill"]
            rows = spare // (self._shard(1) - self._shard(0)) // BLOCK_ROWS * BLOCK_ROWS
            shard_rows = max(least_shard, min(rows, whole, _SHARD_MOST_ROWS))
        return block_rows, shard_rows

    def on_disk(self, copies: bool) -> dict[str, int]:
        """Bytes of the finished index by part."""
        n, nlist = self.n, self.factory.nlist
        header = nlist * (4 * self.factory.d_code + 3 * 8) + (1 << 16)
        if self.factory.graph:
            header += 4 * 2 * 32 * nlist
        dtype_bytes = 4 if self.store.dtype.name in ("float64", "bfloat16") else self.store.dtype.itemsize
        parts = {
            "lists": n * (self.factory.code_size + 8),
            "header": header,
            "template": header + nlist * 4 * self.store.d,
        }
        if copies:
            parts["vectors"] = n * self.store.d * dtype_bytes
        return parts

    def scratch(self) -> int:
        """Bytes beside the index while it is built: the sample, then the shards."""
        sample = 0 if self.trained else self.sample_rows * self.store.d * 4
        return max(sample, self.n * (self.factory.code_size + 8))
