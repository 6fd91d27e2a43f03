"""Where an HDF5 file leads: links, raw data and parts of virtual datasets in other files.

The library follows them wherever they go. So they are followed here first, by their names alone.
Formats: https://support.hdfgroup.org/documentation/hdf5/latest/_h5_l__u_g.html (external links),
.../_l_b_ext_dset.html (external raw data), .../_v_d_s_t_n.html (virtual datasets).
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

import h5py

from ooc.errors import ResourceError, StoreError
from ooc.stores.inside import refuse_outside

__all__ = ["refuse_leading_outside"]

#: Links that are followed one after the other; the library follows 16.
_MOST_LINKS = 16
#: Files that refer to files.
_MOST_FILES = 8

#: Where the name of a part of a virtual dataset has the part's number.
_NUMBERED = re.compile(r"%\d*b")


def refuse_leading_outside(path: Path, file: h5py.File, name: str) -> None:
    """See that a dataset, and all that it refers to, lies in the directory of the file.

    Parameters
    ----------
    path : Path
        The file as the user named it.
    file : h5py.File
    name : str
        The dataset. It need not be there.

    Raises
    ------
    StoreError
        ``store-outside``; ``store-format`` where files refer to each other without end.
    """
    _Walk(path).see(file, path, name, 0)


class _Walk:
    def __init__(self, root: Path) -> None:
        self._root = root
        #: Names that were followed to their ends, and those that are being followed.
        self._seen: set[tuple[str, str]] = set()
        self._within: set[tuple[str, str]] = set()

    def see(self, file: h5py.File, path: Path, name: str, depth: int) -> None:
        """Follow a name in a file that lies at ``path``."""
        key = (os.path.realpath(path), name)
        if key in self._within:
            raise StoreError(
                f"{self._root}: {name} in {path} refers to itself",
                kind="store-format",
                hint="Its virtual datasets go round in a circle, which the library follows until it crashes.",
            )
        if key not in self._seen:
            self._within.add(key)
            self._walk(file, path, name, depth)
            self._within.remove(key)
            self._seen.add(key)

    def _walk(self, file: h5py.File, path: Path, name: str, depth: int) -> None:
        parts, group, links = _parts(name), file["/"], 0
        while parts:
            part = parts.pop(0)
            link = _link(group, part) if isinstance(group, h5py.Group) else None
            if isinstance(link, h5py.SoftLink):
                links += 1
                if links > _MOST_LINKS:
                    return  # the library refuses it
                parts = _parts(link.path) + parts
                group = file["/"] if link.path.startswith("/") else group
            elif isinstance(link, h5py.ExternalLink):
                self._follow(path, link.filename, "/".join([link.path, *parts]), depth)
                return
            elif link is None:
                return  # whoever opens it says so
            else:
                group = group.get(part)
        if isinstance(group, h5py.Dataset):
            self._dataset(file, path, group, depth)

    def _dataset(self, file: h5py.File, path: Path, dataset: h5py.Dataset, depth: int) -> None:
        for name, _, _ in dataset.external or ():
            refuse_outside(Path(name).absolute(), self._root, of=f"{path}::{dataset.name}", itself=True)
        if not dataset.is_virtual:
            return
        for _, other, inner, _ in dataset.virtual_sources():
            if other == ".":
                self._see_numbered(file, path, inner, depth)
            else:
                self._follow(path, other, inner, depth)

    def _follow(self, path: Path, name: str, inner: str, depth: int) -> None:
        """Follow a name in another file, where the library finds one."""
        if depth == _MOST_FILES:
            raise StoreError(
                f"{self._root} refers to files that refer to others, more than {_MOST_FILES} deep",
                kind="store-format",
            )
        last = Path(name).name  # where nothing is at an absolute path, the library looks nearby
        places = [path.parent / name, path.parent / last, Path.cwd() / last, path.resolve().parent / last]
        if not Path(name).is_absolute():
            places = [path.parent / name, Path.cwd() / name, path.resolve().parent / name]
        for place in places:
            if _NUMBERED.search(name):
                for one in sorted(glob.glob(_NUMBERED.sub("*", glob.escape(str(place))))):  # noqa: PTH207
                    self._other(Path(one), inner, depth)
            elif os.path.lexists(place) and self._other(place, inner, depth):
                return

    def _other(self, path: Path, name: str, depth: int) -> bool:
        """Follow a name in another file, which may be none of HDF5; whether it is one."""
        refuse_outside(path, self._root, of=str(self._root), itself=True)
        try:
            with h5py.File(path, "r") as other:
                self._see_numbered(other, path, name, depth + 1)
        except OSError as error:
            ResourceError.raise_if_lacking(error, f"opening {path}")
            return False
        return True

    def _see_numbered(self, file: h5py.File, path: Path, name: str, depth: int) -> None:
        """Follow a name that may stand for numbered ones, in its last part: each of these."""
        place, _, last = name.rpartition("/")
        if _NUMBERED.search(place):
            raise StoreError(f"{path}: groups of a virtual dataset are numbered", kind="store-outside")
        self.see(file, path, place, depth)
        group = file.get(place or "/") if _NUMBERED.search(last) else None
        for one in group if isinstance(group, h5py.Group) else [last]:
            self.see(file, path, f"{place}/{one}", depth)


def _link(group: h5py.Group, name: str) -> h5py.SoftLink | h5py.ExternalLink | h5py.HardLink | None:
    """What is under a name, without going there, as ``Group.get`` does for links to other files."""
    links, raw = group.id.links, name.encode("utf-8", "surrogateescape")
    if not links.exists(raw):
        return None
    kind = links.get_info(raw).type
    if kind == h5py.h5l.TYPE_SOFT:
        return h5py.SoftLink(links.get_val(raw).decode("utf-8", "surrogateescape"))
    if kind == h5py.h5l.TYPE_EXTERNAL:
        file, inner = links.get_val(raw)
        return h5py.ExternalLink(os.fsdecode(file), inner.decode("utf-8", "surrogateescape"))
    return h5py.HardLink()


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]
