"""How many threads OpenMP may use for faiss's calls from the calling thread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import faiss

from ooc.forks import faiss_library

__all__ = ["one_thread", "threads_limited"]


def _runtime() -> tuple[Callable[[], int], Callable[[int], None]]:
    """OpenMP's own ``omp_get_max_threads`` and ``omp_set_num_threads``; faiss's where they are not found.

    faiss's let go of Python's lock, as all of its calls do. Each time it is let go another thread wakes up,
    which takes longer than the call, and a search makes three of these.
    """
    try:
        library = ctypes.PyDLL(str(faiss_library()))
        most, limit = library.omp_get_max_threads, library.omp_set_num_threads
    except (AttributeError, OSError):
        return faiss.omp_get_max_threads, faiss.omp_set_num_threads
    most.restype, most.argtypes = ctypes.c_int, ()
    limit.restype, limit.argtypes = None, (ctypes.c_int,)
    return most, limit


_most, _limit = _runtime()


class threads_limited:  # noqa: N801 - used as a function is; a generator takes a query twice as long
    """Let faiss use ``n`` threads for calls from this thread; other threads keep their setting."""

    __slots__ = ("_before", "_n")

    def __init__(self, n: int) -> None:
        self._n = n

    def __enter__(self) -> None:
        self._before = _most()
        _limit(self._n)

    def __exit__(self, *_: object) -> None:
        _limit(self._before)


def one_thread() -> None:
    """Let faiss use one thread for calls from this thread, for good: what a pool's thread starts with."""
    _limit(1)
