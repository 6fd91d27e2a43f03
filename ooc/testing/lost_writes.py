"""A disk that loses power: what was not synced is lost, torn, or there in part.

``Disk`` watches the steps of a run (``ooc.disk``) and keeps, beside the files as they are, what a disk is
bound to have of them: the bytes of a file when it was last synced, the names in a directory when that was
last synced. Before each step it can say what a crash there may leave: an ``Image`` of the directory. Much
as the crash tests of SQLite and RocksDB do; names change whole, as on file systems with a journal, and
bytes by the sector.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ooc.testing.faults import point

__all__ = ["VARIANTS", "Disk", "Image", "Variant"]

#: Of what was not synced the disk has: nothing; all names, and nothing of the files; some names and sectors.
Variant = Literal["nothing", "names", "some"]
VARIANTS: tuple[Variant, ...] = ("nothing", "names", "some")

_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Image:
    """What a crash before a step may leave.

    Attributes
    ----------
    at : int
        Number of the step, ``name`` which it is, ``variant`` what of the unsynced is there.
    tree : dict
        By path below the directory that was watched: the bytes of a file, None of a directory.
    """

    at: int
    name: str
    variant: Variant
    tree: dict[str, bytes | None]

    @property
    def digest(self) -> str:
        """Of equal trees the same."""
        digest = hashlib.sha256()
        for path, data in sorted(self.tree.items()):
            digest.update(f"{path}\0{data is None}\0{len(data or b'')}\0".encode())
            digest.update(data or b"")
        return digest.hexdigest()

    def restore(self, root: Path) -> None:
        """Make ``root`` be as the image has it."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        for path, data in sorted(self.tree.items()):
            if data is None:
                (root / path).mkdir(exist_ok=True)
            else:
                (root / path).write_bytes(data)


@dataclass(slots=True)
class _File:
    """A file, by its inode: ``fd`` keeps that from being given to another."""

    fd: int
    synced: bytes
    dirty: bool = False

    def now(self) -> bytes:
        size = os.fstat(self.fd).st_size
        return os.pread(self.fd, size, 0)


@dataclass(slots=True)
class _Directory:
    fd: int
    synced: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)


class Disk:
    """Watches what is done below ``root``, and makes images of what crashes leave.

    Parameters
    ----------
    root : Path
        All that is there at the beginning is taken for synced.
    image : callable
        Is handed, before each step, a function that makes the image of a variant.
    seed : int
        Of what is there by chance.
    """

    def __init__(
        self,
        root: Path,
        image: Callable[[int, Callable[[Variant], Image]], None],
        seed: int = 0,
    ) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._root, self._image = root, image
        self._chance = random.Random(seed)
        self._lock = threading.RLock()
        self._count = 0
        self._files: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {}
        #: Changes of names that were not synced: directory, name and inode of each, 0 where it goes.
        self._changes: list[list[tuple[int, str, int]]] = []
        self._look(root, synced=True)

    def __call__(self, operation: str, path: Path, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if operation in ("open", "read"):
            return call(*args)
        with self._lock:
            at, self._count = self._count, self._count + 1
            name = point(operation, path)
            self._image(at, lambda variant: Image(at, name, variant, self._tree(variant)))
            try:
                return call(*args)
            finally:
                self._note(operation, path, args)

    def finish(self) -> None:
        """Make the image of a crash after the last step, and close what was kept open."""
        self._image(self._count, lambda variant: Image(self._count, "end", variant, self._tree(variant)))
        opened = [file.fd for file in self._files.values()]
        for fd in opened + [directory.fd for directory in self._directories.values()]:
            os.close(fd)

    def _note(self, operation: str, path: Path, args: tuple[Any, ...]) -> None:
        """Take in what a step has done."""
        if operation == "sync":
            node = os.fstat(args[0]).st_ino
            if node in self._files:
                file = self._files[node]
                file.synced, file.dirty = file.now(), False
        elif operation == "sync-directory":
            self._sync_directory(path)
        else:
            if operation in ("write", "truncate", "allocate", "create") and args and isinstance(args[0], int):
                node = os.fstat(args[0]).st_ino
                if node in self._files:
                    self._files[node].dirty = True
            # Of a renaming both directories change at once.
            beside = [Path(arg).parent for arg in args if isinstance(arg, Path)]
            changes: list[tuple[int, str, int]] = []
            for directory in dict.fromkeys([path.parent, *beside]):
                changes += self._look(directory)
            if changes:
                self._changes.append(changes)
            if (
                operation in ("write", "create") and path.is_file()
            ):  # by another library, under its own handle
                self._files[path.stat().st_ino].dirty = True

    def _look(self, path: Path, *, synced: bool = False) -> list[tuple[int, str, int]]:
        """See what names a directory has now; what has changed."""
        if self._root not in (path, *path.parents) or not path.is_dir():
            return []
        node = path.stat().st_ino
        if node not in self._directories:
            self._directories[node] = _Directory(os.open(path, os.O_RDONLY))
        directory = self._directories[node]
        found: dict[str, int] = {}
        for entry in os.scandir(path):
            number = found[entry.name] = entry.inode()
            if entry.is_dir(follow_symlinks=False):
                if number not in self._directories:
                    self._look(path / entry.name, synced=synced)
            elif number not in self._files:
                file = self._files[number] = _File(os.open(entry.path, os.O_RDONLY), b"", dirty=not synced)
                file.synced = file.now() if synced else b""
        changes = [(node, name, 0) for name in directory.now if name not in found]
        changes += [
            (node, name, number) for name, number in found.items() if directory.now.get(name) != number
        ]
        directory.now = found
        if synced:
            directory.synced = dict(found)
        return changes

    def _sync_directory(self, path: Path) -> None:
        if self._root not in (path, *path.parents):
            return
        node = path.stat().st_ino
        changes = self._look(path)
        if changes:
            self._changes.append(changes)
        directory = self._directories[node]
        directory.synced = dict(directory.now)
        # A renaming into it is then known in the other directory too: it is one change.
        for changes in self._changes:
            if any(one[0] == node for one in changes):
                for other, name, number in changes:
                    _set(self._directories[other].synced, name, number)
        self._changes = [c for c in self._changes if all(one[0] != node for one in c)]

    def _tree(self, variant: Variant) -> dict[str, bytes | None]:
        names = {node: dict(directory.synced) for node, directory in self._directories.items()}
        for changes in self._changes:
            if variant == "names" or (variant == "some" and self._chance.random() < 0.5):
                for node, name, number in changes:
                    _set(names[node], name, number)
        tree: dict[str, bytes | None] = {}

        def walk(node: int, below: str, seen: tuple[int, ...]) -> None:
            for name, number in names[node].items():
                if number in self._directories:
                    if number not in seen:
                        tree[below + name] = None
                        walk(number, f"{below}{name}/", (*seen, number))
                elif number in self._files:
                    tree[below + name] = self._bytes(self._files[number], variant)

        walk(self._root.stat().st_ino, "", ())
        return tree

    def _bytes(self, file: _File, variant: Variant) -> bytes:
        if variant == "nothing" or not file.dirty:
            return file.synced
        now = file.now()
        if variant == "names":  # the size, as a file system may have it, and none of the bytes
            return file.synced[: len(now)].ljust(len(now), b"\0")
        size = self._chance.choice((len(file.synced), len(now)))
        data = bytearray(file.synced[:size].ljust(size, b"\0"))
        for begin in range(0, size, _SECTOR):
            if self._chance.random() < 0.5:
                end = min(begin + _SECTOR, size)
                data[begin:end] = now[begin:end].ljust(end - begin, b"\0")
        return bytes(data)


def _set(names: dict[str, int], name: str, number: int) -> None:
    if number:
        names[name] = number
    else:
        with contextlib.suppress(KeyError):
            del names[name]
