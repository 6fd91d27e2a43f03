"""Calls in processes of their own, forked from one that has everything loaded: some milliseconds each.

A test that kills a process thousands of times cannot begin a new interpreter for each. The server is a
process that loads what it is told and then only forks: it has no threads of its own, so that its children
begin clean.
"""

from __future__ import annotations

import importlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Outcome", "Server"]

#: A child that says nothing for longer hangs. Seconds are counted one by one, so that those in which the
#: server itself was stopped are not among them.
_MOST_SECONDS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a call ended.

    Attributes
    ----------
    status : int
        0 where it returned, 1 where it raised; of a process that was killed minus the signal's number.
    value : Any
        What it returned.
    told : tuple
        What it said by ``tell`` on the way, the last thing said included where it was killed.
    error : BaseException, optional
        What it raised, and ``trace`` where.
    """

    status: int
    value: Any = None
    told: tuple[Any, ...] = ()
    error: BaseException | None = None
    trace: str = ""

    def result(self) -> Any:
        """What the call returned; raises AssertionError where it did not."""
        assert self.status == 0, f"status {self.status}\n{self.trace}"
        return self.value


class Server:
    """Forks a child for each call.

    Parameters
    ----------
    preload : sequence of str
        Modules that are loaded once. One with a function ``loaded`` has it called.
    """

    def __init__(self, preload: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ooc.testing.forked", *preload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Many servers on few processors: threads that wait for work must not spin.
            env={**os.environ, "OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"},
        )

    def call(self, function: str, *args: Any, kill_after: float | None = None) -> Outcome:
        """``function(*args)`` in a child; named as ``package.module:name``.

        A function with a parameter ``tell`` is given one that keeps what it is told, however the child
        ends. With ``kill_after`` the child is killed after so many seconds, wherever it is then.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _send(self._process.stdin, (function, args, kill_after))
        answer = _receive(self._process.stdout)
        assert answer is not None, "the server is gone"
        return Outcome(**answer)

    def close(self) -> None:
        """End the server."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _send(pipe: Any, thing: Any) -> None:
    data = pickle.dumps(thing)
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def _receive(pipe: Any) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        return None
    data = pipe.read(struct.unpack("<Q", head)[0])
    return pickle.loads(data)


def _child(writing: int, function: str, args: tuple[Any, ...]) -> None:
    """Run the call and leave; says what comes of it through the pipe."""
    with os.fdopen(writing, "wb", buffering=0) as pipe:

        def say(what: str, thing: Any) -> None:
            data = pickle.dumps((what, thing))
            pipe.write(struct.pack("<Q", len(data)) + data)

        try:
            module, _, name = function.partition(":")
            call = getattr(importlib.import_module(module), name)
            more = {"tell": lambda thing: say("told", thing)} if _takes_tell(call) else {}
            say("value", call(*args, **more))
            status = 0
        except BaseException as error:
            try:
                say("error", (error, traceback.format_exc()))
            except Exception:
                say("error", (None, traceback.format_exc()))
            status = 1
    os._exit(status)


def _takes_tell(call: Any) -> bool:
    return "tell" in call.__code__.co_varnames[: call.__code__.co_argcount]


def _forked(function: str, args: tuple[Any, ...], kill_after: float | None) -> dict[str, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        os.setpgid(0, 0)  # what it starts goes with it
        _child(writing, function, args)
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    answer: dict[str, Any] = {"told": []}
    for what, thing in _said(reading, pid):
        if what == "told":
            answer["told"].append(thing)
        elif what == "error":
            answer["error"], answer["trace"] = thing
        else:
            answer["value"] = thing
    os.close(reading)
    _, code = os.waitpid(pid, 0)
    return {**answer, "told": tuple(answer["told"]), "status": os.waitstatus_to_exitcode(code)}


def _said(reading: int, pid: int) -> Iterator[tuple[str, Any]]:
    """What a child says until it ends; one that is silent for too long is killed."""
    data, silent = bytearray(), 0
    while True:
        if not select.select([reading], [], [], 1.0)[0]:
            silent += 1
            if silent == _MOST_SECONDS:
                os.kill(pid, signal.SIGKILL)
            continue
        more = os.read(reading, 1 << 20)
        if not more:
            return
        data += more
        silent = 0
        while len(data) >= 8 and len(data) >= (end := 8 + struct.unpack_from("<Q", data)[0]):
            yield pickle.loads(data[8:end])
            del data[:end]


def main(preload: Sequence[str]) -> None:
    """Serve calls from stdin until it ends."""
    # What a child prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for name in preload:
        module = importlib.import_module(name)
        if hasattr(module, "loaded"):
            module.loaded()
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    while (request := _receive(requests)) is not None:
        _send(answers, _forked(*request))


if __name__ == "__main__":
    main(sys.argv[1:])
