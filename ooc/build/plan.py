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
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np

from ooc import engine
from ooc.build.choose import Compared, choose_code
from ooc.build.factory import parse_factory
from ooc.build.given import fingerprint, read_queries
from ooc.build.glance import Glance
from ooc.build.reuse import reusable
from ooc.build.sizes import Sizes, copied_dtype, most_witnesses, witnesses_of
from ooc.errors import ArgumentError, PlanError, ResourceError
from ooc.index.layout import SCALED, SPILL
from ooc.search.queries import check_at_least
from ooc.stores import Store
from ooc.stores.keys import keys_of_rows, open_keys
from ooc.types import METRICS, CopyDtype, CopyVectors, KeysLike, Metric, OnBad, PathOrStr, Spill, StoreLike
from ooc.units import DEFAULT_MEMORY, format_bytes, parse_bytes

__all__ = [
    "Forecast",
    "Options",
    "Plan",
    "available_threads",
    "check_disk",
    "plan_store",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a build is expected to take.

    Attributes
    ----------
    seconds : mapping of str to float
        By stage.
    memory_bytes : int
        Private memory that it comes to; the plan has what it may at most.
    disk_bytes : int
        Of the finished index.
    measured : bool
        Whether speeds were measured for it on this machine and store, or are the usual ones.
    memory_by_stage : mapping of str to int
        Private memory that each stage comes to.
    """

    seconds: Mapping[str, float]
    memory_bytes: int
    disk_bytes: int
    measured: bool
    memory_by_stage: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


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
    spill : bool
        Whether each row is in a second list too.
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
    copy_dtype : str
        Of the index's own rows: ``"store"``, ``"float16"`` or ``"int8"``.
    witnesses : int
        Rows, or queries, whose true neighbours are found while filling, by which recall is measured.
    queries : str
        Fingerprint of the queries by which recall is measured; empty where rows of the store are.
    keys : str
        Fingerprint of the keys of the rows; empty where they have none.
    overlapped : bool
        Whether most of the sample is read while training goes on.
    chosen : bool
        Whether the code was chosen by what a search would read, as none was named.
    compared : tuple of Compared
        The codes that this was chosen among.
    forecast : Forecast, optional
        What the build is expected to take; no part of what makes two plans equal.
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
    spill: bool
    on_bad: OnBad
    memory_bytes: int
    threads: int
    block_rows: int
    shard_rows: int
    memory_by_stage: Mapping[str, int]
    index_bytes: Mapping[str, int]
    scratch_bytes: int
    template: str = ""
    copy_dtype: CopyDtype = "store"
    witnesses: int = 0
    queries: str = ""
    keys: str = ""
    overlapped: bool = False
    chosen: bool = False
    compared: tuple[Compared, ...] = ()
    forecast: Forecast | None = dataclasses.field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """Short name of what decides the bytes of the index: equal plans make equal indexes."""
        return self.digest_of(self.identity)

    @staticmethod
    def digest_of(identity: Mapping[str, Any]) -> str:
        """The digest of a plan of which this decides the bytes."""
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the bytes of the index."""
        reused = {"template": self.template} if self.template else {}
        asked = {"queries": self.queries} if self.queries else {}
        copied = {"copy_dtype": self.copy_dtype} if self.copy_dtype != "store" else {}
        keyed = {"keys": self.keys} if self.keys else {}
        return {key: getattr(self, key) for key in _IDENTITY} | reused | asked | copied | keyed

    @property
    def features(self) -> frozenset[str]:
        """What a reader of the index has to know beside its format version."""
        has = {SPILL: self.spill, SCALED: self.copy_dtype == "int8"}
        return frozenset(name for name, there in has.items() if there)

    @property
    def lists_per_row(self) -> int:
        """How many lists a row is in."""
        return 2 if self.spill else 1

    @property
    def peak_disk_bytes(self) -> int:
        """The most that a build from the start takes on disk."""
        return sum(self.index_bytes.values()) + self.scratch_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row where a search reads it: in the index's own copy, or in the store."""
        return _row_bytes(self.d, self.dtype, self.copy_dtype if self.copy_vectors else "store")

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
        kept = {name: value for name, value in record.items() if name in names}
        kept["compared"] = tuple(Compared(**one) for one in kept.get("compared", ()))
        kept["forecast"] = Forecast(**kept["forecast"]) if kept.get("forecast") else None
        made = cls(**kept)
        for field in dataclasses.fields(cls):
            kind, value = _KINDS.get(str(field.type)), getattr(made, field.name)
            if kind is not None and type(value) is not kind:
                raise ValueError(f"{field.name} {value!r}")
            if isinstance(value, int) and not 0 <= value < 1 << 53:
                raise ValueError(f"{field.name} {value!r}")
        if not made.d or not made.shard_rows or not made.nlist or made.metric not in METRICS:
            raise ValueError(f"a plan of {made.n} rows of {made.d} dimensions, metric {made.metric!r}")
        return made


#: More rows than lists that anybody plans.
_ANY_ROWS = 1 << 40

#: What fields of a plan must be when they come from a file.
_KINDS: dict[str, type] = {"int": int, "str": str, "bool": bool}

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
    "spill",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller of ``ooc.plan`` and ``ooc.build`` may choose; checked when it is made."""

    memory: int | str = DEFAULT_MEMORY
    metric: Metric = "l2"
    factory: str | None = None
    seed: int = 0
    shard_rows: int | None = None
    threads: int | None = None
    copy_vectors: CopyVectors = "auto"
    copy_dtype: CopyDtype = "store"
    spill: Spill = "off"
    on_bad: OnBad = "stop"
    template: PathOrStr | None = None
    queries: StoreLike | None = None
    keys: KeysLike | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("metric", METRICS),
            ("copy_vectors", get_args(CopyVectors)),
            ("copy_dtype", get_args(CopyDtype)),
            ("spill", get_args(Spill)),
            ("on_bad", get_args(OnBad)),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ArgumentError(f"{name} must be one of {', '.join(allowed)}, not {value!r}", kind=name)
        if self.copy_vectors == "never" and self.copy_dtype != "store":
            raise ArgumentError(
                f"copy_dtype={self.copy_dtype!r} is of the rows that the index keeps, "
                "and with copy_vectors='never' it keeps none",
                kind="copy_dtype",
                hint="Leave one of the two out.",
            )
        for name, least in (("seed", 0), ("shard_rows", 1), ("threads", 1)):
            if (count := getattr(self, name)) is not None:
                object.__setattr__(self, name, check_at_least(name, count, least))
        if self.seed >= 2**31:
            raise ArgumentError(f"seed must be from 0 to 2**31 - 1, not {self.seed}", kind="seed")
        factory: object = self.factory
        if factory is not None and not isinstance(factory, str):
            raise ArgumentError(
                f"factory must be a string of faiss's, as 'HR,IVF4096,RaBitQ', not {factory!r}",
                kind="factory",
            )
        parse_bytes(self.memory)


def plan_store(
    opened: Store,
    options: Options,
    *,
    n: int | None = None,
    trained: bool = False,
    glance: Glance | None = None,
    stop: threading.Event | None = None,
) -> Plan:
    """The plan for the first ``n`` rows (default: all) of an open store, without a forecast.

    Where it is ``trained`` already, the budget need not suffice for training. ``glance`` has rows of the
    store by which a code is chosen where none is named. When ``stop`` is set, ``Stopped`` is raised.
    """
    engine.check_platform()
    reused = None if options.template is None else reusable(options.template, options, d=opened.d)
    if reused is not None:
        options, trained = dataclasses.replace(options, factory=reused.factory, seed=reused.seed), True
    n = opened.n if n is None else n
    threads = options.threads or available_threads()
    memory_bytes = parse_bytes(options.memory)
    copies, copy_dtype = _copies(opened, options)
    given = None
    if options.queries is not None:
        given = read_queries(options.queries, d=opened.d, metric=options.metric, count=most_witnesses(n))
    keys, key_bytes = "", 0
    if options.keys is not None:
        source = keys_of_rows(open_keys(options.keys), 0, n, opened.n)
        keys, key_bytes = source.fingerprint()
        key_bytes += n * (12 if source.kind == "int64" else 20)
    compared: tuple[Compared, ...] = ()
    code = options.factory
    if code is None:
        if glance is None or glance.n != n:
            glance = Glance(opened, options.metric, options.seed, n)
        compared = choose_code(
            glance.rows,
            options.metric,
            options.seed,
            threads,
            n=n,
            row_bytes=_row_bytes(opened.d, opened.dtype.name, copy_dtype if copies else "store"),
            queries=given,
            stop=stop,
        )
        code = next(one.code for one in compared if one.chosen)
    # A template has as many lists as it has, however few rows come to it.
    many = n if reused is None else _ANY_ROWS
    made = parse_factory(code, n=many, d=opened.d, metric=options.metric)
    spill = options.spill == "on"
    if spill and made.nlist < 2:
        raise PlanError(
            f"a second list for each row is wanted, and there is {made.nlist}",
            kind="spill",
            hint="Leave --spill out, or plan more lists.",
        )
    sizes = Sizes(store=opened, n=n, factory=made, threads=threads, spill=spill, trained=trained)
    block_rows, shard_rows = sizes.fit(memory_bytes, options.shard_rows)
    memory, overlapped = sizes.memory(block_rows, shard_rows), False
    if "train" in memory and opened.mapped:
        both = memory["train"] + sizes.sampling
        overlapped = both <= memory_bytes
        memory["train"] = both if overlapped else memory["train"]
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
        copy_dtype=copy_dtype,
        spill=spill,
        on_bad=options.on_bad,
        memory_bytes=memory_bytes,
        threads=threads,
        block_rows=block_rows,
        shard_rows=shard_rows,
        memory_by_stage=memory,
        index_bytes=sizes.on_disk(copy_dtype if copies else None) | ({"keys": key_bytes} if keys else {}),
        scratch_bytes=sizes.scratch(),
        template="" if reused is None else reused.digest,
        witnesses=sizes.witnesses if given is None else sum(witnesses_of(len(given), most_witnesses(n))),
        queries="" if given is None else fingerprint(given),
        keys=keys,
        overlapped=overlapped,
        chosen=options.factory is None,
        compared=compared,
    )


def _row_bytes(d: int, stored: str, copied: CopyDtype) -> int:
    """Bytes of a row where a search reads it."""
    name = stored if copied == "store" else copied
    return d * (2 if name == "bfloat16" else np.dtype(name).itemsize)


def _copies(opened: Store, options: Options) -> tuple[bool, CopyDtype]:
    """Whether the index keeps rows of its own, and of which dtype."""
    asked, stored = options.copy_dtype, opened.dtype.name
    if options.copy_vectors == "auto":
        copies = asked != "store" or not opened.mapped
    else:
        copies = options.copy_vectors == "always"
    if asked in ("store", stored):
        return copies, "store"
    if copied_dtype(stored, asked).itemsize >= copied_dtype(stored, "store").itemsize:
        raise PlanError(
            f"a copy as {asked} is wanted, and the rows of {opened.uri or 'the array'} are {stored}: "
            "that loses digits and is no smaller",
            kind="copy_dtype",
            hint="Leave --copy-dtype out: the copy has the store's dtype then.",
        )
    return copies, asked


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
