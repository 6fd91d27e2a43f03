"""Every error that ``ooc`` raises on purpose, classed by what the caller can do about it.

    OocError
    ├── ArgumentError      an argument is wrong: call again, corrected                 exit 2
    ├── StoreError         the store cannot be read as vectors: name another or mend   exit 3
    ├── DataError          rows or queries hold what cannot be indexed                 exit 4
    ├── PlanError          no plan fits: memory, disk, or a code that cannot do it     exit 5
    ├── IndexDirError      the index directory is missing, foreign, newer or damaged   exit 6
    ├── ConflictError      something is in the way: another index, writer, or change   exit 7
    ├── MissingExtraError  an optional package is not installed                        exit 8
    ├── SystemError_       the system refused: disk full, I/O error, platform          exit 9
    └── Stopped            the caller asked to stop; the work can be gone on with      exit 130

A message says what is wrong and where, why, and what to do now. ``kind`` is a stable word for
programs; it never changes its meaning between versions. Exit status 0 is success and 1 an error
that ``ooc`` did not foresee.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import threading

__all__ = [
    "ArgumentError",
    "ConflictError",
    "DataError",
    "IndexDirError",
    "MissingExtraError",
    "OocError",
    "PlanError",
    "RecallWarning",
    "ResourceError",
    "Stopped",
    "StoreError",
]


class OocError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    message : str
        What is wrong, where and why, in one or two sentences.
    kind : str
        Stable, machine-readable word, for example ``"store-missing"``.
    hint : str, optional
        What to do now.
    """

    exit_code = 1

    def __init__(self, message: str, *, kind: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.kind, self.hint))


def _rebuild(cls: type[OocError], message: str, kind: str, hint: str | None) -> OocError:
    return cls(message, kind=kind, hint=hint)


class ArgumentError(OocError, ValueError):
    """An argument is wrong: call again, corrected."""

    exit_code = 2


class StoreError(OocError):
    """The store is missing or cannot be read as a 2-d array of vectors."""

    exit_code = 3


class DataError(OocError, ValueError):
    """Rows or queries hold values, shapes or dtypes that cannot be indexed or searched."""

    exit_code = 4


class PlanError(OocError):
    """No plan fits: the memory, the disk, or a code that cannot live on disk."""

    exit_code = 5


class IndexDirError(OocError):
    """The index directory is missing, something else, of a newer format, or damaged."""

    exit_code = 6


class ConflictError(OocError):
    """Something is in the way: another index, another writer, a store that changed."""

    exit_code = 7


class MissingExtraError(OocError):
    """An optional package is needed and not installed."""

    exit_code = 8

    def __init__(self, message: str, *, kind: str = "missing-extra", hint: str | None = None) -> None:
        super().__init__(message, kind=kind, hint=hint)


#: What the system says where a process, or all of them, has as many files open as it may.
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)

#: How Python says that there is no memory for a thread's stack or for a library, and faiss for a mapping.
_NO_MEMORY_SAID = ("can't start new thread", "failed to map segment", "Cannot allocate memory")


class ResourceError(OocError):
    """The system refused: the disk is full, a read failed, the platform lacks something."""

    exit_code = 9

    @classmethod
    def of_system(cls, error: OSError, doing: str) -> ResourceError:
        """What the system's refusal means for who was ``doing`` something."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ResourceError(
                f"the disk is full: {doing} failed",
                kind="disk-full",
                hint="Free some space and run the same command again.",
            )
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return ResourceError(
                f"{doing} is not allowed: {error.strerror}",
                kind="not-writable",
                hint="Name a directory that this user may write to.",
            )
        if error.errno == errno.ENOMEM:
            return cls.no_memory(error, doing)
        if error.errno in _TOO_MANY_FILES:
            return ResourceError(
                f"{doing} failed: {error}",
                kind="io",
                hint="Allow the process more open files (`ulimit -n`) and run the same command again.",
            )
        return ResourceError(f"{doing} failed: {error}", kind="io")

    @classmethod
    def no_memory(cls, error: BaseException, doing: str) -> ResourceError:
        """What it means that memory was refused to who was ``doing`` something."""
        why = f": {error}" if str(error) else ""
        return ResourceError(
            f"the system refused memory while {doing}{why}",
            kind="memory-refused",
            hint="Give a smaller memory budget or fewer threads, or raise the limit of this process "
            "(`ulimit -v`, the container's), and run the same command again.",
        )

    @classmethod
    def raise_if_lacking(cls, error: BaseException, doing: str) -> None:
        """Raise one where memory or numbers of files ran out: what was read is not to blame for that."""
        if isinstance(error, MemoryError) or _says_no_memory(error):
            raise cls.no_memory(error, doing) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, *_TOO_MANY_FILES):
            raise cls.of_system(error, doing) from error

    @classmethod
    @contextlib.contextmanager
    def if_refused(cls, doing: str) -> Iterator[None]:
        """Raise one where the system refuses memory, or anything else, to a block or a decorated function."""
        try:
            yield
        except MemoryError as error:
            raise cls.no_memory(error, doing) from error
        except (RuntimeError, ImportError) as error:
            if not _says_no_memory(error):
                raise
            raise cls.no_memory(error, doing) from error
        except BrokenPipeError:
            raise  # of whoever reads what is told
        except OSError as error:
            raise cls.of_system(error, doing) from error


def _says_no_memory(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | ImportError) and any(
        said in str(error) for said in _NO_MEMORY_SAID
    )


class Stopped(OocError):  # noqa: N818 - not a failure: the caller asked for it
    """The caller asked to stop. What was finished is durable; the same call goes on from there."""

    exit_code = 130

    def __init__(self, message: str, *, kind: str = "stopped", hint: str | None = None) -> None:
        super().__init__(message, kind=kind, hint=hint)

    @classmethod
    def raise_if(cls, stop: threading.Event | None) -> None:
        """Raise where ``stop`` is set: what work calls at the points where it is safe to end."""
        if stop is not None and stop.is_set():
            raise cls("stopped at a safe point")


class RecallWarning(UserWarning):
    """A recall was asked for that no setting of the index was measured to keep."""
