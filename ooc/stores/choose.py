"""Which array inside a file is meant: the one that is named, or the only one that can be vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, TypeAlias

from ooc.errors import StoreError
from ooc.stores.base import DTYPES

__all__ = ["Arrays", "choose_array", "refuse_missing"]

#: Arrays by name: shape, and name of the dtype.
Arrays: TypeAlias = Mapping[str, tuple[tuple[int, ...], str]]

_LISTED = 20


def choose_array(where: str, name: str | None, arrays: Callable[[], Arrays], *, what: str) -> str:
    """The array's name: as given, else that of the only 2-d one of a dtype that vectors have.

    Parameters
    ----------
    where : str
        The file, for messages.
    name : str, optional
        What the user named.
    arrays : callable
        Gives all arrays in the file; called only when no name was given.
    what : str
        What the format calls an array: ``"dataset"``, ``"array"``, ``"column"``.

    Raises
    ------
    StoreError
        ``dataset-missing`` when no name was given and it is not clear which is meant.
    """
    if name is not None:
        return name
    found = arrays()
    fitting = _fitting(found) or found
    if len(fitting) == 1:
        return next(iter(fitting))
    if not _fitting(found):
        raise StoreError(
            f"{where} holds no {what} that can be vectors (2-d; {', '.join(DTYPES)}): {_listed(found)}",
            kind="dataset-missing",
        )
    raise StoreError(
        f"{where} holds {len(fitting)} {what}s that can be vectors: {_listed(fitting)}",
        kind="dataset-missing",
        hint=f"Name one, for example '{where}::{next(iter(fitting))}'.",
    )


def refuse_missing(where: str, name: str, found: Arrays, *, what: str) -> NoReturn:
    """Say that the named array is not there, and what is.

    Raises
    ------
    StoreError
        Always, ``dataset-missing``.
    """
    raise StoreError(
        f"there is no {what} {name!r} in {where}: it holds {_listed(_fitting(found) or found)}",
        kind="dataset-missing",
    )


def _fitting(arrays: Arrays) -> Arrays:
    return {name: (s, dtype) for name, (s, dtype) in arrays.items() if len(s) == 2 and dtype in DTYPES}


def _listed(arrays: Arrays) -> str:
    names = [f"{name} ({' x '.join(map(str, s))} {dtype})" for name, (s, dtype) in arrays.items()]
    more = len(names) - _LISTED
    return (", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")) or "nothing"
