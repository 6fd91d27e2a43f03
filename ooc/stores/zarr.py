"""Zarr arrays, v2 and v3: mapped where they are local and uncompressed, else decoded by zarr."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ooc.errors import MissingExtraError, OocError, ResourceError, StoreError
from ooc.mapping import drop_file
from ooc.stores.base import Store, check_dtype, check_shape, even_starts
from ooc.stores.choose import Arrays, choose_array, refuse_missing
from ooc.stores.chunked import ChunkedStore
from ooc.stores.inside import refuse_outside
from ooc.stores.zarr_layout import is_array, map_array
from ooc.types import AnyArray
from ooc.units import MIB

if TYPE_CHECKING:
    import zarr

__all__ = ["ZarrStore", "open_array", "open_url", "open_zarr"]

#: Chunks of about this many bytes together are asked of zarr in one call, which decodes them in
#: several threads.
_BATCH_BYTES = 16 * MIB


class ZarrStore(ChunkedStore):
    """A Zarr array decoded by zarr; the chunks of a sharded array are the inner ones."""

    def __init__(self, array: zarr.Array[Any], *, uri: str) -> None:
        shape = check_shape(array.shape, uri)
        super().__init__(
            uri=uri,
            format="zarr",
            shape=shape,
            dtype=check_dtype(array.dtype, uri),
            chunk_starts=even_starts(shape[0], min(array.chunks[0], shape[0]), uri),
        )
        self._array = array

    def forget(self, start: int, stop: int) -> None:
        """Let the page cache let go of the files with rows ``start`` to ``stop``, where they are local."""
        self._check_span(start, stop)
        root = getattr(self._array.store, "root", None)
        if not isinstance(root, Path) or start == stop:
            return
        rows, cols = self._array.shards or self._array.chunks
        for i in range(start // rows, (stop - 1) // rows + 1):
            for j in range(-(-self.d // cols)):
                drop_file(root / self._array.path / self._array.metadata.encode_chunk_key((i, j)))

    def _decode(self, index: int) -> AnyArray:
        return self._rows(index, index + 1)

    def _decode_into(self, first: int, last: int, out: AnyArray) -> None:
        starts = self.chunk_starts - self.chunk_starts[first]
        batch = max(_BATCH_BYTES // self.chunk_bytes, 1)
        for i in range(first, last, batch):
            j = min(i + batch, last)
            out[starts[i] : starts[j]] = self._rows(i, j)

    def _rows(self, first: int, last: int) -> AnyArray:
        start, stop = int(self.chunk_starts[first]), int(self.chunk_starts[last])
        try:
            return np.asarray(self._array[start:stop])
        except OocError:
            raise
        except Exception as error:  # the codecs and file systems beneath raise what they like
            ResourceError.raise_if_lacking(error, f"reading {self.uri}")
            raise ResourceError(
                f"{self.uri}: rows {start} to {stop} cannot be read: {type(error).__name__}: {error}",
                kind="store-unreadable",
                hint="A chunk may be damaged or out of reach.",
            ) from error


def open_zarr(path: Path, dataset: str | None = None) -> Store:
    """Open a Zarr array in a directory or zip file, or one within a group there.

    Parameters
    ----------
    path : Path
        The root of the array or group, absolute.
    dataset : str, optional
        The array's name in the group; not needed where exactly one array can be vectors.

    Returns
    -------
    Store
        A ``MappedStore`` where every chunk is raw numbers in a local file, else a ``ZarrStore``.

    Raises
    ------
    StoreError
        When it is not Zarr, or the array is not there, ambiguous, cut off, or not vectors.
    """
    name = (dataset or "").strip("/")
    if path.is_dir():
        if not name and not is_array(path):
            name = choose_array(str(path), None, lambda: _arrays(_open_root(path)), what="array").strip("/")
        node = path / name
        refuse_outside(node, path, of=str(path))
        uri = f"{path}::/{name}" if name else str(path)
        if not is_array(node):
            refuse_missing(str(path), f"/{name}", _arrays(_open_root(path)), what="array")
        mapped = map_array(node, uri, path)
        if mapped is not None:
            return mapped
    return _open_within(_open_root(path), str(path), dataset=name or None)


def open_url(url: str, dataset: str | None = None) -> ZarrStore:
    """Open a Zarr array through fsspec.

    Raises
    ------
    StoreError
        ``store-missing`` when there is no Zarr at the URL or it is out of reach; and as ``open_zarr``.
    MissingExtraError
        When fsspec, or its package for this kind of URL, is not installed.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise MissingExtraError(
            f"{url} needs the package fsspec, which is not installed", hint="pip install 'ooc[remote]'"
        )
    with _translated(url):
        import zarr

        root = zarr.open(url, mode="r")
    return _open_within(root, url, dataset=(dataset or "").strip("/") or None)


def open_array(array: zarr.Array[Any]) -> Store:
    """A ``zarr.Array`` that is open already: by its path where it is local, else as it is."""
    import zarr

    if isinstance(array.store, zarr.storage.LocalStore):
        root = Path(array.store.root).absolute()
        return open_zarr(root, array.path or None)
    return ZarrStore(array, uri="")


def _open_root(path: Path) -> Any:
    with _translated(str(path)):
        import zarr

        if path.is_file():
            return zarr.open(zarr.storage.ZipStore(path, mode="r"), mode="r")
        from ooc.stores.zarr_inside import InsideStore

        return zarr.open(InsideStore(path, read_only=True), mode="r")


def _open_within(root: Any, where: str, *, dataset: str | None) -> ZarrStore:
    """The array that ``root`` is, or one in it."""
    import zarr

    with _translated(where):
        if isinstance(root, zarr.Array):
            if dataset is not None:
                refuse_missing(where, f"/{dataset}", _arrays(root), what="array")
            return ZarrStore(root, uri=where)
        name = choose_array(where, dataset, lambda: _arrays(root), what="array").strip("/")
        array = root.get(name)
        if not isinstance(array, zarr.Array):
            refuse_missing(where, f"/{name}", _arrays(root), what="array")
        return ZarrStore(array, uri=f"{where}::/{name}")


def _arrays(root: Any) -> Arrays:
    """All arrays in a group, by name with a slash before it."""
    import zarr

    if isinstance(root, zarr.Array):
        return {"/": (root.shape, root.dtype.name)}
    return {
        f"/{name}": (tuple(item.shape), item.dtype.name)
        for name, item in root.members(max_depth=None)
        if isinstance(item, zarr.Array)
    }


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Errors of opening, whatever library they come from, as errors of the store."""
    try:
        yield
    except OocError:
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{where} cannot be opened: {error}",
            hint="pip install 'ooc[remote]'; some kinds of URL need a package more (s3fs, gcsfs, adlfs).",
        ) from error
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no Zarr array or group at {where}",
            kind="store-missing",
            hint="From a URL, Zarr alone is read; copy a store of another format here first.",
        ) from error
    except OSError as error:
        raise ResourceError(f"{where} cannot be reached: {error}", kind="store-unreadable") from error
    except Exception as error:  # zarr, fsspec and what is beneath raise what they like
        ResourceError.raise_if_lacking(error, f"opening {where}")
        raise StoreError(
            f"{where} cannot be opened as Zarr: {type(error).__name__}: {error}", kind="store-format"
        ) from error
