"""Small collections that behave like embeddings, and exact search by numpy to hold answers against."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ooc.types import AnyArray, FloatArray, IntArray


def embeddings(n: int, d: int, seed: int = 0, *, topics: int = 60) -> FloatArray:
    """Rows around Zipf-weighted topics with noise of falling spectrum: neither blobs nor white noise."""
    rng = np.random.default_rng([seed, n, d])
    spectrum = np.arange(1, d + 1) ** -0.5
    centres = rng.standard_normal((topics, d)) * spectrum
    weights = 1 / np.arange(1, topics + 1)
    which = rng.choice(topics, n, p=weights / weights.sum())
    x = centres[which] + 0.7 * rng.standard_normal((n, d)) * spectrum
    return np.ascontiguousarray(x, dtype=np.float32)


def unsealed(path: Path) -> dict[str, Any]:
    """A record of an index without its checksum: to be changed and written back as ``rewrite`` does."""
    record: dict[str, Any] = json.loads(path.read_bytes())
    record.pop("checksum", None)
    return record


def rewrite(path: Path, **entries: Any) -> None:
    """Change entries of a record, as somebody who leaves its checksum out."""
    path.write_text(json.dumps({**unsealed(path), **entries}))


def exact_search(x: AnyArray, xq: AnyArray, k: int, metric: str) -> tuple[FloatArray, IntArray]:
    """The ``k`` nearest by comparing all pairs in float64; ties in the order of the rows."""
    a, b = x.astype(np.float64), xq.astype(np.float64)
    if metric == "cosine":
        a = a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-300)
        b = b / np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1e-300)
    if metric == "l2":
        found = np.stack([((a - q) ** 2).sum(axis=1) for q in b]) if len(b) else np.empty((0, len(a)))
        order = np.argsort(found, axis=1, kind="stable")[:, :k]
    else:
        found = b @ a.T
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(found, order, axis=1).astype(np.float32), order.astype(np.int64)


def recall(found: IntArray, exact: IntArray) -> float:
    """The share of the exact neighbours that were found."""
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True))
    return hits / exact.size


def tree(index: Path) -> dict[str, str]:
    """What lies in an index, by file: all that is promised to be the same bytes."""
    return {
        str(path.relative_to(index)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(index.rglob("*"))
        if path.is_file() and path.name != "lock" and not path.name.endswith(".report.json")
    }


#: What a process runs before the code that it shall not come to the end of.
_DYING = """
import os, signal
import numpy as np
import ooc

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

def die_at(call, place, ending):
    real = getattr(os, call)
    def dying(*args, **options):
        if os.fspath(args[place]).endswith(ending):
            die()
        return real(*args, **options)
    setattr(os, call, dying)
"""


def killed(code: str, *, at: tuple[str, int, str] | None = None) -> None:
    """Run ``code`` in a process that ends by SIGKILL: by itself (``die``), or at a call of the system.

    Parameters
    ----------
    code : str
        ``ooc`` and ``np`` are imported.
    at : tuple, optional
        A function of ``os``, which of its arguments is looked at, and how that ends where the process dies.
    """
    lines = [_DYING, f"die_at(*{at!r})" if at else "", code]
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
