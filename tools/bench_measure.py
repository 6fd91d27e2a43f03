"""One process measured from outside: its time, its memory, what it reads and writes.

Everything is of the process and all that it starts: CPU time and bytes as the kernel accounts them at
the end, memory sampled from /proc, and what a memory cgroup of its own counts where one can be made.
Needs Linux.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Memory is looked at this often.
_SAMPLE_SECONDS = 0.05
_TICK = os.sysconf("SC_CLK_TCK")
_DROP = Path("/proc/sys/vm/drop_caches")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one run took.

    Attributes
    ----------
    status : str
        ``"done"``, ``"failed"`` (it ended with an error) or ``"killed"`` (for time or memory).
    why : str
        Of a run that is not done.
    wall_seconds, user_seconds, system_seconds : float
        Whole processes, from start to end.
    peak_private_bytes, peak_resident_bytes : int
        Largest sums of RssAnon and RssShmem, and of all resident pages, seen in samples.
    peak_cgroup_bytes, limit_bytes : int or None
        What the kernel charged at most, page cache included; None where no cgroup could be made, or
        it had no limit.
    read_bytes, written_bytes : int
        From and to the disk; what came from the page cache is not counted.
    samples : tuple of (time, CPU seconds, bytes read)
        Over the run, for the use of the machine stage by stage.
    stdout, stderr : str
    """

    status: str
    why: str
    wall_seconds: float
    user_seconds: float
    system_seconds: float
    peak_private_bytes: int
    peak_resident_bytes: int
    peak_cgroup_bytes: int | None
    limit_bytes: int | None
    read_bytes: int
    written_bytes: int
    samples: tuple[tuple[float, float, int], ...] = field(repr=False)
    stdout: str = field(repr=False)
    stderr: str = field(repr=False)

    @property
    def cpu_seconds(self) -> float:
        return self.user_seconds + self.system_seconds

    def as_record(self) -> dict[str, object]:
        """JSON-ready, without samples and output."""
        names = ("status", "why", "wall_seconds", "user_seconds", "system_seconds", "cpu_seconds")
        sizes = ("peak_private_bytes", "peak_resident_bytes", "peak_cgroup_bytes", "limit_bytes")
        return {name: getattr(self, name) for name in (*names, *sizes, "read_bytes", "written_bytes")}


class Cgroup:
    """A memory cgroup for one run."""

    def __init__(self, path: Path, limit_name: str, peak_name: str) -> None:
        self.path = path
        self._limit_name = limit_name
        self._peak = path / peak_name

    @classmethod
    def make(cls, name: str) -> Cgroup | None:
        """A new one below that of this process; None where that is not permitted."""
        own = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own[controllers] = path.lstrip("/")
        if "memory" in own:
            made = cls(
                _CGROUPS / "memory" / own["memory"] / name,
                "memory.limit_in_bytes",
                "memory.max_usage_in_bytes",
            )
        elif "" in own:
            parent = _CGROUPS / own[""]
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text("+memory")
            made = cls(parent / name, "memory.max", "memory.peak")
        else:
            return None
        try:
            made.path.mkdir()
        except OSError:
            return None
        if not os.access(made.path / made._limit_name, os.W_OK):
            made.remove()
            return None
        return made

    def limit(self, limit_bytes: int) -> None:
        (self.path / self._limit_name).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):  # where swap is not counted there is no such file
            (self.path / "memory.swap.max").write_text("0")

    def peak_bytes(self) -> int | None:
        try:
            return int(self._peak.read_text())
        except (OSError, ValueError):  # memory.peak came with Linux 5.19
            return None

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process of it."""
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError):
                for line in (self.path / name).read_text().splitlines():
                    key, _, value = line.partition(" ")
                    if key == "oom_kill":
                        return int(value) > 0
        return False

    def remove(self) -> None:
        for _ in range(50):  # the kernel may still be at the exit of its last process
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.02)
            else:
                return


def drop_page_cache(files: Sequence[Path] = ()) -> str:
    """Take out of the page cache what a run will read; what was dropped, in words.

    All of it where this process may; else what the given files and directories hold.
    """
    os.sync()
    try:
        _DROP.write_text("3")
    except OSError:
        pass
    else:
        return "all dropped"
    for path in files:
        for name in [path] if path.is_file() else sorted(path.rglob("*")):
            if name.is_file():
                with name.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "pages of the input dropped"


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str | None] | None = None,
    time_limit: float | None = None,
    memory_limit: int | None = None,
    cgroup: bool = True,
) -> Measured:
    """Run a command to its end and measure it.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    environment : mapping
        What differs from this process's: a value, or None for a variable that is taken away.
    time_limit : float, optional
        Seconds after which it and all that it started are killed.
    memory_limit : int, optional
        Bytes that its cgroup may hold, page cache included; nothing where there is no cgroup.
    cgroup : bool
        Whether to make a cgroup.
    """
    group = Cgroup.make(f"ooc-bench.{os.getpid()}.{time.monotonic_ns()}") if cgroup else None
    if group is not None and memory_limit is not None:
        group.limit(memory_limit)
    env = dict(os.environ)
    for name, value in (environment or {}).items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    argv = list(command)
    if group is not None:
        # The process itself goes in before it becomes the command: nothing it does is missed.
        argv = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.path / "cgroup.procs"), *argv]
    try:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            began = time.monotonic()
            process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
            watcher = _Watcher(process.pid, time_limit)
            watcher.start()
            try:
                # Not reaped yet: its bytes read and written can still be asked for.
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
                wall = time.monotonic() - began
                watcher.stop()
                read, written = _io(process.pid)
            except BaseException:
                watcher.stop()
                _kill(process.pid)
                process.wait()
                raise
            _kill(process.pid)  # what it may have left running
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        outcome, why = _outcome(process.returncode, watcher.timed_out, time_limit, group, texts[1])
        return Measured(
            status=outcome,
            why=why,
            wall_seconds=wall,
            user_seconds=usage.ru_utime,
            system_seconds=usage.ru_stime,
            peak_private_bytes=watcher.private,
            peak_resident_bytes=watcher.resident,
            peak_cgroup_bytes=group.peak_bytes() if group is not None else None,
            limit_bytes=memory_limit if group is not None else None,
            read_bytes=read,
            written_bytes=written,
            samples=tuple(watcher.samples),
            stdout=texts[0],
            stderr=texts[1],
        )
    finally:
        if group is not None:
            group.remove()


def _outcome(
    code: int, timed_out: bool, time_limit: float | None, group: Cgroup | None, stderr: str
) -> tuple[str, str]:
    if timed_out:
        return "killed", f"not done after {time_limit:g} s"
    if code == 0:
        return "done", ""
    if group is not None and group.out_of_memory():
        return "killed", "the memory limit of its cgroup"
    last = [line for line in stderr.strip().splitlines() if line.strip()][-1:] or ["nothing on stderr"]
    return "failed", f"exit status {code}: {last[0][:500]}"


def _kill(pid: int) -> None:
    """Kill a session's process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class _Watcher(threading.Thread):
    """Looks at a process and its descendants until told to stop."""

    def __init__(self, pid: int, time_limit: float | None) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self.private = self.resident = 0
        self.timed_out = False
        self.samples: list[tuple[float, float, int]] = []

    def run(self) -> None:
        while not self._ended.is_set():
            self._look()
            if self._deadline is not None and time.monotonic() > self._deadline:
                self.timed_out = True
                _kill(self._pid)
                return
            self._ended.wait(_SAMPLE_SECONDS)

    def _look(self) -> None:
        private = resident = read = 0
        seconds = 0.0
        for pid in _tree(self._pid):
            with contextlib.suppress(OSError, ValueError, IndexError):
                kilobytes = _status(pid)
                private += 1024 * (kilobytes.get("RssAnon", 0) + kilobytes.get("RssShmem", 0))
                resident += 1024 * kilobytes.get("VmRSS", 0)
                # Fields 14 to 17: user, system, and those of children that have ended.
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seconds += sum(int(ticks) for ticks in fields[11:15]) / _TICK
                read += _io(pid)[0]
        self.private = max(self.private, private)
        self.resident = max(self.resident, resident)
        self.samples.append((time.time(), seconds, read))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _status(pid: int) -> dict[str, int]:
    """The memory lines of /proc/PID/status, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {name: int(value.split()[0]) for name, value in pairs}


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:  # grows while it is gone through
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(OSError):
                    found.extend(int(child) for child in (task / "children").read_text().split())
    return found


def _io(pid: int) -> tuple[int, int]:
    """Bytes that a process and its ended children had from and gave to the disk."""
    values = {}
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:  # not permitted, or a kernel without the accounting
        return 0, 0
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        values[name] = int(value)
    return values["read_bytes"], max(0, values["write_bytes"] - values["cancelled_write_bytes"])
