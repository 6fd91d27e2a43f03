"""A file of search results in the making: grows under a temporary name, appears whole or not at all.

The formats are in ``hits``.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ooc.durable import partial_name, remove_file, remove_tree, replace, settle_replaced, translated
from ooc.errors import ConflictError, ResourceError
from ooc.stores.write import lock_for_writing, remove_unlocked
from ooc.types import AnyArray, FloatArray, IntArray
from ooc.units import format_bytes

__all__ = ["HitWriter"]


class HitWriter(ABC):
    """A file of results in the making; a context manager that publishes it when the block ends well.

    Parameters
    ----------
    path : Path
        Absolute; its suffix is the format's.
    shape : (nq, k)
    settings : mapping
        JSON-ready; kept with the results.
    keys : dtype, optional
        Of keys that are written too: int64, or fixed-width bytes, as many as the longest key has.

    Attributes
    ----------
    columns : mapping of str to dtype
        What is written of each hit.
    n : int
        Queries whose results were written.
    """

    #: Columns that are on disk twice while the file is finished.
    twice: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        settings: Mapping[str, Any],
        keys: np.dtype[Any] | None = None,
    ) -> None:
        self.path = path
        self.shape = shape
        self.columns: dict[str, np.dtype[Any]] = {
            "distances": np.dtype(np.float32),
            "ids": np.dtype(np.int64),
        }
        if keys is not None:
            self.columns["keys"] = keys
        self.settings = json.dumps(dict(settings))
        self.partial = partial_name(path)
        self.n = 0
        self._lock = -1
        with translated(path, "creating"):
            remove_unlocked(self.partial)
            settle_replaced(self.path)
            self._see_room()
            try:
                self._open()
                self._lock = lock_for_writing(self.partial)
            except BaseException:
                self._discard()
                raise

    def _see_room(self) -> None:
        """Before the work, not after hours of it."""
        sizes = {name: dtype.itemsize for name, dtype in self.columns.items()}
        twice = sum(sizes.get(name, 0) for name in self.twice)
        needed = self.shape[0] * self.shape[1] * (sum(sizes.values()) + twice)
        free = shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise ResourceError(
                f"{self.path} needs {format_bytes(needed)} and {format_bytes(free)} are free on its disk",
                kind="disk-full",
                hint="Free some space, or name a file on another disk.",
            )

    @abstractmethod
    def _open(self) -> None:
        """Begin the partial file or directory."""

    def write(self, distances: FloatArray, ids: IntArray, keys: AnyArray | None = None) -> None:
        """The results of the queries that follow on those of the last call."""
        with translated(self.path, "writing"):
            given: tuple[AnyArray, ...] = (distances, ids) if keys is None else (distances, ids, keys)
            self._write(dict(zip(self.columns, given, strict=True)))
        self.n += len(ids)

    def _as_bytes(self, name: str, values: AnyArray) -> AnyArray:
        """Values of a column as they lie in a file that has so many bytes for each."""
        dtype = self.columns[name]
        if dtype.kind != "S" or values.dtype == dtype:
            return np.ascontiguousarray(values, dtype=dtype)
        texts = [b"" if one is None else one.encode() for one in values.reshape(-1).tolist()]
        if max(map(len, texts), default=0) > dtype.itemsize:
            raise ConflictError(
                "the index has longer keys now than when the search began",
                kind="index-changed",
                hint="Search again, or with an index that does not follow.",
            )
        return np.array(texts, dtype).reshape(values.shape)

    @abstractmethod
    def _write(self, columns: Mapping[str, AnyArray]) -> None:
        """Results of some queries, by column: ``(m, k)`` each; keys that are strings as objects."""

    @abstractmethod
    def _finish(self) -> None:
        """Complete what is partial, bring it to the disk, and give it its name."""

    @abstractmethod
    def _release(self) -> None:
        """Close what is open; nothing of it is wanted any more."""

    def _publish(self) -> None:
        self._unlock()  # or HDF5 would keep a reader out that is quick
        replace(self.partial, self.path)

    def _discard(self) -> None:
        """Remove what is unfinished."""
        try:
            self._release()
            if self.partial.is_dir():
                remove_tree(self.partial)
            else:
                remove_file(self.partial)
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._discard()
            return
        try:
            with translated(self.path, "writing"):
                self._finish()
        except BaseException:
            self._discard()
            raise
        self._release()
        self._unlock()
