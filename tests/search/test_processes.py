"""One index in several processes and threads: servers fork their workers, before opening or after.

Each case forks in a process of its own, so that what hangs is ended and nothing is inherited from the
other tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import ooc
from ooc.types import FloatArray

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")

#: What each case begins with. `in_child` forks, calls, and gives what the child returned.
_PRELUDE = """
import json, multiprocessing, os, sys, threading, warnings
import numpy as np
import faiss, ooc
faiss.omp_set_num_threads(2)
path, queries = sys.argv[1], np.load(sys.argv[2])

def threads():
    return len(os.listdir("/proc/self/task"))

def search(index, queries=queries):
    return index.search(queries, 5, nprobe=8)[1].tolist()

def in_child(call, *, others=False):
    reader, writer = os.pipe()
    with warnings.catch_warnings(record=True) as warned:  # of threads that a fork would lose: 3.12
        warnings.simplefilter("always")
        pid = os.fork()
    if pid == 0:
        os.close(reader)
        with open(writer, "w") as file:
            json.dump(call(), file)
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, status
    # Where threads of Python's own are left behind, it is right to warn.
    assert others or not warned, [str(w.message) for w in warned]
    return json.loads(text)

def private_bytes():
    with open("/proc/self/smaps_rollup") as file:
        return sum(1024 * int(l.split()[1]) for l in file if l.startswith(("Private_Dirty", "Private_Clean")))
"""


@pytest.fixture(scope="module")
def made(npy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "i"
    ooc.build(npy, path, memory="400MiB", factory="IVF64,SQ8", threads=2)
    return path


@pytest.fixture(scope="module")
def expected(made: Path, xq: FloatArray) -> Any:
    with ooc.open_index(made) as index:
        return index.search(xq, 5, nprobe=8)[1].tolist()


@pytest.fixture
def case(made: Path, xq: FloatArray, tmp_path: Path) -> Any:
    """Runs a script after the prelude, and gives what it printed."""
    queries = tmp_path / "queries.npy"
    np.save(queries, xq)

    def run(script: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", _PRELUDE + script, str(made), str(queries)],
            capture_output=True,
            text=True,
            timeout=60,  # a child that waits for threads it does not have waits for ever
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_an_index_opened_before_the_fork_is_searched_in_the_child(case: Any, expected: Any) -> None:
    found = case("""
index = ooc.open_index(path)
print(json.dumps([in_child(lambda: search(index)), search(index)]))
""")
    assert found == [expected, expected]


def test_a_child_opens_an_index_of_its_own_after_its_parent_searched(case: Any, expected: Any) -> None:
    found = case("""
search(ooc.open_index(path))
print(json.dumps(in_child(lambda: search(ooc.open_index(path)))))
""")
    assert found == expected


@pytest.mark.parametrize("before", ["queries", "queries[:1]"])
def test_a_child_searches_after_its_parent_searched_with_threads(
    case: Any, expected: Any, before: str
) -> None:
    """A batch, a single query, with as many threads as the parent had; and the parent goes on."""
    found = case(f"""
index = ooc.open_index(path)
search(index, {before})
children = [in_child(lambda: [search(index), search(index, queries[:1])]) for _ in range(2)]
print(json.dumps([*children, [search(index), search(index, queries[:1])]]))
""")
    assert found == [[expected, expected[:1]]] * 3


def test_a_fork_leaves_one_thread_in_the_child_and_none_waiting_in_the_parent(case: Any) -> None:
    found = case("""
index = ooc.open_index(path)
search(index)
before = threads()
print(json.dumps([before, in_child(threads), threads()]))
""")
    before, child, after = found
    assert child == 1
    assert after <= before


def test_the_number_of_threads_that_a_child_may_use_is_its_parents(case: Any) -> None:
    assert case("""
index = ooc.open_index(path)
search(index)
print(json.dumps([in_child(faiss.omp_get_max_threads), faiss.omp_get_max_threads()]))
""") == [2, 2]


def test_a_fork_from_another_thread_than_the_main_one(case: Any, expected: Any) -> None:
    found = case("""
index = ooc.open_index(path)
search(index)
found = []
def work():
    search(index)
    found.append(in_child(lambda: search(index), others=True))
thread = threading.Thread(target=work)
thread.start(); thread.join()
print(json.dumps(found))
""")
    assert found == [expected]


def test_workers_of_a_forking_pool_give_the_same_answers(case: Any, expected: Any) -> None:
    """Children fork children: a server that loads before it forks, and a pool in a worker."""
    found = case("""
index = ooc.open_index(path)
search(index)
def task(_):
    return search(index)
def pool():
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=lambda: results.put(task(0))) for _ in range(3)]
    results = context.SimpleQueue()
    for worker in workers: worker.start()
    found = [results.get() for _ in workers]
    for worker in workers: worker.join()
    return found
print(json.dumps(pool() + in_child(lambda: [task(0), in_child(lambda: task(0))])))
""")
    assert found == [expected] * 5


def test_a_build_before_the_fork_does_not_stop_the_child(
    case: Any, expected: Any, npy: Path, tmp_path: Path
) -> None:
    found = case(f"""
ooc.build({str(npy)!r}, {str(tmp_path / "other")!r}, memory="400MiB", factory="IVF16,SQ8", threads=2)
index = ooc.open_index(path)
print(json.dumps(in_child(lambda: search(index))))
""")
    assert found == expected


def test_workers_share_their_pages(case: Any) -> None:
    """What a worker has to itself after many searches is a small part of what one process takes."""
    own, alone = case("""
index = ooc.open_index(path)
search(index)
def work():
    for _ in range(20): search(index)
    return private_bytes()
alone = sum(1024 * int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmRSS"))
print(json.dumps([in_child(work), alone]))
""")
    assert own < alone / 4


def test_a_child_that_closes_its_index_leaves_the_parents_open(case: Any, expected: Any) -> None:
    found = case("""
index = ooc.open_index(path)
search(index)
in_child(index.close)
print(json.dumps(search(index)))
""")
    assert found == expected


def test_threads_that_search_one_index_at_once_get_right_answers(
    made: Path, expected: Any, xq: FloatArray
) -> None:
    def work(number: int) -> bool:
        some = slice(number % len(xq), number % len(xq) + 1 + number % 3)
        return bool(index.search(xq[some], 5, nprobe=8)[1].tolist() == expected[some])

    with ooc.open_index(made) as index, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))


def test_the_callers_number_of_threads_is_left_alone(npy: Path, xq: FloatArray, tmp_path: Path) -> None:
    """In the calling thread, whatever it is set to."""
    before = faiss.omp_get_max_threads()
    try:
        for number in (1, 3):
            faiss.omp_set_num_threads(number)
            path = tmp_path / f"i{number}"
            ooc.build(npy, path, memory="400MiB", factory="IVF16,SQ8", threads=2)
            assert faiss.omp_get_max_threads() == number
            with ooc.open_index(path) as index:
                assert faiss.omp_get_max_threads() == number
                index.search(xq, 5)
                index.search(xq[:1], 5)
                index.range_search(xq[:1], 1.0)
            assert faiss.omp_get_max_threads() == number
    finally:
        faiss.omp_set_num_threads(before)
