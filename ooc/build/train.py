"""The template: transforms, centroids and code, trained on the sample."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ooc.build.assign import Assigner
from ooc.build.draw import draw
from ooc.build.kmeans import kmeans, rows_looked_at
from ooc.build.plan import Plan
from ooc.build.sample import Sample, npy_header
from ooc.build.sizes import code_training_rows
from ooc.build.workers import Pool
from ooc.durable import DurableFile, make_directory, read_json, write_sealed
from ooc.engine import Codec, interruptible, require_rows
from ooc.errors import Stopped
from ooc.events import Observer, ignore, stage
from ooc.index.arrays import read_array
from ooc.index.layout import Layout
from ooc.types import BytesArray, FloatArray, IntArray, Metric

__all__ = ["Template", "load_template", "published_template", "train", "write_template"]

#: So few rows are compared with all centroids: a sketch of these takes as long as comparing 2 000 rows.
_FEW_ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What training gives: where a row belongs and what its code is.

    Rows are assigned before the transforms where these keep all distances (rotations), and after
    them where they do not (PCA and OPQ to fewer dimensions).
    """

    codec: Codec
    assigner: Assigner

    @property
    def basis(self) -> FloatArray | None:
        """Directions ``(d, m)`` that matter in rows before the transforms; None where none are known."""
        return self.assigner.basis if self.codec.isometric else None

    def encode(
        self, x: FloatArray, low: FloatArray | None = None, *, spill: bool
    ) -> tuple[IntArray, BytesArray]:
        """Where prepared rows ``(m, d)`` belong, and their codes there; ``low`` is ``x @ basis`` if known.

        Returns
        -------
        list_nos : (m, lists) int64
            One list of each row, or two with ``spill``.
        codes : (m, lists, code_size) uint8
        """
        y = self.codec.transform(x)
        placed = x if self.codec.isometric else y
        if not spill:
            list_nos = self.assigner.assign(placed, low)
            return list_nos[:, None], self.codec.encode(y, list_nos)[:, None]
        list_nos = self.assigner.assign_two(placed, low)
        return list_nos, np.stack([self.codec.encode(y, list_nos[:, i]) for i in (0, 1)], axis=1)

    def apart(self, x: FloatArray, list_nos: IntArray) -> FloatArray:
        """Squared distances ``(m,)`` of prepared rows ``(m, d)`` to the centroids of their lists ``(m,)``.

        For ``ip`` and ``cosine`` of the rows scaled to unit length.
        """
        placed = x if self.codec.isometric else self.codec.transform(x)
        return self.assigner.squared(placed, list_nos[:, None])[:, 0]


class _Transformed:
    """The sample as k-means reads it where transforms change distances: in the space rows are assigned in."""

    def __init__(self, sample: Sample, codec: Codec) -> None:
        self._sample, self._transform = sample, codec.transform
        self.n, self.d = sample.n, codec.d_code

    def take(self, rows: IntArray) -> FloatArray:
        return self._transform(self._sample.take(rows))

    def iterate(self, rows: int, *, first: int, backwards: bool) -> Iterator[Callable[[], FloatArray]]:
        for load in self._sample.iterate(rows, first=first, backwards=backwards):
            yield partial(self._read, load)

    def _read(self, load: Callable[[], FloatArray]) -> FloatArray:
        return self._transform(load())


def train(
    rows: Sample,
    plan: Plan,
    layout: Layout,
    pool: Pool,
    *,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> Template:
    """Train the template on the sample and write it, its record last.

    Parameters
    ----------
    rows : Sample
        Drawn from the rows of ``plan``.
    plan : Plan
        Metric, code, lists, seed; the same give the same bytes at any number of threads.
    layout : Layout
        The index directory.
    pool : Pool
        Compares rows with centroids.
    observer : callable
        Is told events.
    stop : threading.Event, optional
        When set, ``Stopped`` is raised.
    """
    total = rows_looked_at(plan.sample_rows, plan.nlist)
    require_rows(plan.factory, plan.d, plan.metric, rows.n)  # of those that were planned some may be bad
    with stage(observer, "train", total, row_bytes=4 * plan.d) as at:
        some = draw(rows.n, code_training_rows(rows.n, plan.d), plan.seed)
        codec = Codec.create(plan.factory, plan.d, plan.metric, plan.seed)
        if not codec.transforms_trained:
            learned = rows.take(some)
            with interruptible(stop):
                codec.train_transforms(learned)
            del learned
        Stopped.raise_if(stop)

        def told(done: int) -> None:
            at.tell(done)
            Stopped.raise_if(stop)

        placed = rows if codec.isometric else _Transformed(rows, codec)
        centroids, spread = kmeans(
            placed, plan.nlist, plan.metric, plan.seed, pool, progress=told, threads=plan.threads
        )
        learned = codec.transform(rows.take(some if codec.code_needs_rows else some[:1]))
        with interruptible(stop):
            codec.set_centroids(codec.transform(centroids) if codec.isometric else centroids)
            Stopped.raise_if(stop)
            codec.train_code(learned)
        del learned
        write_template(
            layout,
            codec,
            centroids,
            spread,
            plan=plan.digest,
            factory=plan.factory,
            metric=plan.metric,
            nlist=plan.nlist,
            seed=plan.seed,
            sample_rows=plan.sample_rows,
        )
        at.figures["nlist"] = plan.nlist
        return Template(codec=codec, assigner=Assigner(centroids, plan.metric))


def write_template(
    layout: Layout, codec: Codec, centroids: FloatArray, spread: FloatArray, **said: Any
) -> None:
    """Write a template, and then its record, which says so much more."""
    make_directory(layout.template)
    checksums = {layout.template_file.name: codec.save(layout.template_file)}
    for path, array in ((layout.centroids_file, centroids), (layout.spread_file, spread)):
        with DurableFile(path) as file:
            file.write(npy_header(array.shape, array.dtype))
            file.write(array)
            checksums[path.name] = file.checksums()
    write_sealed(layout.train_record, {**said, "checksums": checksums})


def load_template(layout: Layout, plan: Plan) -> Template | None:
    """The template that ``train`` wrote for this plan; None where it did not come to its record."""
    if not layout.train_record.exists():
        return None
    record = read_json(layout.train_record, what="the template's record")
    if record.get("plan") != plan.digest:
        return None
    return published_template(layout, plan.metric)


def published_template(layout: Layout, metric: Metric, *, rows: int | None = None) -> Template:
    """The template of an index, whichever plan it was made for; to place so many ``rows``, if that is known.

    For few of them comparing all centroids takes less than making a sketch of these.
    """
    codec = Codec.load(layout.template_file)
    d = codec.d if codec.isometric else codec.d_code
    centroids: FloatArray = read_array(layout.centroids_file, np.float32, (codec.nlist, d))
    sketch = rows is None or rows > _FEW_ROWS
    # Two threads of BLAS gain nothing here, and beside other processes they wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        return Template(codec=codec, assigner=Assigner(centroids, metric, sketch=sketch))
