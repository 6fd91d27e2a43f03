"""Names for the arrays and words that travel through the package."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ooc.stores.base import Store
    from ooc.stores.keys import KeySource

__all__ = [
    "METRICS",
    "AnyArray",
    "BytesArray",
    "CopyDtype",
    "CopyVectors",
    "FloatArray",
    "IntArray",
    "KeyKind",
    "KeysLike",
    "Metric",
    "OnBad",
    "PathOrStr",
    "Spill",
    "StoreLike",
]

AnyArray: TypeAlias = NDArray[Any]
FloatArray: TypeAlias = NDArray[np.float32]
IntArray: TypeAlias = NDArray[np.int64]
BytesArray: TypeAlias = NDArray[np.uint8]
PathOrStr: TypeAlias = str | PathLike[str]

#: What ``ooc.open_store`` takes: a path, ``PATH::/dataset``, a URL, a glob, a list of these, an
#: array in memory, or a store that is open already.
StoreLike: TypeAlias = "PathOrStr | AnyArray | Store | Sequence[PathOrStr]"

#: Keys of rows: a 1-d array or a list of whole numbers or of strings, or a file of them.
KeysLike: TypeAlias = "PathOrStr | AnyArray | Sequence[object] | KeySource"

#: What keys are.
KeyKind = Literal["int64", "str"]

#: ``l2``: squared distances, ascending. ``ip`` and ``cosine``: similarities, descending.
Metric = Literal["l2", "ip", "cosine"]
METRICS: tuple[Metric, ...] = ("l2", "ip", "cosine")

#: Whether an index keeps its own rows for re-ranking; ``auto``: where the store cannot be mapped.
CopyVectors = Literal["auto", "always", "never"]

#: The dtype of those rows; ``store``: as they are. int8 rows have a scale each.
CopyDtype = Literal["store", "float16", "int8"]

#: Whether each row is in a second list too.
Spill = Literal["off", "on"]

#: At rows with NaN or infinity: stop with an error, or leave them out.
OnBad = Literal["stop", "skip"]
