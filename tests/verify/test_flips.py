"""Every byte of an index changed, and every file cut: found, or harmless; and no process dies of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests import trust_counts
from tests.verify.made import make_rich


def run_all(index: Path, out: Path, what: str, step: int) -> tuple[Counter[str], list[str]]:
    """Try damages of an index in processes: how many came to what, and what is wrong."""
    first, came, wrong = 0, Counter[str](), []
    while True:
        command = [sys.executable, "-m", "tests.verify.flips", index, out, what, first, step]
        one = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        lines = [line.split("\t") for line in out.read_text().splitlines()] if out.exists() else []
        assert lines, one.stderr
        if one.returncode == 0:
            break
        assert lines[-1][0] == "try", one.stderr
        wrong.append(f"{lines[-1][2]} at {lines[-1][3]}: the process ended with {one.returncode}")
        # The file is as it was left: put it back before going on.
        restore(index, lines[-1], what)
        first = int(lines[-1][1]) + step
    for line in lines:
        if line[0] == "came":
            known = line[4] in ("quick", "full", "harmless")
            came[line[4] if known else "wrong"] += 1
            wrong += [] if known else [f"{line[2]} at {line[3]}: {line[4]}"]
    return came, wrong


def restore(index: Path, line: list[str], what: str) -> None:
    whole = index.parent / "whole" / line[2]
    (index / line[2]).write_bytes(whole.read_bytes())


def damage(tmp_path: Path, what: str, step: int, factory: str, **options: str) -> Counter[str]:
    import shutil

    index = make_rich(tmp_path, factory, **options)
    shutil.copytree(index, tmp_path / "whole")
    came, wrong = run_all(index, tmp_path / "out.tsv", what, step)
    tried = sum(came.values())
    trust_counts.add("files cut" if what == "cut" else "bytes changed", tried)
    for kind in ("quick", "full", "harmless"):
        trust_counts.add(
            f"  of damages: {'found by ' + kind + ' check' if kind != 'harmless' else kind}", came[kind]
        )
    trust_counts.add("processes that died of a damaged index", sum("process ended" in one for one in wrong))
    assert not wrong, "\n".join(wrong[:20]) + f"\n{len(wrong)} of {tried}"
    assert tried > 50
    return came


def test_some_bytes_changed(tmp_path: Path) -> None:
    came = damage(tmp_path, "flip", 41, "HR,IVF4,RaBitQ", copy_vectors="always")
    assert came["quick"] > 100
    assert came["full"] > 50


def test_files_cut(tmp_path: Path) -> None:
    came = damage(tmp_path, "cut", 3, "HR,IVF4,RaBitQ", copy_vectors="always")
    assert came["quick"] > 50


@pytest.mark.trust
@pytest.mark.parametrize("what", ["flip", "255", "cut"])
@pytest.mark.parametrize(
    ("factory", "options"),
    [
        ("HR,IVF4,RaBitQ", {"copy_vectors": "always"}),
        ("IVF4_HNSW4,SQ8", {"copy_dtype": "int8"}),
        ("OPQ4_8,IVF4,PQ4x4", {"spill": "on"}),
    ],
    ids=["signs", "graph-int8", "product-spill"],
)
def test_every_byte_changed_and_every_file_cut(
    tmp_path: Path, what: str, factory: str, options: dict[str, str]
) -> None:
    damage(tmp_path, what, int(os.environ.get("OOC_TRUST_STEP", "1")), factory, **options)
