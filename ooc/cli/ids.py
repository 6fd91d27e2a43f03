"""Ids as somebody names them on the command line: in a file, or one by one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ooc.errors import ArgumentError

if TYPE_CHECKING:
    from ooc.types import AnyArray

__all__ = ["HELP", "read_ids"]

HELP = "a .npy file, a text file with an id a line ('-': from stdin), or ids as in 3,7,20-29"

_SOME = re.compile(r"\d{1,18}(-\d{1,18})?(,\d{1,18}(-\d{1,18})?)*")


def read_ids(text: str) -> AnyArray:
    """The ids that ``text`` names, ``(m,)``; of a ``.npy`` file what is in it.

    Raises
    ------
    ArgumentError
        The file is missing or holds something else.
    """
    import numpy as np

    if text != "-" and (not text or not Path(text).exists()):
        if not _SOME.fullmatch(text):
            raise ArgumentError(
                f"{text or repr(text)} is no file, and no ids",
                kind="ids",
                hint="Write ids as in 3,7,20-29, or name a file.",
            )
        spans = [(int(a), int(b or a)) for a, _, b in (part.partition("-") for part in text.split(","))]
        for first, last in spans:
            if last < first:
                raise ArgumentError(
                    f"{first}-{last} in {text} ends before it begins",
                    kind="ids",
                    hint=f"Write {last}-{first}.",
                )
        return np.concatenate([np.arange(first, last + 1, dtype=np.int64) for first, last in spans])
    try:
        if text.endswith(".npy"):
            ids: AnyArray = np.load(text, allow_pickle=False)
            return ids
        words = (sys.stdin.read() if text == "-" else Path(text).read_text()).split()
        return np.array([int(word) for word in words], np.int64)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise ArgumentError(
            f"{text} holds no ids: {error}", kind="ids", hint="A line of a text file is a whole number."
        ) from error
