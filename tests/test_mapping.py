"""Advice on mapped files: pieces asked for together are read, by a process and by its child."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ooc import mapping
from ooc.mapping import ADVICE_BYTES, PAGE, MappedFile, drop_file
from ooc.types import BytesArray

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what the page cache has")

PAGES = 4096


@pytest.fixture
def mapped(tmp_path: Path) -> MappedFile:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(PAGES * PAGE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    drop_file(path)
    mapped = MappedFile(path, random=True)
    if in_memory(mapped).any():
        pytest.skip("this file system keeps its files in memory")
    return mapped


def in_memory(mapped: MappedFile) -> BytesArray:
    """Of each page, whether the page cache has it."""
    there = np.zeros(PAGES, np.uint8)
    mincore = ctypes.CDLL(None).mincore
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    assert mincore(mapped.bytes.ctypes.data, mapped.size, there.ctypes.data) == 0
    return there & 1


def read_in_the_end(mapped: MappedFile, wanted: BytesArray) -> None:
    for _ in range(600):  # of a busy disk advice may take its time
        there = in_memory(mapped)
        if (there[wanted] == 1).all():
            break
        time.sleep(0.05)
    assert (there[wanted] == 1).all()
    assert there.sum() < 2 * len(wanted) + 64  # and little else


@pytest.mark.parametrize("together", [True, False])
def test_rows_here_and_there_are_read(
    mapped: MappedFile, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    if not together:
        monkeypatch.setattr(mapping._own, "usable", False)
    pages = np.sort(np.random.default_rng(0).choice(PAGES // 3, 1200, replace=False)) * 3
    assert mapped.will_need_each(pages * PAGE + 100, 1000) == 1200
    read_in_the_end(mapped, pages)


def test_a_long_piece_is_read_whole(mapped: MappedFile) -> None:
    pages = np.arange(7, 7 + 20 * ADVICE_BYTES // PAGE)
    assert mapped.will_need(7 * PAGE + 1, len(pages) * PAGE - 1) == 20
    read_in_the_end(mapped, pages)


def test_a_child_advises_its_own_mappings(mapped: MappedFile) -> None:
    mapped.will_need_each(np.arange(8) * PAGE * 8, 10)
    parent = mapping._own.handle()
    child = os.fork()
    if child == 0:
        ours = mapping._own.handle()
        mapped.will_need_each(np.arange(1000, 1008) * PAGE * 2, 10)
        link = Path(f"/proc/self/fdinfo/{ours}").read_text()
        os._exit(0 if f"Pid:\t{os.getpid()}" in link else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert mapping._own.handle() == parent
    read_in_the_end(mapped, np.arange(1000, 1008) * 2)


def test_where_the_kernel_refuses_each_piece_is_asked_for(
    mapped: MappedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "_PROCESS_MADVISE", 10_000)  # no such call
    monkeypatch.setattr(mapping, "_own", mapping._Own())
    pages = np.arange(0, PAGES, 16)
    assert mapped.will_need_each(pages * PAGE, PAGE) == len(pages)
    read_in_the_end(mapped, pages)
    assert not mapping._own.usable
