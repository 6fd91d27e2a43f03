"""Files as memory, and what the kernel is told about them.

The one place for mmap, madvise and posix_fadvise, with a fallback where the platform has none of
them: advice that cannot be given is left out and changes speed, never results. Also the one place
that asks how much memory is private to this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import math
import mmap
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ooc.errors import DataError, ResourceError, StoreError
from ooc.types import AnyArray, BytesArray, IntArray

__all__ = [
    "PAGE",
    "MapPool",
    "MappedFile",
    "Residency",
    "advise_random",
    "advise_soon",
    "ask_for_each",
    "between",
    "drop_cached",
    "drop_file",
    "joined",
    "let_go",
    "private_bytes",
    "private_peak_bytes",
    "release_free_memory",
    "see_room",
    "start_thread",
]

PAGE = mmap.PAGESIZE

#: One WILLNEED brings at most the device's read-ahead, which is 128 KiB on most machines: longer
#: advice is cut into pieces of this size, or its tail is silently not read.
ADVICE_BYTES = 128 * 1024

#: Linux's ``process_madvise`` takes many pieces in one call: by its number, since C libraries lack it.
_PROCESS_MADVISE = 440
#: It is used for so many pieces or more, and takes so many at most.
_TOGETHER_FROM, _MOST_TOGETHER = 4, 1024

#: The largest unit in which the page cache holds a file.
_CACHE_UNIT = 2 * 1024 * 1024

#: What a thread's stack takes of the address space, and what it needs to begin.
_THREAD_BYTES = 10 << 20

_WILLNEED = getattr(mmap, "MADV_WILLNEED", None)
_DONTNEED = getattr(mmap, "MADV_DONTNEED", None) if sys.platform == "linux" else None
_RANDOM = getattr(mmap, "MADV_RANDOM", None)
_SEQUENTIAL = getattr(mmap, "MADV_SEQUENTIAL", None)


class MappedFile:
    """A file mapped read-only, whole, as bytes.

    Parameters
    ----------
    path : Path
        The file. It must not be empty.
    random : bool
        Whether access is by row here and there: stops the kernel from reading around each fault,
        which would multiply the bytes read.
    rows : (int, int), optional
        Where rows begin in the file, and the bytes of each. The mapping is then placed so that the address
        of every row, divided by its bytes, leaves the remainder that it leaves in all files whose rows begin
        at this byte: rows of several files are evenly spaced in memory, though far apart. Where the platform
        does not let a mapping be placed it lies anywhere.

    Notes
    -----
    Arrays that were cut from ``bytes`` keep the mapping alive after ``close``; a file that its owner
    truncates while mapped kills the process that touches the lost pages (SIGBUS).
    """

    def __init__(self, path: Path, *, random: bool = False, rows: tuple[int, int] | None = None) -> None:
        self.path = path
        with path.open("rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size == 0:
                raise DataError(f"{path} is empty", kind="file-empty")
            placed = None if rows is None else _placed(file.fileno(), self.size, *rows)
            self._map: mmap.mmap | _Placed | None = placed or mmap.mmap(
                file.fileno(), 0, access=mmap.ACCESS_READ
            )
        self.bytes: BytesArray = (
            np.asarray(self._map) if isinstance(self._map, _Placed) else np.frombuffer(self._map, np.uint8)
        )
        self._address = self.bytes.ctypes.data
        self.advise_pattern(random=random)

    def advise_pattern(self, *, random: bool) -> None:
        """Expect access in any order (``random``) or from front to back."""
        advice = _RANDOM if random else _SEQUENTIAL
        if advice is not None and self._map is not None:
            self._map.madvise(advice)

    def will_need(self, offset: int, length: int) -> int:
        """Start reading ``length`` bytes at ``offset``; returns at once how many pieces were asked for."""
        end = min(offset + length, self.size)
        return self.will_need_spans(np.array([offset], np.int64), np.array([end], np.int64))

    def will_need_spans(self, begins: IntArray, ends: IntArray) -> int:
        """Start reading spans of bytes ``(m,)``; returns at once how many pieces were asked for."""
        if _WILLNEED is None or self._map is None:
            return 0
        return _ask(self._address, begins, ends)

    def will_need_each(self, offsets: IntArray, length: int) -> int:
        """Start reading ``length`` bytes at each of ``offsets``; neighbours are joined.

        Parameters
        ----------
        offsets : (m,) int64
            Byte offsets in ascending order.
        length : int
            Bytes at each.

        Returns
        -------
        int
            How many pieces were asked for.
        """
        begin = offsets - offsets % PAGE
        end = np.minimum(offsets + length, self.size)
        # A run ends where the next piece begins beyond the last page of this one.
        return self.will_need_spans(*joined(begin, end, gap=PAGE))

    def drop(self, offset: int, length: int) -> None:
        """Let go of the pages that lie whole within the range: of this mapping and of the page cache.

        On a mapped file ``posix_fadvise`` alone does nothing while the mapping holds the pages.
        """
        if _DONTNEED is None or self._map is None:
            return
        begin = -(-offset // PAGE) * PAGE
        end = (offset + length) // PAGE * PAGE
        if offset + length >= self.size:
            end = self.size
        if end <= begin:
            return
        # The file may have been moved or replaced since: advice then goes nowhere.
        with contextlib.suppress(OSError):
            self._map.madvise(_DONTNEED, begin, end - begin)
            with self.path.open("rb") as file:
                drop_cached(file.fileno(), begin, end - begin)

    def close(self) -> None:
        """Give the mapping up; it goes when the last array cut from it does."""
        self.bytes = np.empty(0, np.uint8)
        map_, self._map = self._map, None
        if map_ is not None:
            try:
                map_.close()
            except BufferError:
                return  # arrays still look at it; the last one to go unmaps it


class _Placed:
    """A file mapped read-only at an address of one's choice; unmapped when nothing looks at it any more.

    Python's own ``mmap`` takes no address.
    """

    def __init__(self, fd: int, size: int, first: int, width: int) -> None:
        # A piece of address space is reserved in which the file has room wherever it must begin.
        common = math.gcd(PAGE, width)
        pages = width // common
        length = size + pages * PAGE
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        reserved = _mmap()(None, length, _PROT_NONE, private, -1, 0)
        if reserved is None or reserved == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), "no room in the address space")
        self._finalizer = weakref.finalize(self, _munmap(), reserved, length)
        self._finalizer.atexit = False  # other threads may be reading
        starts = reserved - reserved % PAGE + PAGE * np.arange(1, pages + 1)
        address = int(starts[(starts + first) % width == first % common][0])
        if _mmap()(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) != address:
            raise OSError(ctypes.get_errno(), "the file cannot be mapped")
        self._address, self._size = address, size

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self._size,), "typestr": "|u1", "data": (self._address, True)}

    def madvise(self, advice: int, begin: int = 0, length: int | None = None) -> None:
        _advise(self._address + begin, self._size - begin if length is None else length, advice)

    def close(self) -> None:
        """Nothing to do: it goes with the last array that looks at it."""


#: The same on Linux and macOS; Python's ``mmap`` does not name them.
_PROT_NONE, _MAP_FIXED, _MAP_FAILED = 0, 0x10, ctypes.c_void_p(-1).value


def _placed(fd: int, size: int, first: int, width: int) -> _Placed | None:
    """See ``_Placed``; None where that cannot be."""
    try:
        return _Placed(fd, size, first, width)
    except (OSError, AttributeError):
        return None


@functools.cache
def _mmap() -> Callable[..., int | None]:
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    call.restype = ctypes.c_void_p
    made: Callable[..., int | None] = call
    return made


@functools.cache
def _munmap() -> Callable[[int, int], int]:
    call = ctypes.CDLL(None, use_errno=True).munmap
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    made: Callable[[int, int], int] = call
    return made


class _Between:
    """The memory from the first byte of some arrays to the last one, which it keeps alive."""

    def __init__(self, arrays: Sequence[AnyArray]) -> None:
        self._arrays = arrays
        bounds = [np.lib.array_utils.byte_bounds(array) for array in arrays]
        first, end = min(low for low, _ in bounds), max(high for _, high in bounds)
        self.__array_interface__ = {
            "version": 3, "shape": (end - first,), "typestr": "|u1", "data": (first, True),
        }  # fmt: skip


def between(arrays: Sequence[AnyArray]) -> BytesArray:
    """The memory from the first byte of some arrays to the last one, as bytes; at least one array.

    What lies between the arrays need not be anybody's: it must not be touched. The arrays live as long.
    """
    return np.asarray(_Between(tuple(arrays)))


def _advise(address: int, length: int, advice: int | None) -> None:
    """Advice on memory that another library mapped; what cannot be advised is left as it is."""
    if advice is None or length <= 0:
        return
    begin = address - address % PAGE
    _madvise()(begin, address + length - begin, advice)


@functools.cache
def _madvise() -> Callable[[int, int, int], int]:
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    call: Callable[[int, int, int], int] = madvise
    return call


def advise_random(address: int, length: int) -> None:
    """Expect access in any order to mapped memory: a fault then reads its own page alone."""
    _advise(address, length, _RANDOM)


def advise_soon(address: int, begins: IntArray, length: int) -> None:
    """Start reading ``length`` bytes at each of some places in mapped memory; returns at once."""
    if _WILLNEED is not None:
        _ask(address, begins, begins + length)


def ask_for_each(addresses: IntArray, length: int) -> int:
    """Start reading ``length`` bytes at each address, in any order; how many pieces were asked for."""
    if _WILLNEED is None or not len(addresses):
        return 0
    addresses = np.sort(addresses)
    # From the beginning of its page on, so that rows that share one are asked for together.
    return _ask(0, *joined(addresses - addresses % PAGE, addresses + length))


def _ask(address: int, begins: IntArray, ends: IntArray) -> int:
    """Start reading spans of memory that is mapped from ``address`` on; how many pieces that is."""
    begins = begins - (address + begins) % PAGE
    counts = np.maximum(-(-(ends - begins) // ADVICE_BYTES), 0)
    total = int(counts.sum())
    if total > len(counts) or not counts.all():  # cut into pieces, from the first of each span on
        firsts = np.cumsum(counts) - counts
        begins = np.repeat(begins, counts) + ADVICE_BYTES * (np.arange(total) - np.repeat(firsts, counts))
        ends = np.repeat(ends, counts)
    pieces = np.empty((total, 2), np.uintp)
    pieces[:, 0] = begins + address
    pieces[:, 1] = np.minimum(ends - begins, ADVICE_BYTES)
    done = _ask_together(pieces) if total >= _TOGETHER_FROM else 0
    for start, length in pieces[done:].tolist():
        _advise(start, length, _WILLNEED)
    return total


def _ask_together(pieces: NDArray[np.uintp]) -> int:
    """As many of the pieces ``(m, 2)`` as the kernel takes many at a time, while other threads go on."""
    if not _own.usable or _WILLNEED is None:
        return 0
    for first in range(0, len(pieces), _MOST_TOGETHER):
        some = pieces[first : first + _MOST_TOGETHER]
        number, count = ctypes.c_long(_PROCESS_MADVISE), ctypes.c_size_t(len(some))
        at = ctypes.c_void_p(some.ctypes.data)
        asked = _syscall()(number, ctypes.c_int(_own.handle()), at, count, ctypes.c_int(_WILLNEED), 0)
        if asked < int(some[:, 1].sum()):
            # No such call here, or not allowed; or a piece that cannot be advised: nobody needs to know.
            _own.usable = asked >= 0
            return first
    return len(pieces)


class _Own:
    """This process, as the kernel is told which one to advise."""

    def __init__(self) -> None:
        self.usable = sys.platform == "linux" and hasattr(os, "pidfd_open")
        self._pid, self._fd = -1, -1

    def handle(self) -> int:
        """A descriptor of the process; a child after a fork gets one of its own."""
        if self._pid != os.getpid():
            try:
                self._fd, self._pid = os.pidfd_open(os.getpid()), os.getpid()
            except OSError:
                self.usable = False
        return self._fd


_own = _Own()


@functools.cache
def _syscall() -> Callable[..., int]:
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    call: Callable[..., int] = syscall
    return call


def let_go(address: int, length: int) -> None:
    """Unmap the pages that lie whole within a range of a read-only mapping; touching them maps them again."""
    begin = -(-address // PAGE) * PAGE
    end = (address + length) // PAGE * PAGE
    _advise(begin, end - begin, _DONTNEED)


class Residency:
    """Whether what a search needs lies in memory anyway, so that asking for it ahead would be wasted.

    Advice on pages that are there costs about a microsecond a piece, which is much of a query that
    waits for no disk. After some stages in a row in which this process read nothing, advice is left
    out; the first read brings it back, for longer each time. Safe from several threads: what it forgets
    in a race costs time, never a result.
    """

    #: Stages without a read after which advice is left out: at first, and at most.
    LEAST, MOST = 32, 4096

    def __init__(self) -> None:
        self._quiet, self._enough = 0, self.LEAST
        self._seen = _reads()

    def wants_advice(self) -> bool:
        """Whether to advise in the stage that begins now."""
        now = _reads()
        if now == self._seen:
            self._quiet += 1
        else:
            if self._quiet >= self._enough:  # advice was missing
                self._enough = min(2 * self._enough, self.MOST)
            self._seen, self._quiet = now, 0
        return self._quiet < self._enough


def _reads() -> tuple[int, int]:
    """Page faults that waited for a disk, and blocks read, of this process so far."""
    try:
        import resource
    except ImportError:
        return 0, 0
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt, usage.ru_inblock


def joined(begins: IntArray, ends: IntArray, *, gap: int = 0) -> tuple[IntArray, IntArray]:
    """Spans of a file in ascending order, those as one that lie no more than ``gap`` bytes apart."""
    if not len(begins):
        return begins, ends
    breaks = np.flatnonzero(begins[1:] > ends[:-1] + gap)
    firsts = begins[np.concatenate(([0], breaks + 1))]
    lasts = ends[np.concatenate((breaks, [len(ends) - 1]))]
    return firsts, lasts


def _most_mappings() -> int:
    """How many files a pool maps: a quarter of those that the process may open, at most 256."""
    try:
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):
        return 256
    return 256 if allowed < 0 else max(min(allowed // 4, 256), 1)


class MapPool:
    """Mappings of many files, a bounded number of them at a time.

    A store may have more files than a process may map (65 530) or hold open (often 1 024, and a
    mapping holds its file open). The pool keeps those used last, fewer where the system gives no
    more. Safe from several threads. ``random`` and ``rows`` are those of ``MappedFile``.
    """

    def __init__(
        self, *, random: bool = False, limit: int | None = None, rows: tuple[int, int] | None = None
    ) -> None:
        self._random, self._rows = random, rows
        self._limit = limit or _most_mappings()
        self._maps: OrderedDict[Path, MappedFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> MappedFile:
        """The file's mapping, made where there is none yet.

        Raises
        ------
        StoreError
            When the file is gone.
        ResourceError
            When the process may not open or map one more file, or the system refuses.
        """
        with self._lock:
            mapped = self._maps.get(path)
            if mapped is not None:
                self._maps.move_to_end(path)
                return mapped
            mapped = self._maps[path] = self._open(path)
            if len(self._maps) > self._limit:
                # Not closed: another thread may be reading from it. It goes with its last user.
                self._maps.popitem(last=False)
            return mapped

    def _open(self, path: Path) -> MappedFile:
        while True:
            try:
                return MappedFile(path, random=self._random, rows=self._rows)
            except FileNotFoundError:
                raise StoreError(
                    f"{path} is gone: it was there when the store was opened", kind="store-missing"
                ) from None
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENOMEM) and self._maps:
                    self._maps.popitem(last=False)
                    continue
                raise ResourceError(
                    f"{path} cannot be mapped: {error.strerror or error}",
                    kind="store-unreadable",
                    hint="Allow the process more open files: ulimit -n."
                    if error.errno == errno.EMFILE
                    else None,
                ) from error

    def close(self) -> None:
        """Give all mappings up; may be called twice."""
        with self._lock:
            for mapped in self._maps.values():
                mapped.close()
            self._maps.clear()


def drop_cached(fd: int, offset: int = 0, length: int = 0) -> None:
    """Let the page cache forget a range of an open file (to its end where ``length`` is 0)."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def drop_file(path: Path, spans: Iterable[tuple[int, int]] = ((0, 0),)) -> None:
    """Let the page cache forget parts of a file that is not mapped.

    Parameters
    ----------
    path : Path
        The file; one that is gone is fine.
    spans : iterable of (offset, length)
        In bytes, in any order; a length of 0 means to the end of the file.

    Notes
    -----
    The kernel caches in units of up to 2 MiB and lets go of those that lie whole in what it is given.
    So neighbours are joined, and each begins early, for the unit that the span before it left half.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for begin, end in _in_units(spans):
                early = max(begin - begin % PAGE - _CACHE_UNIT, 0)
                drop_cached(fd, early, end - early if end else 0)
        finally:
            os.close(fd)


def _in_units(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Begin and end of spans, those that touch as one; an end of 0 is that of the file."""
    found: list[tuple[int, int]] = []
    for begin, length in sorted(spans):
        if not length:
            return [*found, (begin, 0)]
        end = begin + length
        if found and begin <= found[-1][1] + PAGE:
            begin, last = found.pop()
            end = max(end, last)
        found.append((begin, -(-end // PAGE) * PAGE))
    return found


def _status(keys: Iterable[str]) -> dict[str, int]:
    wanted = set(keys)
    with Path("/proc/self/status").open() as file:
        return {
            key: int(rest.split()[0]) * 1024
            for key, _, rest in (line.partition(":") for line in file)
            if key in wanted
        }


def see_room(size_bytes: int) -> None:
    """See that so much memory could be mapped; none of it is taken. Raises OSError where it could not."""
    flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    mmap.mmap(-1, size_bytes, **flags).close()


def start_thread(thread: threading.Thread) -> None:
    """Start a thread, where there is room for its stack and some more.

    Python waits for ever for a thread that found no memory to say that it runs.

    Raises
    ------
    OSError, RuntimeError
        There is none.
    """
    see_room(_THREAD_BYTES)
    thread.start()


def private_bytes() -> int:
    """Memory that is this process's own (``RssAnon``): what the kernel cannot take back.

    Pages of mapped files are not counted. Where ``/proc`` is missing, the peak of the resident set.
    """
    try:
        return _status(["RssAnon"])["RssAnon"]
    except (OSError, KeyError):
        return private_peak_bytes()


def release_free_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it otherwise (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def private_peak_bytes() -> int:
    """An upper bound of the most private memory so far: the peak resident set, mapped pages included."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
