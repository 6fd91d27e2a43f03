"""Records of an index that lie, tried one at a time in a child that was forked.

Their checksums are left out, as somebody would who wants to be believed: what is tried is what reads them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

import ooc
from ooc.mapping import private_peak_bytes
from tests.helpers import embeddings, unsealed
from tests.verify.made import D, answers

__all__ = ["OUTSIDE", "lies", "tried"]

#: Beside the index: nothing in it may be touched.
OUTSIDE = "outside"
#: More than this for an index of some kB is too much.
MOST_BYTES = 1 << 30

_VALUES: list[Any] = [
    None, True, -1, 0, 1, 2, 7, 2**31, 2**53, 2**63, 2**64, 10**30, 1.5, -1e300, 1e300,
    "", "x", "1", "é", "a\0b",
    f"../{OUTSIDE}", f"../../{OUTSIDE}", f"../../../{OUTSIDE}", "{outside}", ".", "..", "/", "x" * 5000,
    [], [0], ["x"], {}, {"x": 1}, [[]], [2**63],
]  # fmt: skip


def lies(index: Path, count: int, seed: int) -> list[tuple[str, str]]:
    """Records with one or two lies each: their file, relative to the index, and its text."""
    rng = random.Random(seed)
    names = [
        path.relative_to(index).as_posix()
        for path in sorted(index.rglob("*.json"))
        if not path.name.endswith(".report.json")
    ]
    records = {name: unsealed(index / name) for name in names}
    found = []
    for _ in range(count):
        name = rng.choice(names)
        record = copy.deepcopy(records[name])
        for _ in range(rng.choice((1, 1, 2))):
            _change(record, rng, index.parent / OUTSIDE)
        found.append((name, json.dumps(record)))
    return found


def _change(record: dict[str, Any], rng: random.Random, outside: Path) -> None:
    places = [place for place in _places(record) if place[1] != "uri"]  # that is outside, as it should be
    if not places:
        return
    # Tables of recalls are long: each kind of place is as likely as the others.
    kinds = sorted({str(key) for _, key in places})
    kind = rng.choice(kinds)
    inside, key = rng.choice([place for place in places if str(place[1]) == kind])
    if rng.random() < 0.1:
        del inside[key]
        return
    value = copy.deepcopy(rng.choice(_VALUES))
    inside[key] = str(outside) if value == "{outside}" else value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a value in a record: what it is in, and under which key or number."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def use(index: Path) -> None:
    """Everything that can be done with an index, each by itself."""
    x = embeddings(4, D, seed=9)
    for one in (
        lambda: answers(index),
        lambda: ooc.open_index(index).info(),
        lambda: ooc.verify(index, full=True, memory="256MiB"),
        lambda: ooc.generations(index),
        lambda: ooc.delete(index, np.arange(5)),
        lambda: ooc.append(index, x, keys=["new 0", "new 1", "new 2", "new 3"], memory="400MiB"),
        lambda: ooc.compact(index, memory="400MiB"),
        lambda: ooc.verify(index, full=True, repair=True, memory="400MiB"),
        lambda: ooc.rollback(index, 1),
        lambda: ooc.gc(index),
        lambda: answers(index),
    ):
        with contextlib.suppress(ooc.OocError):
            one()


def tried(index: Path, some: list[tuple[str, str]], tell: Callable[[object], None]) -> None:
    """Try lies, each in a copy; tells ``(number,)`` before, and ``(number, what came of it)`` after."""
    faiss.omp_set_num_threads(1)
    warnings.simplefilter("ignore")
    outside, touched = str(index.parent / OUTSIDE), []

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(("open", "os.", "shutil.")) and any(outside in str(one) for one in arguments):
            touched.append(f"{event}{arguments}")

    sys.addaudithook(audit)
    place = index.parent / "copy" / "i"
    for number, (name, text) in enumerate(some):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(index, place)
        (place / name).write_text(text)
        touched.clear()
        tell((number,))
        came = ""
        try:
            use(place)
        except Exception as error:
            came = f"unforeseen {type(error).__name__}: {error}"
        if touched:
            came += f" outside: {touched[:3]}"
        if private_peak_bytes() > MOST_BYTES:
            came += " absurd memory"
        tell((number, came))
