"""What all sides of a benchmark are to do, and the stores, queries and environments they do it with.

Stores are made once from the rows, beside each other in the work directory, and used again. Peers live
in environments of their own below a cache directory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from bench_recall import K
from nearest import TILE, Nearest
from numpy.typing import NDArray

import ooc


class MissingError(Exception):
    """A side cannot be run here; says why."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all sides are to do: index the first ``rows`` of the data by cosine.

    Attributes
    ----------
    data : Path
        A ``.npy`` of unit vectors as ``tools/make_dataset`` writes it, its queries beside it.
    work : Path
        Where stores and indexes go.
    cache : Path
        Where the peers' environments are.
    memory_bytes : int
        Budget of our side.
    lists : int, optional
        Lists, instead of as many as our plan has.
    """

    data: Path
    rows: int
    work: Path
    cache: Path
    memory_bytes: int
    lists: int | None = None

    @property
    def x(self) -> NDArray[np.float32]:
        """The rows, mapped anew: pages that stay mapped cannot be dropped from the page cache."""
        array: NDArray[np.float32] = np.load(self.data, mmap_mode="r")[: self.rows]
        return array

    @property
    def d(self) -> int:
        return int(self.x.shape[1])

    @cached_property
    def plan(self) -> ooc.Plan:
        """Ours for these rows: its lists and the size of its sample are given to the others too."""

        def planned(factory: str | None) -> ooc.Plan:
            return ooc.plan(self.x, memory=self.memory_bytes, metric="cosine", factory=factory)

        return planned(f"HR,IVF{self.lists or planned(None).nlist},RaBitQ")

    @cached_property
    def directory(self) -> Path:
        stat = self.data.stat()
        path = self.work / f"{self.data.stem}-{self.rows}x{self.d}-{stat.st_size:x}{stat.st_mtime_ns:x}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def store(self, kind: str) -> Path:
        """The rows as ``h5`` (contiguous), ``zarr`` (uncompressed), ``zstd.zarr`` or ``npy``."""
        # autofaiss takes a directory of .npy files.
        path = self.directory / ("npy/rows.npy" if kind == "npy" else f"rows.{kind}")
        if self.made(path):
            return path
        path.parent.mkdir(exist_ok=True)
        if kind == "npy":
            if self.rows == len(np.load(self.data, mmap_mode="r")):
                path.symlink_to(self.data.resolve())
            else:
                np.save(path, self.x)
        else:
            compression = "zstd" if kind.startswith("zstd") else "none"
            with ooc.create_store(path, d=self.d, n=self.rows, compression=compression) as writer:
                x = self.x
                for first in range(0, self.rows, 8192):
                    writer.append(np.ascontiguousarray(x[first : first + 8192], np.float32))
        self.mark(path)
        return path

    def truth(self) -> Path:
        """Queries and their exact neighbours among these rows, as the data's own file has them."""
        given = self.data.with_suffix(".queries.npz")
        if not given.exists():
            raise MissingError(f"{given} is missing; tools/make_dataset writes it beside {self.data.name}")
        with np.load(given) as arrays:
            if int(arrays["rows"]) == self.rows:
                return given
            path = self.directory / "truth.npz"
            if self.made(path):
                return path
            sets = [(name, arrays[name]) for name in ("queries", "shifted_queries")]
        nearest = [Nearest(queries, K) for _, queries in sets]
        x = self.x
        for first in range(0, self.rows, TILE):
            tile = np.ascontiguousarray(x[first : first + TILE], np.float32)
            for found in nearest:
                found.add(tile, first)
        for found in nearest:
            if len(found.ids):
                found.settle()
        np.savez(
            path,
            queries=sets[0][1],
            neighbors=nearest[0].ids,
            shifted_queries=sets[1][1],
            shifted_neighbors=nearest[1].ids,
        )
        self.mark(path)
        return path

    def made(self, path: Path) -> bool:
        """Whether a file was made whole; what an earlier run left half made is removed."""
        if _marker(path).exists():
            return True
        remove(path)
        return False

    def mark(self, path: Path) -> None:
        """Say that a file is whole."""
        _marker(path).write_text("whole\n")

    def environment(self, name: str, requirements: list[str]) -> Path:
        """The Python of a peer's own environment, installed when it is not there.

        Raises
        ------
        MissingError
            When it cannot be installed.
        """
        root = self.cache / "venvs" / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
        python, whole = root / "bin" / "python", root / "installed.json"
        if whole.exists() and json.loads(whole.read_text()) == requirements and python.exists():
            return python
        remove(root)
        print(f"installing {' '.join(requirements)} into {root}", file=sys.stderr, flush=True)
        try:
            venv.create(root, with_pip=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*install, *requirements], check=True, capture_output=True, text=True, timeout=600)
        except subprocess.CalledProcessError as error:
            said = [line for line in (error.stderr or "").splitlines() if line.strip()]
            raise MissingError(f"cannot be installed: {(said or [str(error)])[-1][:300]}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MissingError(f"cannot be installed: {error}") from error
        whole.write_text(json.dumps(requirements))
        return python


def remove(path: Path) -> None:
    """Remove a file or a directory, and what says that it is whole."""
    _marker(path).unlink(missing_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink() or path.exists():
        path.unlink()


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.whole")
