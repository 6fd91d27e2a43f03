"""An HDF5 file that is changed in steps which happen whole or not at all.

HDF5 itself has no such steps: a process killed while the library writes its metadata, also in its
single-writer-multiple-reader mode, can leave a file that does not open. Here the library writes
through a file object. What it puts beyond the recorded end of the file goes there at once: nothing
refers to it yet. What it writes over waits for ``commit``, which flushes the new parts, makes a
journal of the overwritten ones durable (``.NAME.journal``, old and new bytes), and then overwrites.
A reader that finds a journal reads the file as if it were applied; the next writer applies it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py

from ooc import disk
from ooc.durable import journal_name, remove_file, write_bytes
from ooc.errors import StoreError
from ooc.mapping import drop_cached

__all__ = ["JournaledFile", "apply_journal", "open_for_reading", "see_read"]

_MAGIC = b"ooc-hdf5-journal-1\n"

_Patch = tuple[int, bytes, bytes]


class JournaledFile:
    """What ``h5py.File`` takes as a file object; changes are kept until ``commit``.

    Parameters
    ----------
    path : Path
        An existing file, without a pending journal.

    Notes
    -----
    What HDF5 calls must not raise: h5py does not survive it. An error is kept, what could not be read is 0,
    nothing more is written, and ``commit`` and ``told`` raise it.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self._fd = disk.open_file(path, os.O_RDWR if writable else os.O_RDONLY)
        self._recorded = self._end = os.fstat(self._fd).st_size
        self._at = 0
        self._staged: list[tuple[int, bytes]] = []
        self._error: BaseException | None = None
        #: First and last byte (excluded) of a raw chunk whose recorded rows are only written again.
        self.same = (0, 0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        data = bytearray(size)
        self.readinto(memoryview(data))
        return bytes(data)

    def readinto(self, buffer: memoryview) -> int:
        view = memoryview(buffer).cast("B")
        begin, end = self._at, self._at + len(view)
        data = b""
        try:
            data = disk.read_at(self._fd, self.path, len(view), begin)
        except BaseException as error:
            self._error = self._error or error
        view[:] = data.ljust(len(view), b"\0")
        for offset, piece in self._staged:
            first, last = max(begin, offset), min(end, offset + len(piece))
            if first < last:
                view[first - begin : last - begin] = piece[first - offset : last - offset]
        self._at = end
        return len(view)

    def write(self, data: memoryview) -> int:
        view = memoryview(data).cast("B")
        begin, end = self._at, self._at + len(view)
        within = self.same[0] <= begin and end <= self.same[1]
        old = 0 if within else min(max(self._recorded - begin, 0), len(view))
        if self._error is None:
            try:
                if old:
                    self._staged.append((begin, bytes(view[:old])))
                self._write_at(begin + old, view[old:])
            except BaseException as error:
                self._error = error
        self._at = end
        self._end = max(self._end, end)
        return len(view)

    def truncate(self, size: int) -> int:
        self._end = size
        return size

    def flush(self) -> None:
        """HDF5's own flush says nothing about the disk: ``commit`` does."""

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """HDF5 reads or writes: what it makes of an error that it was not told of is told as that error."""
        try:
            yield
        except Exception as error:
            if self._error is not None and self._error is not error:
                raise self._error from error
            raise
        self.see_error()

    def see_error(self) -> None:
        """Raise the first error of reading or writing, if there was one."""
        if self._error is not None:
            raise self._error

    def commit(self) -> None:
        """Make what was written since the last time durable, all of it or none."""
        self.see_error()
        if os.fstat(self._fd).st_size < self._end:
            disk.truncate(self._fd, self.path, self._end)
        disk.sync(self._fd, self.path)
        if self._staged:
            patches = []
            for offset, piece in self._staged:
                patches.append((offset, disk.read_at(self._fd, self.path, len(piece), offset), piece))
            write_bytes(journal_name(self.path), _encode(patches))
            for offset, piece in self._staged:
                self._write_at(offset, memoryview(piece))
            disk.sync(self._fd, self.path)
            self._staged = []
        drop_cached(self._fd)
        self._recorded = max(self._end, self._recorded)

    def patch(self, patches: list[_Patch]) -> None:
        """Read as if the patches were in the file."""
        self._staged = [(offset, new) for offset, _, new in patches]

    def close(self, *, settled: bool = False) -> None:
        """Close; where everything is committed (``settled``) the journal goes."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        # HDF5 may keep this file for as long as the process lives. The error knows who was writing, and
        # by them everything they had open: another one stops what HDF5 may still want to write.
        self._error = OSError(errno.EBADF, "closed", str(self.path))
        if settled:
            remove_file(journal_name(self.path))

    def _write_at(self, offset: int, data: memoryview) -> None:
        disk.write(self._fd, self.path, data, offset)


def _encode(patches: list[_Patch]) -> bytes:
    parts = [_MAGIC]
    for offset, old, new in patches:
        parts += [struct.pack("<QQ", offset, len(new)), old, new]
    return b"".join(parts)


def _pending(path: Path) -> list[_Patch]:
    """The patches of a journal that belongs to the file as it is, in order; empty where there is none.

    It belongs where every byte it is about is the old one or the new one: a file that was replaced
    since has others, and its journal is of no concern.
    """
    try:
        if not stat.S_ISREG(journal_name(path).lstat().st_mode):
            return []  # a link or a pipe is not what a commit writes
        data = disk.read_bytes(journal_name(path))
    except FileNotFoundError:
        return []  # and nothing else: a journal that cannot be read now is needed all the more
    if not data.startswith(_MAGIC):
        return []
    patches = _decode(data, journal_name(path))
    allowed: dict[int, set[int]] = {}
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        for offset, old, new in patches:
            file.seek(offset)
            found = file.read(len(new))
            if offset + len(new) > size:
                return []
            if found not in (old, new):
                for i, byte in enumerate(found):
                    if byte not in (old[i], new[i]):
                        allowed.setdefault(offset + i, set()).add(byte)
    # A byte that is patched twice may be what another patch made of it.
    for place, bytes_ in allowed.items():
        known = {new[place - o] for o, _, new in patches if o <= place < o + len(new)}
        if not bytes_ <= known:
            return []
    return patches


def _decode(data: bytes, journal: Path) -> list[_Patch]:
    patches: list[_Patch] = []
    at = len(_MAGIC)
    while at < len(data):
        offset, length = struct.unpack_from("<QQ", data, at) if at + 16 <= len(data) else (0, len(data))
        at += 16
        if offset >= 1 << 63 or at + 2 * length > len(data):
            raise StoreError(
                f"{journal}, the journal of a commit that did not come to its end, is damaged",
                kind="store-format",
                hint="Where the file itself is known to be whole, remove the journal.",
            )
        patches.append((offset, data[at : at + length], data[at + length : at + 2 * length]))
        at += 2 * length
    return patches


def apply_journal(path: Path) -> None:
    """Finish the commit that a killed writer had begun. The caller holds the lock."""
    patches = _pending(path)
    if patches:
        fd = disk.open_file(path, os.O_RDWR)
        try:
            for offset, _, new in patches:
                disk.write(fd, path, memoryview(new), offset)
            disk.sync(fd, path)
        finally:
            os.close(fd)
    remove_file(journal_name(path))


class _PatchedFile(h5py.File):  # type: ignore[misc]
    """A file with a commit that a killed writer had begun, as it will be when that is finished."""

    def __init__(self, path: Path, patches: list[_Patch]) -> None:
        self.under = JournaledFile(path, writable=False)
        self.under.patch(patches)
        try:
            with self.under.told():
                super().__init__(self.under, "r")
        except BaseException:
            self.under.close()
            raise

    def close(self) -> None:
        """Close it, and what it reads through."""
        super().close()
        self.under.close()


def open_for_reading(path: Path) -> h5py.File:
    """The file as its last commit left it. Nothing is changed. What was read is to be seen by ``see_read``.

    Raises
    ------
    OSError
        When it is not readable HDF5.
    """
    patches = _pending(path)
    return _PatchedFile(path, patches) if patches else h5py.File(path, "r")


def see_read(file: h5py.File | None) -> None:
    """Raise the OSError of what could not be read of a file, where HDF5 was not told of it."""
    if isinstance(file, _PatchedFile):
        file.under.see_error()
