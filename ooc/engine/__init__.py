"""faiss, behind a few functions: the rest of the package sees numpy arrays.

``Codec`` is the trained, empty index (the template): it rotates rows, encodes them against their
list, and writes the header that makes faiss open a file of lists. ``DiskLists`` is that header and
file opened for reading. ``Nearest`` finds the centroid nearest to each of many rows,
and ``Exact`` compares rows with given centroids; a search finds lists by a ``Sketch``, in an order that a
``Handicap`` changes. ``pairs`` computes exact distances where the rows lie, and
``code_distances`` tells what a code would make of them. ``begin_single`` and ``read_foreign`` exchange whole
indexes with plain faiss, in one file. What faiss reads is checked before (``skeleton``).

What SWIG asks for is done here and only here: arrays that are contiguous, of the right dtype and
kept alive; the top object kept alive as long as a view of its parts; thread counts set in the calling
thread alone and put back.
"""

from __future__ import annotations

from ooc.engine.codec import (
    ID_BYTES,
    LISTS_NAME,
    Codec,
    check_platform,
    code_bytes,
    require_rows,
    version,
)
from ooc.engine.distances import pairs
from ooc.engine.foreign import Foreign, is_foreign, read_foreign
from ooc.engine.handicap import Handicap
from ooc.engine.interrupt import interruptible
from ooc.engine.lists import DiskLists
from ooc.engine.nearest import Exact, Look, Nearest
from ooc.engine.select import Selector
from ooc.engine.single import begin_single
from ooc.engine.skeleton import Skeleton, header_skeleton, see_sketch, template_skeleton
from ooc.engine.sketch import Sketch, sketch_bytes, sketched
from ooc.engine.threads import one_thread, threads_limited
from ooc.engine.trial import code_distances

__all__ = [
    "ID_BYTES",
    "LISTS_NAME",
    "Codec",
    "DiskLists",
    "Exact",
    "Foreign",
    "Handicap",
    "Look",
    "Nearest",
    "Selector",
    "Skeleton",
    "Sketch",
    "begin_single",
    "check_platform",
    "code_bytes",
    "code_distances",
    "header_skeleton",
    "interruptible",
    "is_foreign",
    "one_thread",
    "pairs",
    "read_foreign",
    "require_rows",
    "see_sketch",
    "sketch_bytes",
    "sketched",
    "template_skeleton",
    "threads_limited",
    "version",
]
