"""What several sides of the search benchmark are made of: our index, the parts of faiss's, each made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bench_measure import run
from bench_setup import say
from bench_sides import AS_IT_IS, TOOLS, Ours, last_json, size_bytes
from bench_task import Task, remove

import ooc

_WHICH_CORE = """
import time, faiss, numpy as np
x = np.random.default_rng(0).standard_normal((4096, 512), np.float32)
index = faiss.IndexFlatIP(512)
index.add(x)
seconds = []
for _ in range(4):
    began = time.perf_counter()
    index.search(x[:1024], 64)
    seconds.append(time.perf_counter() - began)
print(min(seconds))
"""


class NotMadeError(Exception):
    """A side's index was not made: ``status`` and ``why`` as of a run."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class Shared:
    """What several sides are made of, each made once: our index, the parts of faiss's."""

    def __init__(self, task: Task, candidates: Sequence[int], time_limit: float) -> None:
        self.task = task
        self.candidates = candidates
        self.time_limit = time_limit
        self._failed: dict[Path, NotMadeError] = {}

    def made(
        self,
        path: Path,
        command: Sequence[str],
        variables: Mapping[str, str | None],
        *,
        limited: bool = True,
        before: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        """Make an index with a command, unless it is there; the record of its making.

        Parameters
        ----------
        path : Path
            What the command makes.
        command, variables
            As for ``bench_measure.run``.
        limited : bool
            Whether the time limit holds.
        before : callable, optional
            What is done first, not measured.

        Raises
        ------
        NotMadeError
            The command failed or took too long, now or earlier in this run.
        """
        record = path.with_name(f"{path.name}.json")
        if path in self._failed:
            raise self._failed[path]
        if self.task.made(path):
            found: dict[str, Any] = json.loads(record.read_text())
            return {**found, "reused": True}
        if before is not None:
            before()
        say(f"making {path.name}")
        measured = run(command, environment=variables, time_limit=self.time_limit if limited else None)
        if measured.status != "done":
            remove(path)
            self._failed[path] = NotMadeError(measured.status, f"building: {measured.why}")
            raise self._failed[path]
        said = last_json(measured.stdout)
        found = {
            "rows": said.get("rows", self.task.rows) if isinstance(said, dict) else self.task.rows,
            "bytes": size_bytes(path),
            "wall_seconds": measured.wall_seconds,
            "peak_private_bytes": measured.peak_private_bytes,
            "reused": False,
        }
        record.write_text(json.dumps(found))
        self.task.mark(path)
        return found

    @cached_property
    def ours(self) -> tuple[Path, dict[str, Any]]:
        """Our index of the rows in a ``.npy``, and the record of its build."""
        task = self.task
        path = task.directory / f"search-{task.lists or 'planned'}.ooc"
        command = [sys.executable, "-m", "ooc", "build", str(task.store("npy").resolve()), str(path)]
        command += ["--memory", str(task.memory_bytes), "--metric", "cosine", "--json", "--quiet"]
        if task.lists:
            command += ["--factory", task.plan.factory]
        return path, self.made(path, command, Ours.variables, limited=False)

    @cached_property
    def lists(self) -> tuple[Path, int, int]:
        """Our lists as plain faiss opens them, how many there are, and in how many of them a row is."""
        path = self.ours[0]
        with ooc.open_index(path) as index:
            (header,) = path.glob("segments/*/index.faiss")
            return header, index.nlist, index.lists_per_row

    @cached_property
    def parts(self) -> Path:
        """Centroids that faiss trained and the list of each row, for all its kinds."""
        path = self.task.directory / f"search-faiss-{self.task.plan.nlist}.npz"
        self.made(path, self.faiss("parts", path), self.faiss_variables)
        return path

    def faiss(self, kind: str, path: Path, *options: str) -> list[str]:
        """The command that makes an index of a kind."""
        plan = self.task.plan
        script = str(TOOLS / "bench_peer_search_faiss.py")
        command = [sys.executable, script, "make", kind, str(self.task.data), str(path)]
        command += ["--rows", str(self.task.rows), "--nlist", str(plan.nlist)]
        return [*command, "--sample-rows", str(plan.sample_rows), *options]

    @cached_property
    def faiss_variables(self) -> Mapping[str, str | None]:
        """The environment in which faiss is quicker here: its BLAS knows no recent processor."""

        def seconds(core: str | None) -> float:
            env = {**os.environ, "OPENBLAS_CORETYPE": core or ""}
            for name in AS_IT_IS:
                if name != "OPENBLAS_CORETYPE" or core is None:
                    env.pop(name, None)
            command = [sys.executable, "-c", _WHICH_CORE]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
            return float(done.stdout) if done.returncode == 0 else float("inf")

        core = min((None, "Haswell"), key=seconds)
        return {**AS_IT_IS, "OPENBLAS_CORETYPE": core}
