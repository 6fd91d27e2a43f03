"""The sides of the build benchmark: what each is given, its command, and how its result is judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench_task import MissingError, Task, remove

import ooc

TOOLS = Path(__file__).resolve().parent

#: What the kernel may keep besides ours before a run of ours is killed: its page cache.
CACHE_BYTES = 128 << 20

#: BLAS as a user has it: settings of this machine are taken away.
_BLAS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
AS_IT_IS: Mapping[str, str | None] = dict.fromkeys(_BLAS)


class Side:
    """One way to build: subclasses say how."""

    #: Said in the result.
    about = ""
    #: What differs from the environment of the tool.
    variables: Mapping[str, str | None] = AS_IT_IS
    #: Whether it is one of ours: held to the budget, and without the peers' time limit.
    ours = False

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        self.task = task
        self.result = task.directory / f"result-{name}"

    def prepare(self) -> None:
        """Make what a run needs; raises MissingError where it cannot be had."""

    def before_run(self) -> None:
        """Take away what the last run left."""
        remove(self.result)

    def inputs(self) -> list[Path]:
        """What a run reads."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def judge_command(self) -> list[str]:
        raise NotImplementedError

    def result_bytes(self) -> int:
        return size_bytes(self.result)

    def versions(self) -> dict[str, str]:
        return {}


class Ours(Side):
    """`ooc build` from a store of one format, within the budget."""

    ours = True
    variables: Mapping[str, str | None] = MappingProxyType({**AS_IT_IS, "PYTHONPATH": str(TOOLS.parent)})

    def __init__(
        self, name: str, task: Task, *, kind: str, about: str, shard_rows: int | None = None
    ) -> None:
        super().__init__(name, task)
        self._kind = kind
        self._shard_rows = shard_rows
        self.about = about

    def prepare(self) -> None:
        self.task.store(self._kind)

    def inputs(self) -> list[Path]:
        return [self.task.store(self._kind)]

    def command(self) -> list[str]:
        task = self.task
        command = [sys.executable, "-m", "ooc", "build", str(self.inputs()[0]), str(self.result)]
        command += ["--memory", str(task.memory_bytes), "--metric", "cosine"]
        command += ["--factory", task.plan.factory]
        return [*command, "--json", "--log-json"]

    def judge_command(self) -> list[str]:
        return [sys.executable, str(TOOLS / "bench_judge.py"), str(self.result), str(self.task.truth())]

    def versions(self) -> dict[str, str]:
        return {"ooc": ooc.__version__}


class Faiss(Side):
    """faiss in memory, with the same lists, code and size of sample, and as much memory as it likes."""

    def __init__(self, name: str, task: Task, *, core: str | None) -> None:
        super().__init__(name, task)
        self.about = "in memory, " + (f"OPENBLAS_CORETYPE={core}" if core else "OPENBLAS_CORETYPE unset")
        self.variables = {**AS_IT_IS, "OPENBLAS_CORETYPE": core}

    def prepare(self) -> None:
        self.task.store("npy")

    def inputs(self) -> list[Path]:
        return [self.task.store("npy").resolve()]

    def command(self) -> list[str]:
        plan = self.task.plan
        options = ["--nlist", str(plan.nlist), "--sample-rows", str(plan.sample_rows)]
        return [*self.script("build"), *options]

    def judge_command(self) -> list[str]:
        return [*self.script("judge"), str(self.task.truth())]

    def script(self, verb: str) -> list[str]:
        script = str(TOOLS / "bench_peer_faiss.py")
        return [sys.executable, script, verb, str(self.task.store("npy")), str(self.result)]


class Autofaiss(Faiss):
    """autofaiss: the index is its own choice, of at most the bytes of our budget."""

    _REQUIREMENTS = ("autofaiss>=2.18", "pyarrow<22")  # later pyarrow wants a numpy that it refuses

    def __init__(self, name: str, task: Task) -> None:
        super().__init__(name, task, core="Haswell")
        self.about = "index of its own choice within our budget, OPENBLAS_CORETYPE=Haswell"

    def prepare(self) -> None:
        super().prepare()
        self._python = self.task.environment("autofaiss", list(self._REQUIREMENTS))

    def before_run(self) -> None:
        super().before_run()
        remove(Path(f"{self.result}.json"))

    def command(self) -> list[str]:
        directory = self.task.store("npy").parent
        script = str(TOOLS / "bench_peer_autofaiss.py")
        return [str(self._python), script, str(directory), str(self.result), str(self.task.memory_bytes)]

    def versions(self) -> dict[str, str]:
        return installed(self._python, "autofaiss", "faiss-cpu", "numpy")


class Lance(Side):
    """LanceDB's engine: IVF_RQ of one bit with a quarter of our lists."""

    about = "pylance, IVF_RQ of 1 bit, a quarter as many partitions, from its own format"
    _REQUIREMENTS = ("pylance>=14", "numpy>=2")

    def prepare(self) -> None:
        self._python = self.task.environment("lancedb", list(self._REQUIREMENTS))
        self._dataset = self.task.directory / "rows.lance"
        if not self.task.made(self._dataset):
            done = subprocess.run(
                self.script("store", str(self.task.store("npy")), str(self._dataset)),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise MissingError(f"cannot write its format: {done.stderr.strip().splitlines()[-1][:300]}")
            self.task.mark(self._dataset)

    def before_run(self) -> None:
        """Links to the rows' files: the index is made inside the data set, and each run makes its first."""
        remove(self.result)
        shutil.copytree(self._dataset, self.result, copy_function=os.link)

    def inputs(self) -> list[Path]:
        return [self._dataset]

    def command(self) -> list[str]:
        partitions = max(1, self.task.plan.nlist // 4)
        return self.script("build", str(self.result), "--partitions", str(partitions))

    def judge_command(self) -> list[str]:
        return self.script("judge", str(self.result), str(self.task.truth()))

    def result_bytes(self) -> int:
        return size_bytes(self.result / "_indices")

    def versions(self) -> dict[str, str]:
        return installed(self._python, "pylance", "pyarrow", "numpy")

    def script(self, *arguments: str) -> list[str]:
        return [str(self._python), str(TOOLS / "bench_peer_lance.py"), *arguments]


#: What runs by default; faiss is two, of which the better counts.
SIDES = ("ooc-hdf5", "ooc-zarr", "ooc-zarr-zstd", "faiss", "autofaiss", "lancedb")
#: What can be named: one of faiss's two too, where there is no time for both.
NAMES = (*SIDES, "faiss-haswell")


def sides_of(names: list[str], task: Task) -> list[Side]:
    """The sides to run, in the order of their names."""
    found: list[Side] = []
    for name in names:
        if name == "ooc-hdf5":
            found.append(Ours(name, task, kind="h5", about="from contiguous HDF5"))
        elif name == "ooc-zarr":
            found.append(Ours(name, task, kind="zarr", about="from uncompressed Zarr"))
        elif name == "ooc-zarr-zstd":
            found.append(Ours(name, task, kind="zstd.zarr", about="from Zarr compressed by zstd"))
        elif name in ("faiss", "faiss-haswell"):
            if name == "faiss":
                found.append(Faiss(name, task, core=None))
            found.append(Faiss("faiss-haswell", task, core="Haswell"))
        elif name == "autofaiss":
            found.append(Autofaiss(name, task))
        elif name == "lancedb":
            found.append(Lance(name, task))
    return found


def installed(python: Path, *names: str) -> dict[str, str]:
    """Versions of packages in an environment."""
    code = "import json, sys; from importlib.metadata import version as v; "
    code += "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
    text = subprocess.run(
        [str(python), "-c", code, *names], capture_output=True, text=True, check=False
    ).stdout
    versions: dict[str, str] = json.loads(text) if text else {}
    return versions


def last_json(text: str) -> Any:
    """The JSON document that a side printed, whatever its libraries printed before it; None without."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    for line in reversed(text.strip().splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def size_bytes(path: Path) -> int:
    if path.is_dir():
        return sum(name.stat().st_size for name in path.rglob("*") if name.is_file())
    return path.stat().st_size if path.exists() else 0


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
