"""Factory strings: which codes can live in lists on disk, and what a plan makes of them.

A factory string reads ``[transforms,]IVF<nlist>[_HNSW<m>],<code>``, as faiss's does. What is left
out is filled in: ``SQ8`` becomes ``IVF4096,SQ8`` for a million rows. What cannot work is refused
here, before any work, with the reason and the nearest string that does work.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ooc.engine import code_bytes, require_rows
from ooc.errors import PlanError
from ooc.types import Metric

__all__ = ["CODES", "Factory", "choose_nlist", "parse_factory"]

_TRANSFORM = re.compile(r"^(HR|RR\d*|PCA[RW]?\d+|OPQ\d+(_\d+)?|ITQ\d*)$")
_IVF = re.compile(r"^IVF(\d*)(_HNSW(\d*))?$")

#: Codes that are compared where the user names none, the more exact later. More bits make a code larger, and
#: fewer candidates then hold the true neighbours.
CODES = ("HR,RaBitQ", "HR,EDEN2", "HR,EDEN3", "HR,EDEN4", "SQ8")

#: (pattern of what cannot work, why, what to use in its place)
_REFUSED: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"^(PQ\d+)x4fs(r)?(_\d+)?$|^.*fs(r)?(_\d+)?$"),
        "FastScan keeps its lists in blocks that cannot be merged on disk",
        "the same code without 'fs' (PQ64x4, RaBitQ, SQ4)",
    ),
    (
        re.compile(r"^PQ\d+\+\d+$"),
        "IVFPQR keeps its refining codes outside the lists",
        "PQ64; rows are re-ranked exactly from the store",
    ),
    (
        re.compile(r"^(HNSW|NSG|NNDescent|Vamana).*$"),
        "a graph over all rows has no lists to lie on disk",
        "IVF16384_HNSW32,SQ8: the graph over the centroids",
    ),
    (
        re.compile(r"^(RFlat|Refine\(.*\)|Refine.*)$"),
        "a refining index keeps all rows in memory",
        "the string without it; rows are re-ranked exactly from the store",
    ),
    (re.compile(r"^IDMap2?$"), "ids are explicit already", "the string without it"),
    (re.compile(r"^IMI.*$"), "an inverted multi-index has mostly empty lists", "IVF16384"),
    (re.compile(r"^L2[nN]orm$"), "normalising belongs to the metric", "metric cosine"),
    (re.compile(r"^FlatPanorama.*$"), "Panorama reorders its lists and cannot be mapped", "Flat"),
    (re.compile(r"^FlatDedup$"), "de-duplicated lists have no fixed size", "Flat"),
    (re.compile(r"^LSH.*$"), "a binary code without lists is searched whole", "RaBitQ"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factory:
    """A factory string that works on disk, with everything filled in.

    Attributes
    ----------
    text : str
        For faiss: ``"HR,IVF4096,RaBitQ"``.
    nlist : int
        Lists.
    code_size : int
        Bytes of a code.
    d_code : int
        Dimensions after the transforms.
    """

    text: str
    nlist: int
    code_size: int
    d_code: int

    @property
    def graph(self) -> bool:
        """Whether centroids are found through a graph."""
        return "_HNSW" in self.text


def choose_nlist(n: int) -> int:
    """Lists for ``n`` rows: the power of two nearest to ``4 √n``, with at least 32 rows a list."""
    wanted = 1 << round(math.log2(4 * math.sqrt(n)))
    most = 1 << int(math.log2(max(n / 32, 1)))
    return max(1, min(wanted, most))


def parse_factory(text: str, *, n: int, d: int, metric: Metric, nlist: int | None = None) -> Factory:
    """The factory of ``n`` rows of ``d`` dimensions from what the user wrote.

    Where that has no number of lists, there are ``nlist``, or as many as suit ``n`` rows.

    Raises
    ------
    PlanError
        When the string is not understood, cannot live on disk, does not fit ``d``, or wants more
        rows than there are.
    """
    parts = [part.strip() for part in re.split(r",(?![^(]*\))", text)]
    transforms, coarse, codes = _sort(parts, text)
    if len(codes) != 1:
        what = "no code" if not codes else f"more than one code ({', '.join(codes)})"
        raise PlanError(
            f"the factory string {text!r} has {what}",
            kind="factory",
            hint="Write it as in 'HR,IVF4096,RaBitQ': transforms, lists, code.",
        )
    match = _IVF.match(coarse or "IVF")
    if match is None:
        raise PlanError(f"{coarse!r} in {text!r} is not understood", kind="factory", hint="Write IVF4096.")
    nlist = int(match[1]) if match[1] else nlist or choose_nlist(n)
    if nlist < 1 or nlist > n:
        raise PlanError(
            f"{nlist} lists for {n} rows: there must be at least one row a list",
            kind="too-few-rows",
            hint=f"Leave the number out to have it planned ({choose_nlist(n)} here).",
        )
    graph = "_HNSW32" if match[2] == "_HNSW" else match[2] or ""
    full = ",".join([*transforms, f"IVF{nlist}{graph}", *codes])
    code_size, d_code = code_bytes(full, d, metric)
    require_rows(full, d, metric, n)
    return Factory(text=full, nlist=nlist, code_size=code_size, d_code=d_code)


def _sort(parts: list[str], written: str) -> tuple[list[str], str | None, list[str]]:
    transforms: list[str] = []
    coarse: str | None = None
    codes: list[str] = []
    for part in parts:
        for pattern, why, instead in _REFUSED:
            if pattern.match(part):
                raise PlanError(
                    f"{part!r} in the factory string {written!r} cannot be used: {why}",
                    kind="factory",
                    hint=f"Use {instead}.",
                )
        if _TRANSFORM.match(part) and coarse is None and not codes:
            transforms.append(part)
        elif part.startswith("IVF") and coarse is None and not codes:
            coarse = part
        else:
            codes.append(part)
    return transforms, coarse, codes
