"""Stores whose bytes lie raw on disk: rows are views of memory-mapped files.

One class serves every layout, because all of them are a regular grid of tiles, each with its rows
at an even distance in one file: a whole npy file is one tile; an fvecs file is one tile with four
bytes between rows; an unfiltered HDF5 dataset has many tiles in one file; an uncompressed Zarr array
has one file a tile. What the bytes mean and where they begin is for the format modules to find out.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ooc.errors import StoreError
from ooc.mapping import PAGE, MappedFile, MapPool
from ooc.stores.base import Store, check_dtype, check_rows, even_starts
from ooc.types import AnyArray, BytesArray, IntArray

__all__ = ["MappedStore", "Tiles", "gather_bytes", "one_tile"]


class Files(Protocol):
    """Names of files by number; a tuple will do."""

    def __getitem__(self, at: int, /) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """Where the bytes of an ``(n, d)`` array lie.

    Attributes
    ----------
    rows, cols : int
        Shape of a tile. The tiles at the lower and right edges may cover less of the array.
    stride : int
        Bytes from one row of a tile to the next; within a row, elements are adjacent.
    files : Files
        The files' absolute names.
    file : (tiles down, tiles across) int64
        Index in ``files`` of the file with each tile; -1 where nothing is stored.
    offset : (tiles down, tiles across) int64
        Where in its file each tile begins, in bytes.
    fill : float
        The value of elements in tiles that are not stored.
    """

    rows: int
    cols: int
    stride: int
    files: Files
    file: IntArray
    offset: IntArray
    fill: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Part of what was asked for: ``at`` says where in the answer (``None``: everywhere, in order)."""

    file: int
    at: IntArray | None
    offsets: IntArray
    col: int


def one_tile(path: Path, n: int, d: int, *, offset: int, stride: int) -> Tiles:
    """Tiles of a file that holds all rows at an even distance."""
    return Tiles(
        rows=n,
        cols=d,
        stride=stride,
        files=(str(path),),
        file=np.zeros((1, 1), np.int64),
        offset=np.full((1, 1), offset, np.int64),
    )


class MappedStore(Store):
    """A store of raw numbers in mapped files.

    Parameters
    ----------
    uri, format : str
        As in ``Store``.
    shape : (n, d)
        Checked by the caller with ``check_shape``.
    dtype : numpy.dtype
        As on disk; either byte order.
    tiles : Tiles
        Where the bytes lie. The caller has made sure that the files are as long as it says.

    Notes
    -----
    The mappings expect access in any order (``MADV_RANDOM``), so that a row costs its own pages and no
    others; sequential reading is as fast as the disk all the same, because ``blocks`` asks for each
    block ahead of its use.
    """

    def __init__(
        self,
        *,
        uri: str,
        format: str,  # noqa: A002 - as the attribute is called
        shape: tuple[int, int],
        dtype: np.dtype[np.generic],
        tiles: Tiles,
    ) -> None:
        self.uri, self.format = uri, format
        self.n, self.d = shape
        self.dtype = check_dtype(dtype, uri)
        self.mapped = True
        self.chunk_starts = even_starts(self.n, tiles.rows, uri)
        self.chunk_bytes = 0
        self._swapped = not dtype.isnative
        self._tiles = tiles
        self._pool: MapPool | None = MapPool(random=True)
        self._owns_pool = True
        #: All rows, where one tile of a file of its own holds them, once they were asked for.
        self._whole: AnyArray | None = None

    def share(self, pool: MapPool) -> None:
        """Take mappings from a pool that several stores use; its owner closes it."""
        self.close()
        self._pool, self._owns_pool = pool, False

    def close(self) -> None:
        """Give the mappings up; arrays that were read stay readable. May be called twice."""
        pool, self._pool, self._whole = self._pool, None, None
        if pool is not None and self._owns_pool:
            pool.close()

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop``: a view where they lie in one tile, else a copy.

        A view of pages that were not asked for with ``will_need`` is brought in page by page as it is
        touched, which is slow.
        """
        self._check_span(start, stop)
        if start == stop:
            return np.empty((0, self.d), self.dtype)
        tiles = self._tiles
        first, last = start // tiles.rows, (stop - 1) // tiles.rows
        if first == last and tiles.file.shape[1] == 1 and tiles.file[first, 0] >= 0:
            view = self._tile(first, 0, start, stop)
            # Unaligned numbers are legal on disk and not in compiled code.
            view = view if view.flags.aligned else view.copy()
            return self._swap(view.copy()) if self._swapped else view
        self.will_need(start, stop)
        out = np.empty((stop - start, self.d), self.dtype)
        for i in range(first, last + 1):
            begin, end = max(start, i * tiles.rows), min(stop, (i + 1) * tiles.rows)
            for j in range(tiles.file.shape[1]):
                part = out[begin - start : end - start, j * tiles.cols : (j + 1) * tiles.cols]
                if tiles.file[i, j] < 0:
                    part[...] = self._fill()
                else:
                    part[...] = self._tile(i, j, begin, end)
        return self._swap(out)

    def take(self, rows: IntArray) -> AnyArray:
        """The rows with the given numbers, ``(len(rows), d)``, as a copy in the order asked for."""
        rows = check_rows(rows, self.n)
        self.will_take(rows)
        return self.gather(rows)

    def will_take(self, rows: IntArray) -> int:
        """Start reading the pages of the given rows, all at once; returns at once how many reads that is."""
        asked = 0
        for piece in self._pieces(check_rows(rows, self.n)):
            if piece.file >= 0:
                offsets = piece.offsets if piece.at is not None else np.sort(piece.offsets)
                asked += self._map(piece.file).will_need_each(offsets, self._width(piece.col))
        return asked

    def gather(self, rows: IntArray) -> AnyArray:
        """As ``take``, for rows that were asked for with ``will_take`` before."""
        rows = check_rows(rows, self.n)
        if len(rows) == 0:
            return np.empty((0, self.d), self.dtype)
        pieces = list(self._pieces(rows))
        if len(pieces) == 1 and pieces[0].at is None and pieces[0].file >= 0:
            gathered = gather_bytes(self._map(pieces[0].file).bytes, pieces[0].offsets, self.row_bytes)
            return self._swap(gathered.view(self.dtype).reshape(len(rows), self.d))
        out = np.empty((len(rows), self.d), self.dtype)
        for piece in pieces:
            begin = piece.col * self._tiles.cols
            width = self._width(piece.col)
            cols = slice(begin, begin + width // self.dtype.itemsize)
            at = slice(None) if piece.at is None else piece.at
            if piece.file < 0:
                out[at, cols] = self._fill()
                continue
            gathered = gather_bytes(self._map(piece.file).bytes, piece.offsets, width)
            out[at, cols] = gathered.view(self.dtype).reshape(len(piece.offsets), -1)
        return self._swap(out)

    def view(self) -> AnyArray | None:
        """All rows as one view, where one tile holds them."""
        if self._whole is not None:
            return self._whole
        if not self._is_one_tile:
            return None
        whole = self._tile(0, 0, 0, self.n)
        if self._owns_pool:  # else its owner may give the mapping up
            self._whole = whole
        return whole

    def line_up(self) -> None:
        """Map the file so that rows are where those of others like it could be: see ``MappedFile``.

        Does nothing where that is so anyway, and for rows that are not compared in their place.
        """
        plain = self.dtype == np.float32 and self._tiles.stride == self.row_bytes
        if self._is_one_tile and self._owns_pool and plain and PAGE % self.row_bytes:
            rows = int(self._tiles.offset[0, 0]), self.row_bytes
            # What was mapped before is not closed: it goes with its last user.
            self._pool, self._whole = MapPool(random=True, rows=rows), None

    @property
    def _is_one_tile(self) -> bool:
        """Whether the rows are evenly spaced in one file, in the byte order of this machine."""
        tiles = self._tiles
        one = tiles.file.shape == (1, 1) and tiles.rows >= self.n and tiles.file[0, 0] >= 0
        return bool(one) and not self._swapped

    def will_need(self, start: int, stop: int) -> None:
        """Start reading rows ``start`` to ``stop``; returns at once."""
        for file, offset, length in self._spans(start, stop):
            self._map(file).will_need(offset, length)

    def forget(self, start: int, stop: int) -> None:
        """Let go of the pages of rows ``start`` to ``stop``, in this process and in the page cache."""
        for file, offset, length in self._spans(start, stop):
            self._map(file).drop(offset, length)

    def _map(self, file: int) -> MappedFile:
        if self._pool is None:
            raise StoreError(f"{self.uri} was closed", kind="store-closed", hint="Open it again.")
        return self._pool.get(_path(self._tiles.files[file]))

    def _width(self, col: int) -> int:
        """Bytes of a row in a tile of this column of tiles."""
        return min(self._tiles.cols, self.d - col * self._tiles.cols) * self.dtype.itemsize

    def _tile(self, i: int, j: int, start: int, stop: int) -> AnyArray:
        """Rows ``start`` to ``stop`` (of the store) of a tile, as a view, in the byte order on disk."""
        tiles = self._tiles
        offset = int(tiles.offset[i, j]) + (start - i * tiles.rows) * tiles.stride
        size = self.dtype.itemsize
        shape = (stop - start, self._width(j) // size)
        buffer = self._map(int(tiles.file[i, j])).bytes
        return np.ndarray(shape, self.dtype, buffer.data, offset, (tiles.stride, size))

    def _pieces(self, rows: IntArray) -> Iterator[_Piece]:
        """What each file holds of the given rows; within a piece, offsets ascend unless it is all."""
        tiles = self._tiles
        if len(rows) == 0:
            return
        tile, inside = np.divmod(rows, tiles.rows)
        inside *= tiles.stride
        for j in range(tiles.file.shape[1]):
            files = tiles.file[tile, j]
            offsets = tiles.offset[tile, j] + inside
            if (files == files[0]).all():
                if tiles.file.shape[1] == 1:
                    yield _Piece(file=int(files[0]), at=None, offsets=offsets, col=j)
                else:
                    order = np.argsort(offsets)
                    yield _Piece(file=int(files[0]), at=order, offsets=offsets[order], col=j)
                continue
            order = np.lexsort((offsets, files))
            files, offsets = files[order], offsets[order]
            bounds = np.concatenate(([0], np.flatnonzero(np.diff(files)) + 1, [len(files)])).tolist()
            for begin, end in itertools.pairwise(bounds):
                yield _Piece(file=int(files[begin]), at=order[begin:end], offsets=offsets[begin:end], col=j)

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """File, offset and length of what holds rows ``start`` to ``stop``; neighbours are joined."""
        self._check_span(start, stop)
        tiles = self._tiles
        if start == stop:
            return
        file, offset, length = -1, 0, 0
        # Across, then down: the order in which chunks are mostly written.
        for i in range(start // tiles.rows, (stop - 1) // tiles.rows + 1):
            begin = max(start - i * tiles.rows, 0)
            end = min(stop - i * tiles.rows, tiles.rows)
            for j in range(tiles.file.shape[1]):
                here = int(tiles.offset[i, j]) + begin * tiles.stride
                size = (end - begin) * tiles.stride
                if file == tiles.file[i, j] and offset + length == here:
                    length += size
                    continue
                if file >= 0:
                    yield file, offset, length
                file, offset, length = int(tiles.file[i, j]), here, size
        if file >= 0:
            yield file, offset, length

    def _fill(self) -> AnyArray:
        """The fill value, in the byte order on disk."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self._swap(np.array(self._tiles.fill).astype(self.dtype).reshape(1))

    def _swap(self, rows: AnyArray) -> AnyArray:
        """Native byte order, in place, where the disk has the other one."""
        if self._swapped:
            rows.view(f"u{self.dtype.itemsize}").byteswap(inplace=True)
        return rows


@functools.lru_cache(maxsize=1024)
def _path(file: str) -> Path:
    """A path whose making and hashing is paid once: it is looked up for every tile that is read."""
    return Path(file)


def gather_bytes(data: BytesArray, offsets: IntArray, width: int) -> BytesArray:
    """``width`` bytes at each of ``offsets``, as ``(m * width,)``, with no loop and no second copy."""
    items = np.ndarray((max(len(data) - width + 1, 0),), np.dtype((np.void, width)), data.data, 0, (1,))
    return items[offsets].view(np.uint8)
