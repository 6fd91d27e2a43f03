"""What a store says of other files may lead within its own directory, and nowhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ooc.errors import StoreError
from ooc.types import PathOrStr

__all__ = ["refuse_outside"]


def refuse_outside(path: PathOrStr, root: Path, *, of: str, itself: bool = False) -> None:
    """See that a path that a store gives, all links followed, lies in ``root`` and is a file or directory.

    Parameters
    ----------
    path : path or str
        Nothing need be there.
    root : Path
        Where the store is, by the name that the user gave.
    of : str
        The store, for messages.
    itself : bool
        ``root`` is a file: its directory is meant, that of the name as well as that of what it links to.

    Raises
    ------
    StoreError
        ``store-outside``.
    """
    places = [root.parent.resolve(), root.resolve().parent] if itself else [root.resolve()]
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(place) for place in places):
        try:
            mode = real.stat().st_mode
        except OSError:
            return  # it is not there, or cannot be looked at: whoever opens it says so
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return
    raise StoreError(
        f"{of} leads to {real}, which is no file in the directory of the store",
        kind="store-outside",
        hint="Put what it leads to in its place, if you trust it; or name that as the store.",
    )
