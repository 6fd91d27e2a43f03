"""The threads that compute: each with one BLAS and one faiss thread of its own.

Work is cut into blocks of a fixed shape and each block is computed by one thread, so the same rows
give the same bits at any number of threads, and the threads of BLAS and OpenMP do not fight.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from ooc import engine
from ooc.mapping import see_room
from ooc.units import MIB

__all__ = ["Pool", "in_order", "workers"]

#: What a thread maps for its stack, and BLAS when it first multiplies.
_THREAD_BYTES = (8 + 32) * MIB

Pool = ThreadPoolExecutor
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def workers(threads: int) -> Iterator[Pool]:
    """A pool of ``threads`` threads. BLAS has one thread a caller until the block ends.

    Raises
    ------
    OSError
        There is no room for what they will need: BLAS does not tell, it ends the process.
    """
    _see_room(threads)
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(threads, thread_name_prefix="ooc", initializer=engine.one_thread) as pool,
    ):
        yield pool


@functools.cache
def _see_room(threads: int) -> None:
    """Once in a process: later on, BLAS has what it needs."""
    see_room(threads * _THREAD_BYTES)


def in_order(
    pool: Pool, work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """``work`` on each item by the pool, results in the order of the items.

    At most two items a thread are under way, so a stream of any length takes bounded memory. When
    the caller stops early, or one item fails, those not yet begun are dropped.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
