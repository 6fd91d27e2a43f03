"""One writer at a time: who it is is told; what a dead one left is no lock; readers keep what they hold."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ooc
from tests.cli.process import environment
from tests.helpers import embeddings, tree

#: Holds the lock of an index until it is told to end, as a long change does.
HOLDER = """
import sys
from ooc.index.layout import Layout
from ooc.update.changing import changing
with changing(Layout.of(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def index(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", embeddings(1500, 16))
    ooc.build(tmp_path / "x.npy", tmp_path / "i", factory="IVF16,SQ8")
    return tmp_path / "i"


def changes(index: Path) -> dict[str, Callable[[], Any]]:
    return {
        "append": lambda: ooc.append(index, embeddings(10, 16)),
        "upsert": lambda: ooc.upsert(index, np.arange(3), embeddings(3, 16)),
        "delete": lambda: ooc.delete(index, np.arange(3)),
        "compact": lambda: ooc.compact(index),
        "rollback": lambda: ooc.rollback(index, 1),
        "gc": lambda: ooc.gc(index),
    }


def test_a_second_writer_is_told_of_the_first(index: Path) -> None:
    before = tree(index)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(index)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for name, change in changes(index).items():
            with pytest.raises(ooc.ConflictError) as error:
                change()
            assert error.value.kind == "locked", name
            said = rf"process {holder.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d \d\d:"
            assert re.search(said, error.value.message), error.value.message
        assert tree(index) == before
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        # Its record is there still, and holds nobody.
        assert json.loads((index / "lock").read_text())["pid"] == holder.pid
    for change in changes(index).values():
        change()


@pytest.mark.parametrize("record", ["", "{", "[]", '{"host": "elsewhere", "pid": 1, "since": 0}', "\0" * 90])
def test_what_a_lock_file_says_is_no_lock(index: Path, record: str) -> None:
    (index / "lock").write_text(record)
    assert ooc.delete(index, np.arange(3))["deleted"] == 3


def test_a_reader_keeps_its_generation_through_many_others(index: Path) -> None:
    """Publishing, compacting and collecting leave what is held; another process looks at every byte of it."""
    xq = embeddings(20, 16, seed=1)
    reader = """
import sys, numpy as np, ooc
index, xq = ooc.open_index(sys.argv[1]), np.load(sys.argv[2])
first = index.search(xq, 5, recall=1.0)
print("open", flush=True)
for line in sys.stdin:
    for options in ({"recall": 1.0}, {"nprobe": index.nlist, "rerank": 1000}):
        found = index.search(xq, 5, **options)
        assert (found[1] == first[1]).all() and np.allclose(found[0], first[0], rtol=1e-5)
    print(index.generation, flush=True)
"""
    np.save(index.parent / "q.npy", xq)
    ooc.append(index, embeddings(100, 16, seed=2))  # of which the index has the only copy
    with subprocess.Popen(
        [sys.executable, "-c", reader, str(index), str(index.parent / "q.npy")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        for turn in range(12):
            ooc.delete(index, np.array([turn, 1500 + turn]))
            if turn % 3 == 1:
                ooc.append(index, embeddings(5, 16, seed=turn))
            if turn % 3 == 2:
                ooc.compact(index)
            assert 2 not in ooc.gc(index)["removed"]
            process.stdin.write("again\n")
            process.stdin.flush()
            assert process.stdout.readline() == "2\n"
        process.stdin.close()
        assert process.wait(30) == 0
    assert 2 in ooc.gc(index)["removed"]


def test_generations_left_unpublished_are_never_seen(index: Path) -> None:
    """What a killed change wrote of a generation is none: it is not listed, nor gone back to."""
    ooc.delete(index, np.arange(5))
    (index / "generations/publishing").write_text("3\n")
    (index / "generations/3.json").write_bytes((index / "generations/2.json").read_bytes())
    assert [one["generation"] for one in ooc.generations(index)] == [1, 2]
    with pytest.raises(ooc.ArgumentError, match="no generation 3"):
        ooc.rollback(index, 3)
    assert ooc.delete(index, np.arange(5, 9))["generation"] == 3


def test_after_going_back_a_change_has_a_number_of_its_own(index: Path) -> None:
    ooc.delete(index, np.arange(5))
    ooc.delete(index, np.arange(5, 9))
    ooc.rollback(index, 1)
    assert [one["generation"] for one in ooc.generations(index)] == [1, 2, 3]
    assert ooc.delete(index, np.arange(20, 30))["generation"] == 4
    ooc.rollback(index, 2)
    assert ooc.delete(index, np.arange(40, 50))["generation"] == 5


def test_a_lock_is_told_to_be_held_since_when_it_is(index: Path) -> None:
    ooc.delete(index, np.arange(3))
    record = json.loads((index / "lock").read_text())
    assert record["pid"] == os.getpid()
    assert abs(record["since"] - time.time()) < 60
