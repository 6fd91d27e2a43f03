"""What README.md and the pages show is run: Python in one namespace a page, commands in a shell."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from tests.docs.pages import PAGES, README, Fence, fences
from tests.helpers import embeddings

RUN = ("python", "console")
WITH_CODE = [page for page in PAGES if any(fence.kind in RUN for fence in fences(page))]
TRANSCRIPT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the pages of the package take for granted: vectors, queries, an index."""
    directory = tmp_path_factory.mktemp("made")
    x = embeddings(2000, 32)
    np.save(directory / "vectors.npy", x)
    np.save(directory / "queries.npy", x[:100] + np.float32(0.05))
    ooc.build(directory / "vectors.npy", directory / "my.ooc", copy_vectors="always")
    return directory


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_blocks_run(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # README begins with nothing; the pages are read by somebody who has an index.
    directory, names = tmp_path, {"__name__": "__main__"}
    if page != README:
        directory = request.getfixturevalue("made")
        names |= {"np": np, "ooc": ooc, "queries": np.load(directory / "queries.npy")}
    monkeypatch.chdir(directory)
    for fence in fences(page):
        if fence.kind in RUN and not fence.why_not:
            run(page, fence, names)


def run(page: Path, fence: Fence, names: dict[str, Any]) -> None:
    if fence.kind == "python":
        # On its own line of the page, so that a failure points there.
        exec(compile("\n" * (fence.line - 1) + fence.text, str(page), "exec"), names)
        return
    for command, expected in commands(fence):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            command, shell=True, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
        assert result.returncode == 0, f"{page.name}: {command}\n{result.stderr}"
        same = doctest.OutputChecker().check_output(expected, result.stdout, TRANSCRIPT)
        assert same, f"{page.name}: {command}\nshown:\n{expected}\nprinted:\n{result.stdout}"


def commands(fence: Fence) -> Iterator[tuple[str, str]]:
    """Each command of a transcript, and what is shown below it; ``...`` stands for anything."""
    for part in f"\n{fence.text}".split("\n$ ")[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected if expected.endswith("\n") else f"{expected}\n"


def test_few_blocks_are_not_run() -> None:
    left_out = [(page.name, fence.why_not) for page in PAGES for fence in fences(page) if fence.why_not]
    assert left_out == [("README.md", "installs packages")] * 2


def test_blocks_are_of_known_kinds() -> None:
    assert {fence.kind for page in PAGES for fence in fences(page)} <= {*RUN, "mermaid"}


def test_the_set_up_is_two_commands_that_are_there() -> None:
    shown = [fence.text for fence in fences(README) if fence.why_not]
    first = [text.partition("\n")[0] for text in shown]
    assert first == ["$ tools/demo", "$ tools/test"]
    for line in first:
        assert os.access(README.parent / line.removeprefix("$ "), os.X_OK)


@pytest.mark.parametrize(
    "phrase",
    [
        "making .venv with ",
        "installing into .venv, which can take some minutes: ",
        "writing them to a Zarr store with ooc.create_store: ",
        "one at a time, in a new process:",
        "a query takes ",
        "private memory of the searching process: ",
        "nearest by exact search, ",
        "words nearest to some of them, the nearest first:",
        "That is the default recall, 0.95; `ooc help recall` says what is promised.",
        "everything is in ",
    ],
)
def test_the_transcript_of_the_demo_is_what_it_prints(phrase: str) -> None:
    tools = README.parent / "tools"
    printed = "".join((tools / name).read_text() for name in ("_venv.sh", "demo.py", "demo_search.py"))
    assert phrase in printed
    assert phrase in fences(README)[1].text
