"""Durable writes: a file appears whole or not at all, and stays.

Every file that must survive a crash is written here: under a temporary name in the same directory,
flushed to the disk, renamed, and the directory flushed after it. A temporary file that a crash left
behind has a fixed name, so the next run writes over it. Data first, record last: a reader trusts a
file only after its record.

What is learnt from borg's ``SyncFile`` and ``SaveFile``: hash while writing, flush the data before
the name, let the page cache go behind a long write.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from ooc import disk
from ooc.disk import sync_directory
from ooc.errors import IndexDirError, ResourceError
from ooc.mapping import drop_cached
from ooc.types import AnyArray

__all__ = [
    "CHECK_BYTES",
    "BlockHash",
    "DurableFile",
    "RowsFile",
    "as_bytes",
    "block_checksums",
    "check_seal",
    "journal_name",
    "make_directory",
    "npy_head",
    "partial_name",
    "read_json",
    "remove_file",
    "remove_files",
    "remove_tree",
    "rename",
    "replace",
    "settle_replaced",
    "sync_directory",
    "sync_file",
    "sync_tree",
    "translated",
    "write_array",
    "write_bytes",
    "write_json",
    "write_sealed",
]

#: A checksum covers this many bytes, so that damage is located and a long check can resume.
CHECK_BYTES = 64 * 1024 * 1024

#: No record is nearly as long: a longer file is not read into memory.
_RECORD_BYTES = 32 * 1024 * 1024
#: The key of a record's own checksum, as ``write_sealed`` places it: at the beginning of a line.
_SEAL, _SEALED = "checksum", b'\n  "checksum": "'
_UNSEALED = "0" * 32

#: Written data is flushed and dropped from the page cache this often: a build leaves the machine's
#: cache alone, and the final flush is short.
_FLUSH_BYTES = 32 * 1024 * 1024


def partial_name(path: Path) -> Path:
    """Where the file lies until it is whole."""
    return path.with_name(f".{path.name}.partial")


def journal_name(path: Path) -> Path:
    """Where the journal of a file lies that is changed in steps; only HDF5 stores have one."""
    return path.with_name(f".{path.name}.journal")


@contextlib.contextmanager
def translated(path: Path, doing: str) -> Iterator[None]:
    """Turn the system's refusals into errors that say what to do."""
    try:
        yield
    except (OSError, RuntimeError) as caught:
        error = _system_error(caught)
        if error is None:
            raise
        raise ResourceError.of_system(error, f"{doing} {path}") from error


def _system_error(error: OSError | RuntimeError) -> OSError | None:
    """The refusal behind an error: h5py's RuntimeError says it where closing a file fails."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"errno = (\d+)", str(error))
    return OSError(int(code[1]), str(error)) if code else None


def as_bytes(data: AnyArray | bytes | memoryview) -> memoryview:
    """The bytes of a buffer or of a C-contiguous array, not copied."""
    if isinstance(data, bytes | memoryview):
        return memoryview(data).cast("B")
    return data.reshape(-1).view(np.uint8).data


class BlockHash:
    """XXH3-128 of each ``CHECK_BYTES`` of what goes by."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hash = xxhash.xxh3_128()
        self._hashed = 0

    def update(self, view: memoryview) -> None:
        """Take the next bytes."""
        while len(view):
            take = min(len(view), CHECK_BYTES - self._hashed)
            self._hash.update(view[:take])
            self._hashed += take
            view = view[take:]
            if self._hashed == CHECK_BYTES:
                self._done.append(self._hash.hexdigest())
                self._hash, self._hashed = xxhash.xxh3_128(), 0

    def digests(self) -> list[str]:
        """One for each block so far, the last over what is left; hexadecimal."""
        return [*self._done, self._hash.hexdigest()] if self._hashed else list(self._done)


class DurableFile:
    """A file in the making: written front to back, checksummed on the way, published by ``commit``.

    As a context manager it commits when the block ends well and removes the temporary file when it
    does not.

    Parameters
    ----------
    path : Path
        Where the file shall be.
    size : int, optional
        Its final size where known: the space is taken up front, so that a full disk says so before
        the work and not in the middle of it.
    """

    def __init__(self, path: Path, *, size: int | None = None) -> None:
        self.path = path
        self.written = 0
        self._hash = BlockHash()
        self._flushed = 0
        self._partial: Path | None = partial_name(path)
        with translated(path, "creating"):
            self._fd = disk.open_file(self._partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if size:
                try:
                    disk.allocate(self._fd, self._partial, size)
                except BaseException:
                    self.abandon()
                    raise

    def write(self, data: AnyArray | bytes | memoryview) -> None:
        """Append the bytes of a buffer or of a C-contiguous array."""
        view = as_bytes(data)
        self._hash.update(view)
        with translated(self.path, "writing"):
            disk.write(self._fd, partial_name(self.path), view)
            self.written += len(view)
            if self.written - self._flushed >= _FLUSH_BYTES:
                self._flush()

    def _flush(self) -> None:
        disk.sync(self._fd, partial_name(self.path), data_only=True)
        drop_cached(self._fd, self._flushed, self.written - self._flushed)
        self._flushed = self.written

    def checksums(self) -> list[str]:
        """XXH3-128 of each ``CHECK_BYTES`` written so far, the last over what is left; hexadecimal."""
        return self._hash.digests()

    def commit(self) -> None:
        """Flush and publish under the final name. Where that fails, nothing is left."""
        if self._partial is None:
            raise ValueError(f"{self.path} was published or abandoned before")
        try:
            with translated(self.path, "publishing"):
                disk.truncate(self._fd, self._partial, self.written)
                disk.sync(self._fd, self._partial)
                drop_cached(self._fd)
                self._close()
                disk.rename(self._partial, self.path)
                self._partial = None
                sync_directory(self.path.parent)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Remove what was written and not published. May be called twice."""
        self._close()
        partial, self._partial = self._partial, None
        if partial is not None:
            with contextlib.suppress(OSError):  # the next run writes over it
                disk.remove(partial)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> DurableFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.abandon()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file durably, replacing what was there."""
    with DurableFile(path) as file:
        file.write(data)


def write_array(path: Path, array: AnyArray) -> list[str]:
    """Write an array durably as ``.npy``, replacing what was there; its checksums."""
    with DurableFile(path) as file:
        file.write(npy_head(array.shape, array.dtype))
        file.write(np.ascontiguousarray(array))
        return file.checksums()


def npy_head(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """What a ``.npy`` file of such an array in C order begins with."""
    head = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, described)
    return head.getvalue()


def write_json(path: Path, record: Any) -> None:
    """Write JSON durably: sorted keys, two spaces, so that equal records are equal bytes."""
    write_bytes(path, _dumped(record))


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record durably, with its own checksum under ``checksum``: what ``read_json`` then sees to.

    That is the XXH3-128 of the file with 32 zeros in its place.
    """
    data = _dumped({**record, _SEAL: _UNSEALED})
    at = _seal(data)
    if at is None:  # it is there: it was just put there
        raise ValueError(f"{path}: no place for its checksum")
    write_bytes(path, data[: at[0]] + xxhash.xxh3_128_hexdigest(data).encode() + data[at[1] :])


def _dumped(record: Any) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _seal(data: bytes) -> tuple[int, int] | None:
    """From where to where the checksum of a record stands in its file."""
    begin = data.find(_SEALED) + len(_SEALED)
    return None if begin < len(_SEALED) else (begin, begin + len(_UNSEALED))


def read_json(path: Path, *, what: str, sealed: bool = True) -> dict[str, Any]:
    """Read a record that ``write_sealed`` or ``write_json`` wrote, without its checksum.

    Parameters
    ----------
    path : Path
    what : str
        Names the record for the reader of an error.
    sealed : bool
        Whether to see to its checksum, where it has one; else the caller calls ``check_seal``.

    Raises
    ------
    IndexDirError
        When the file is missing, unreadable, not a JSON object, or not what its checksum says.
    """
    data = _read_record(path, what)
    try:
        record = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise IndexDirError(
            f"{what} is damaged: {path} is not JSON ({error})", kind="index-damaged"
        ) from error
    if not isinstance(record, dict):
        raise IndexDirError(f"{what} is damaged: {path} does not hold a JSON object", kind="index-damaged")
    if sealed:
        _check_seal(path, what, data, record)
    record.pop(_SEAL, None)
    return record


def check_seal(path: Path, *, what: str) -> bool:
    """See that a record is what its checksum says; whether it has one.

    Raises
    ------
    IndexDirError
        As ``read_json``.
    """
    data = _read_record(path, what)
    return _check_seal(path, what, data, json.loads(data))


def _read_record(path: Path, what: str) -> bytes:
    try:
        data = disk.read_bytes(path, most=_RECORD_BYTES)
    except FileNotFoundError:
        raise IndexDirError(f"{what} is missing: {path}", kind="index-missing") from None
    except OSError as error:
        ResourceError.raise_if_lacking(error, f"reading {path}")
        raise IndexDirError(
            f"{what} cannot be read: {path}: {error.strerror}", kind="index-unreadable"
        ) from error
    if len(data) > _RECORD_BYTES:
        raise IndexDirError(f"{what} is damaged: {path} is longer than any record", kind="index-damaged")
    return data


def _check_seal(path: Path, what: str, data: bytes, record: Mapping[str, Any]) -> bool:
    if _SEAL not in record:
        return False
    at = _seal(data)
    if at is not None:
        bare = data[: at[0]] + _UNSEALED.encode() + data[at[1] :]
        if xxhash.xxh3_128_hexdigest(bare).encode() == data[at[0] : at[1]]:
            return True
    raise IndexDirError(
        f"{what} is damaged: {path} is not what its checksum says",
        kind="index-damaged",
        hint="Copy the directory anew; `ooc verify` says what else is damaged.",
    )


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def make_directory(path: Path) -> None:
    """Make a directory, its parents as needed, and make that durable."""
    with translated(path, "creating"):
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for directory in reversed(missing):
            disk.make_directory(directory)
            sync_directory(directory.parent)


def sync_tree(path: Path) -> None:
    """Make durable what another library wrote below a directory."""
    with translated(path, "writing"):
        for directory, _, names in os.walk(path, topdown=False):
            for name in names:
                sync_file(Path(directory, name))
            sync_directory(Path(directory))


def sync_file(path: Path) -> None:
    """Make durable what another library wrote into a file."""
    fd = disk.open_file(path, os.O_RDONLY)
    try:
        disk.sync(fd, path)
    finally:
        os.close(fd)


def rename(source: Path, target: Path) -> None:
    """Publish a finished file or directory under another name on the same file system."""
    with translated(target, "publishing"):
        disk.rename(source, target)
        sync_directory(target.parent)
        if source.parent != target.parent:
            sync_directory(source.parent)


def replace(source: Path, target: Path) -> None:
    """Publish a finished file or directory in place of whatever has its name, file or directory.

    No directory takes the place of another in one step: that one is moved out of the way first. A process
    that is killed leaves it whole, or the new one, or for a moment neither under that name, which
    ``settle_replaced`` sets right.
    """
    aside = _aside(target)
    settle_replaced(target)
    if os.path.lexists(target) and (source.is_dir() or (target.is_dir() and not target.is_symlink())):
        rename(target, aside)
    rename(source, target)
    settle_replaced(target)


def settle_replaced(target: Path) -> None:
    """Remove what ``replace`` moved out of the way, or put it back where nothing took its place."""
    aside = _aside(target)
    if not os.path.lexists(aside):
        return
    if not os.path.lexists(target):
        rename(aside, target)
    elif aside.is_dir() and not aside.is_symlink():
        remove_tree(aside)
    else:
        remove_file(aside)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it; one that is not there is fine."""
    with translated(path, "removing"):
        if path.exists():
            _remove_below(path)
            sync_directory(path.parent)


def _remove_below(path: Path) -> None:
    with os.scandir(path) as entries:
        found = sorted((entry.is_dir(follow_symlinks=False), entry.name) for entry in entries)
    for is_directory, name in found:
        with contextlib.suppress(FileNotFoundError):
            _remove_below(path / name) if is_directory else disk.remove(path / name)
    disk.remove_directory(path)


def remove_file(path: Path) -> None:
    """Remove a file and make that durable; one that is not there is fine."""
    remove_files([path])


def remove_files(paths: Iterable[Path]) -> int:
    """Remove files, as far as they are there; bytes that were freed."""
    freed, directories = 0, set()
    for path in list(paths):
        with translated(path, "removing"), contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            disk.remove(path)
            freed += size
            directories.add(path.parent)
    for directory in directories:
        with translated(directory, "removing files in"):
            sync_directory(directory)
    return freed


def block_checksums(path: Path) -> list[str]:
    """XXH3-128 of each ``CHECK_BYTES`` of a file, as ``DurableFile.checksums`` gave them."""
    digest = BlockHash()
    with translated(path, "reading"), path.open("rb") as file:
        while piece := disk.step("read", path, file.read, 1 << 20):
            digest.update(memoryview(piece))
    return digest.digests()


class RowsFile:
    """A file of known size written in place, any part at any time, made durable by ``flush``.

    For data that is written on the way to something else and recorded by it: what was flushed
    before a record was written is there whenever the record is. Opening it again goes on with what
    is there. Safe from several threads; and from several processes, if only one at a time opens it.

    Parameters
    ----------
    path : Path
        The file; ``size`` bytes after ``header``.
    header : bytes
        What it begins with.
    """

    def __init__(self, path: Path, header: bytes, size: int) -> None:
        self.path = path
        self._begin = len(header)
        with translated(path, "creating"):
            self._fd = disk.open_file(path, os.O_RDWR | os.O_CREAT)
            try:
                # Where the C library makes up for a file system that cannot preallocate, it writes
                # into the file: that must not happen while another process writes rows there.
                if os.fstat(self._fd).st_size != self._begin + size:
                    disk.allocate(self._fd, path, self._begin + size)
                disk.write(self._fd, path, memoryview(header), 0)
                # What is recorded of its rows counts on the file being there.
                sync_directory(path.parent)
            except BaseException:
                self.close()
                raise

    def write(self, offset: int, data: AnyArray) -> None:
        """Write a C-contiguous array ``offset`` bytes after the header."""
        with translated(self.path, "writing"):
            disk.write(self._fd, self.path, as_bytes(data), self._begin + offset)

    def flush(self, *, keep: bool = False) -> None:
        """Make all that was written durable; ``keep`` it in the page cache where it is read again soon."""
        with translated(self.path, "writing"):
            disk.sync(self._fd, self.path)
            if not keep:
                drop_cached(self._fd)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
