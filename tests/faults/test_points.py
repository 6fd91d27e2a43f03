"""Every fault point that the code has is one at which some operation of these tests is killed."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import ooc
from ooc import disk
from ooc.testing.faults import Step
from ooc.testing.forked import Server
from tests.faults.operations import OPERATIONS

PACKAGE = Path(ooc.__file__).parent

#: The functions of ``ooc.disk`` that make a step which changes something.
CHANGING = frozenset(disk.__all__) - {"CHANGES", "Watcher", "read_at", "read_bytes", "watch"}

#: Calls by which files change past the fault points: of ``os``, of ``shutil``, and of paths and arrays.
_OF_OS = """
    pwrite writev pwritev fsync fdatasync replace rename renames unlink remove rmdir removedirs mkdir
    makedirs truncate ftruncate posix_fallocate link symlink
"""
_OF_SHUTIL = "rmtree move copy copy2 copyfile copytree"
_OF_PATHS = "write_text write_bytes unlink rmdir mkdir rename touch symlink_to hardlink_to tofile"
PAST = {"os": {*_OF_OS.split()}, "shutil": {*_OF_SHUTIL.split()}, "": {*_OF_PATHS.split()}}

#: What is published under its name: whatever a layout names is here.
PUBLISHED = """
    ooc.json CURRENT generations/N.json generations/N.report.json generations/N.dead
    generations/N.sketch.faiss generations/publishing
    template/template.faiss template/centroids.npy template/spread.npy template/train.json
    segment/lists.ivfdata segment/index.faiss segment/sizes.npy segment/ids.npy segment/blocks.xxh3
    segment/segment.json segments/sN shards/N.ivfdata shards/N.npz shards/N.json D/plan.json D/witnesses.npz
    D/calibration.json D/sample.npy
"""


@functools.cache
def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name != "disk" and not name.startswith("testing."):
            found.append((name, ast.parse(path.read_text())))
    return found


def callers() -> dict[str, ast.Call]:
    """The functions of the package that make a step, as ``faults.caller`` names them."""
    found: dict[str, ast.Call] = {}

    def walk(node: ast.AST, name: str, imported: set[str]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inside = f"{name}.<locals>" if isinstance(node, ast.FunctionDef) else name
                walk(child, f"{inside}.{child.name}", imported)
                continue
            if isinstance(child, ast.Call) and _changes(child, imported):
                found[name] = child
            walk(child, name, imported)

    for name, tree in modules():
        imported = {
            alias.name
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module == "ooc.disk"
            for alias in node.names
        }
        walk(tree, name, imported)
    return found


def _changes(call: ast.Call, imported: set[str]) -> bool:
    function = call.func
    if (
        isinstance(function, ast.Attribute)
        and isinstance(function.value, ast.Name)
        and function.value.id == "disk"
    ):
        name = function.attr
    elif isinstance(function, ast.Name) and function.id in imported:
        name = function.id
    else:
        return False
    if name == "step":
        return isinstance(call.args[0], ast.Constant) and call.args[0].value in disk.CHANGES
    if name == "open_file":
        return "O_CREAT" in ast.unparse(call)
    return name in CHANGING


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_no_module_changes_files_past_the_fault_points(name: str) -> None:
    tree = dict(modules())[name]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        if owner in ("os", "shutil"):
            past = node.func.attr in PAST[owner]
        else:
            past = owner not in ("disk", "file", "np", "self", "durable") and node.func.attr in PAST[""]
        assert not past, f"{name}:{node.lineno}: {ast.unparse(node)}"


def test_every_fault_point_is_killed_at(server: Server, place: Path) -> None:
    """Recorded here; ``test_kills`` kills at each step of the same operations."""
    steps: list[Step] = []
    for name in OPERATIONS:
        server.call("tests.faults.child:prepare", name, place).result()
        steps += server.call("tests.faults.child:record", name, place).result()[0]
    made = {step.caller for step in steps}
    missing = sorted(set(callers()) - made)
    assert not missing, f"no operation of tests/faults comes by {missing}: add one that does"
    assert not sorted(made - set(callers())), "steps that this test does not find in the code"
    # What a layout names is published, and killed at when it is.
    published = {step.name.partition(":")[2] for step in steps if step.name.startswith("rename:")}
    for file in PUBLISHED.split():
        assert file in published, f"{file} is not published in any operation; there are {sorted(published)}"
