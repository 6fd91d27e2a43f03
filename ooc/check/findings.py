"""What a check found, and what it looked at."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ooc.durable import translated
from ooc.errors import IndexDirError, OocError

__all__ = ["ANEW", "MENDED", "Finding", "Findings", "Kind"]

#: What is not as it should be.
Kind: TypeAlias = Literal["missing", "record", "size", "structure", "checksum", "ids", "codes", "store"]

#: What to do where the rows can be read again, and where nothing else helps.
MENDED = "`ooc verify --repair` writes it anew"
ANEW = "copy the directory anew from where it is sound, or remove it and build"


#: Why a file cannot be read that may be sound.
_NO_DAMAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be.

    Attributes
    ----------
    path : str
        The file, relative to the index; or the store.
    kind : str
    what, do : str
        What is wrong, and what to do.
    block : int, optional
        Which block of the file: 64 MiB of it, or 1024 of its rows.
    """

    path: str
    kind: Kind
    what: str
    do: str
    block: int | None = None


class Findings:
    """Collects what is found, what was checked, and what could not be.

    Attributes
    ----------
    found : list of Finding
    checked : dict of str to int
        How many ``records``, ``files``, ``blocks``, ``bytes``, ``entries``, ``codes``, ``stores``.
    unchecked : list of dict
        ``what``, and ``why`` not.
    damaged : set of Path
        Files of the index that something was found in.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.found: list[Finding] = []
        names = ("records", "files", "blocks", "bytes", "entries", "codes", "stores")
        self.checked: dict[str, int] = dict.fromkeys(names, 0)
        self.unchecked: list[dict[str, str]] = []
        self.damaged: set[Path] = set()

    def add(
        self, path: Path | str, kind: Kind, what: str, do: str = ANEW, *, block: int | None = None
    ) -> None:
        """Something is wrong with a file of the index, or with a store."""
        name = str(path)
        if isinstance(path, Path):
            self.damaged.add(path)
            name = str(path.relative_to(self._root)) if path.is_relative_to(self._root) else name
        finding = Finding(path=name, kind=kind, what=what, do=do, block=block)
        if finding not in self.found:
            self.found.append(finding)

    @contextlib.contextmanager
    def of(self, path: Path, kind: Kind, do: str = ANEW, *, but: tuple[str, ...] = ()) -> Iterator[None]:
        """Errors of the block that say that the index is damaged are findings about a file.

        Raises
        ------
        IndexDirError
            Of a kind that is in ``but``; and where something in the directory leads elsewhere.
        ResourceError
            The system refused, and for another reason than the disk.
        """
        refused: OSError | None = None
        try:
            yield
        except IndexDirError as error:
            if error.kind in (*but, "index-link"):
                raise
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_DAMAGE:
                refused = cause
            else:
                missing = error.kind == "index-missing" or not path.exists()
                self.add(path, "missing" if missing else kind, error.message, do)
        if refused is not None:
            with translated(path, "reading"):
                raise refused

    def skip(self, what: str, why: str | OocError) -> None:
        """Something could not be checked."""
        reason = why.message if isinstance(why, OocError) else why
        entry = {"what": what, "why": reason}
        if entry not in self.unchecked:
            self.unchecked.append(entry)

    def count(self, **more: int) -> None:
        """So much more was checked."""
        for name, times in more.items():
            self.checked[name] += times

    def is_sound(self, path: Path) -> bool:
        """Whether nothing was found in a file."""
        return path not in self.damaged

    def to_record(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "sound": not self.found,
            "findings": [asdict(finding) for finding in self.found],
            "checked": dict(self.checked),
            "unchecked": list(self.unchecked),
        }
