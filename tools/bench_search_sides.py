"""The sides of the search benchmark: how each is made once, its own script, its knobs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_search_shared import Shared
from bench_search_worker import Setting
from bench_sides import AS_IT_IS, TOOLS, Lance, Ours, cores, installed, size_bytes

import ooc

#: Values of the knobs, in ascending order of work.
_PROBES = tuple(1 << i for i in range(11))
_WIDTHS = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
#: Recalls, in thousandths, by which our settings are chosen: as users choose them.
_PROMISED = (800, 850, 880, 900, 920, 930, 940, 950, 960, 970, 980, 990)
#: DiskANN's build cannot end early: no more rows than it can do in ten minutes on two cores.
_DISKANN_ROWS = 250_000


class Side:
    """One way to search: subclasses say how."""

    about = ""
    #: What differs from the environment of the tool.
    variables: Mapping[str, str | None] = AS_IT_IS
    #: Whether what it searches is on disk, so that a start from a cold cache and a limit mean something.
    on_disk = True
    modes: tuple[str, ...] = ("single", "threads", "batch")
    python = sys.executable
    script = ""

    def __init__(self, name: str, shared: Shared) -> None:
        self.name = name
        self.shared = shared
        #: With as many rows as its index has in the end.
        self.task = shared.task

    def prepare(self) -> dict[str, Any]:
        """Make what is searched; the record of its making.

        Raises
        ------
        MissingError, NotMadeError
        """
        raise NotImplementedError

    def settings(self) -> list[Setting]:
        """Its knobs' values."""
        raise NotImplementedError

    def opening(self) -> dict[str, Any]:
        """What its script needs to open it."""
        raise NotImplementedError

    def command(self, job: dict[str, Any]) -> list[str]:
        return [str(self.python), str(TOOLS / self.script), json.dumps(job)]

    def inputs(self) -> list[Path]:
        """What a search reads."""
        return [self.task.data]

    def versions(self) -> dict[str, str]:
        return {}

    def took_rows(self, record: dict[str, Any]) -> dict[str, Any]:
        """Remember how many rows were indexed."""
        self.task = replace(self.task, rows=record["rows"])
        return record

    def probes(self, nlist: int, *, rerank: bool) -> list[Setting]:
        """Numbers of lists, for each number of candidates where it re-ranks."""
        numbers = [p for p in _PROBES if p <= nlist]
        if not rerank:
            return [{"nprobe": p} for p in numbers]
        return [{"nprobe": p, "candidates": c} for c in self.shared.candidates for p in numbers]


class OursSide(Side):
    """Our index directory, its rows mapped from the npy it was built from."""

    about = "open_index of the default factory, rows mapped from npy"
    variables = Ours.variables
    script = "bench_search_ooc.py"

    def prepare(self) -> dict[str, Any]:
        return self.shared.ours[1]

    def settings(self) -> list[Setting]:
        promised: list[Setting] = [{"promised": recall} for recall in _PROMISED]
        return self.probes(self.shared.lists[1], rerank=True) + promised

    def opening(self) -> dict[str, Any]:
        return {"index": str(self.shared.ours[0])}

    def inputs(self) -> list[Path]:
        return [self.shared.ours[0], self.task.data]

    def versions(self) -> dict[str, str]:
        return {"ooc": ooc.__version__}


class FaissSide(Side):
    """faiss in one of its kinds."""

    script = "bench_peer_search_faiss.py"
    _ABOUT: Mapping[str, str] = {
        "flat": "IVF,Flat in memory",
        "sq8": "IVF,SQ8 in memory",
        "rabitq": "HR,IVF,RaBitQ and IndexRefineFlat in memory",
        "fastscan": "HR,IVF,RaBitQfs and IndexRefineFlat in memory",
        "hnsw": "HNSW32 in memory",
        "ondisk": "our lists opened plainly (OnDiskInvertedLists), candidates re-ranked from mapped rows",
        "mmap": "our lists in a file of faiss's own, IO_FLAG_MMAP, candidates re-ranked from mapped rows",
    }

    def __init__(self, name: str, shared: Shared) -> None:
        super().__init__(name, shared)
        self._kind = name.removeprefix("faiss-")
        self.about = self._ABOUT[self._kind]
        self.on_disk = self._kind in ("ondisk", "mmap")

    def prepare(self) -> dict[str, Any]:
        shared, kind = self.shared, self._kind
        self.variables = shared.faiss_variables
        self._index = self.task.directory / f"search-{self.name}-{self.task.plan.nlist}.faiss"
        if kind == "ondisk":
            self._index = shared.lists[0]
            return shared.ours[1]
        options: list[str] = []
        if kind == "mmap":
            options = ["--source", str(shared.lists[0])]
        elif kind == "hnsw":
            options = ["--seconds", str(shared.time_limit)]
        else:
            options = ["--parts", str(shared.parts)]
        if kind == "flat":  # put together anew by each process: a file would be as large as the rows
            self._index = shared.parts
            return {"rows": self.task.rows, "bytes": None, "reused": False}
        command = shared.faiss(kind, self._index, *options)
        return self.took_rows(shared.made(self._index, command, self.variables))

    def settings(self) -> list[Setting]:
        if self._kind == "hnsw":
            return [{"ef": width} for width in _WIDTHS]
        nlist = self.shared.lists[1] if self.on_disk else self.task.plan.nlist
        return self.probes(nlist, rerank=self._kind not in ("flat", "sq8"))

    def opening(self) -> dict[str, Any]:
        side = {"kind": self._kind, "data": str(self.task.data), "rows": self.task.rows}
        side["parts" if self._kind == "flat" else "index"] = str(self._index)
        if self.on_disk:
            side["lists_per_row"] = self.shared.lists[2]
        return side

    def inputs(self) -> list[Path]:
        return [self._index.parent if self._kind == "ondisk" else self._index, self.task.data]


class LanceSide(Side):
    """LanceDB's engine, a quarter as many partitions as we have lists."""

    script = "bench_peer_search_lance.py"
    modes = ("single", "threads")  # its queries are one by one

    def __init__(self, name: str, shared: Shared) -> None:
        super().__init__(name, shared)
        self._type = {"lancedb-rq": "IVF_RQ", "lancedb-pq": "IVF_PQ"}[name]
        self.about = f"pylance, {self._type} with refine_factor, a quarter as many partitions"
        self._lance = Lance(name, self.task)
        self._partitions = max(1, self.task.plan.nlist // 4)
        self._index = self.task.directory / f"search-{name}-{self._partitions}.lance"

    def prepare(self) -> dict[str, Any]:
        self._lance.prepare()
        self.python = self._lance.script()[0]
        options = ["--partitions", str(self._partitions), "--index-type", self._type]
        record = self.shared.made(
            self._index,
            self._lance.script("build", str(self._index), *options),
            self.variables,
            # Links to the rows' files: the index is made inside the data set.
            before=lambda: shutil.copytree(self._lance.inputs()[0], self._index, copy_function=os.link),
        )
        return {**record, "bytes": size_bytes(self._index / "_indices")}

    def settings(self) -> list[Setting]:
        return self.probes(self._partitions, rerank=True)

    def opening(self) -> dict[str, Any]:
        return {"index": str(self._index)}

    def inputs(self) -> list[Path]:
        return [self._index]

    def versions(self) -> dict[str, str]:
        return self._lance.versions()


class UsearchSide(Side):
    """USearch: a graph with the vectors in it, mapped."""

    script = "bench_peer_search_usearch.py"

    def __init__(self, name: str, shared: Shared) -> None:
        super().__init__(name, shared)
        self._dtype = name.removeprefix("usearch-")
        self.about = f"view of a graph over {self._dtype}"
        self._index = self.task.directory / f"search-{name}.usearch"

    def prepare(self) -> dict[str, Any]:
        self.python = str(self.task.environment("usearch", ["usearch>=2.17", "numpy>=2"]))
        command = [self.python, str(TOOLS / self.script), "make", self._dtype, str(self.task.data)]
        command += [str(self._index), "--rows", str(self.task.rows)]
        command += ["--seconds", str(self.shared.time_limit)]
        return self.took_rows(self.shared.made(self._index, command, self.variables))

    def settings(self) -> list[Setting]:
        return [{"ef": width} for width in _WIDTHS]

    def opening(self) -> dict[str, Any]:
        return {"index": str(self._index), "rows": self.task.rows}

    def inputs(self) -> list[Path]:
        return [self._index]

    def versions(self) -> dict[str, str]:
        return installed(Path(self.python), "usearch", "numpy")


class DiskannSide(Side):
    """DiskANN's index on disk, of as many rows as it can index in the time."""

    about = "StaticDiskIndex, degree 32"
    script = "bench_peer_search_diskann.py"

    def prepare(self) -> dict[str, Any]:
        self.python = str(self.task.environment("diskann", ["diskannpy==0.7.0", "numpy<2"]))
        rows = min(self.task.rows, _DISKANN_ROWS)
        self._index = self.task.directory / f"search-diskann-{rows}"
        command = [self.python, str(TOOLS / self.script), "make", str(self.task.data), str(self._index)]
        command += ["--rows", str(rows), "--threads", str(cores())]
        return self.took_rows(self.shared.made(self._index, command, self.variables))

    def settings(self) -> list[Setting]:
        return [{"complexity": width} for width in _WIDTHS]

    def opening(self) -> dict[str, Any]:
        return {"index": str(self._index), "rows": self.task.rows, "threads": cores()}

    def inputs(self) -> list[Path]:
        return [self._index]

    def versions(self) -> dict[str, str]:
        return installed(Path(self.python), "diskannpy", "numpy")


_KINDS: dict[str, type[Side]] = {
    "ooc": OursSide,
    "faiss": FaissSide,
    "lancedb": LanceSide,
    "usearch": UsearchSide,
    "diskann": DiskannSide,
}
SIDES = (
    "ooc",
    *(f"faiss-{kind}" for kind in ("flat", "sq8", "rabitq", "fastscan", "hnsw", "ondisk", "mmap")),
    "lancedb-rq",
    "lancedb-pq",
    "usearch-f32",
    "usearch-i8",
    "diskann",
)


def side_of(name: str, shared: Shared) -> Side:
    return _KINDS[name.partition("-")[0]](name, shared)
