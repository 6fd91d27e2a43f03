"""Forking a process that has searched or built: the child must be able to do the same.

libgomp keeps the threads of a team for the next parallel region. A fork copies its record of them but
not the threads, and the child waits for them for ever at its first region. So the team of the thread
that forks is dissolved before: parent and child each make another when they need one. The threads of
numpy's OpenBLAS see to themselves, and so does LLVM's OpenMP.
"""

from __future__ import annotations

import os
import sys

__all__ = ["faiss_library"]

#: OpenMP's ``omp_pause_soft``: give the threads up, keep the settings.
_PAUSE_SOFT = 1


def faiss_library() -> str | None:
    """faiss's compiled part, where it was loaded.

    Through it faiss's own OpenMP is found, wherever and under whatever name that was installed.
    """
    native = next((m for name, m in sys.modules.items() if name.startswith("faiss._swigfaiss")), None)
    return None if native is None else native.__file__


def _dissolve_team() -> None:
    """End the OpenMP threads of the calling thread, where faiss was loaded."""
    library = faiss_library()
    if library is None:
        return
    import ctypes

    pause = getattr(ctypes.CDLL(library), "omp_pause_resource_all", None)  # since OpenMP 5.0
    if pause is not None:
        pause(_PAUSE_SOFT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_dissolve_team)
