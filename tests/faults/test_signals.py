"""SIGINT and SIGTERM: the first stops each stage at a safe point within 2 s, the second at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ooc
from tests.cli.process import environment
from tests.helpers import embeddings

#: What is promised where the machine has nothing else to do. Other tests run beside these.
_SECONDS, _BUSY_SECONDS = 2.0, 20.0

#: `ooc` on a disk on which steps take a while: stages that copy are otherwise over before a signal comes.
SLOW = """
import sys, time
from ooc import disk
from ooc.cli.main import main
def slow(operation, path, call, args):
    time.sleep(0.03 if operation in ("write", "read", "sync") else 0)
    return call(*args)
disk.watch(slow)
sys.exit(main())
"""

#: The stages of each command, and its arguments.
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "build": (["build", "x.npy", "new.ooc"], ["sample", "train", "fill", "merge", "calibrate", "publish"]),
    "append": (["append", "i.ooc", "more.npy"], ["fill", "merge"]),
    "upsert": (["upsert", "i.ooc", "ids.npy", "more.npy"], ["fill", "merge"]),
    "compact": (["compact", "two.ooc"], ["merge", "publish"]),
    "convert": (["convert", "x.npy", "c.zarr", "--compression", "zstd", "--chunk-rows", "2000"], ["copy"]),
    "search": (["search", "i.ooc", "x.npy", "--out", "r.npz", "--nprobe", "256", "-k", "10"], ["search"]),
    "exact": (["exact", "x.npy", "more.npy", "--out", "e.h5"], ["exact"]),
    "eval": (["eval", "i.ooc"], ["exact", "search"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("signals")
    x = embeddings(120_000, 64)
    np.save(place / "x.npy", x[:100_000])
    np.save(place / "more.npy", x[100_000:])
    np.save(place / "ids.npy", np.arange(20_000))
    for name in ("i.ooc", "two.ooc"):
        ooc.build(place / "x.npy", place / name, factory="IVF256,SQ8", memory="600MiB")
    ooc.append(place / "two.ooc", place / "more.npy", memory="600MiB")
    return place


def start(place: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, *args, "--log-json"]
    return subprocess.Popen(command, cwd=place, env=environment(), stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], stage: str) -> None:
    """Return when a stage began; the process must not have ended."""
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "stage_started" and event["stage"] == stage:
            return
    pytest.fail(f"{process.args}: no stage {stage}, status {process.wait()}")


def stopped(place: Path, verb: str, stage: str, number: signal.Signals) -> float:
    """Send the signal while the stage is at work; seconds until the process ended."""
    process = start(place, *COMMANDS[verb][0])
    with process:
        wait_for(process, stage)
        time.sleep(0.05)
        began = time.monotonic()
        process.send_signal(number)
        assert process.stderr is not None
        last = process.stderr.read().splitlines()[-1]
        process.wait(60)
        seconds = time.monotonic() - began
    # The last steps of publishing are not stopped: they are the result.
    if stage == "publish" and process.returncode == 0:
        return seconds
    assert process.returncode == 130, (verb, stage, process.returncode, last)
    assert json.loads(last)["kind"] == "stopped", (verb, stage, last)
    return seconds


@pytest.mark.parametrize(
    ("number", "verbs"),
    [
        (signal.SIGTERM, ("compact", "convert")),
        (signal.SIGINT, ("exact",)),
        *(
            pytest.param(number, tuple(COMMANDS), marks=pytest.mark.trust)
            for number in (signal.SIGTERM, signal.SIGINT)
        ),
    ],
)
def test_the_first_signal_stops_at_a_safe_point(
    number: signal.Signals, verbs: tuple[str, ...], place: Path, counted: Callable[[str, int], None]
) -> None:
    took = {}
    for verb in verbs:
        for stage in COMMANDS[verb][1]:
            took[f"{verb} {stage}"] = stopped(place, verb, stage, number)
            counted("signals", 1)
    print({name: round(seconds, 2) for name, seconds in took.items()})
    assert max(took.values()) < (_SECONDS if len(verbs) == len(COMMANDS) else _BUSY_SECONDS), took
    for index in ("i.ooc", "two.ooc"):
        with ooc.open_index(place / index) as opened:
            opened.search(np.zeros(64, np.float32), 1)


def test_the_second_signal_ends_at_once(place: Path) -> None:
    process = start(place, "exact", "x.npy", "x.npy", "--out", "all.h5")
    with process:
        wait_for(process, "exact")
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(_BUSY_SECONDS) == 130
