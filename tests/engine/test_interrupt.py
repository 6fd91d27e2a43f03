"""Signals end what one call of faiss computes for long."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import ooc
from ooc.engine import Codec, interruptible
from tests.helpers import embeddings


@contextlib.contextmanager
def handled(stop: threading.Event) -> Iterator[None]:
    """SIGTERM sets an event, a little later and in another thread, as the commands have it."""

    def handle(*_: object) -> None:
        threading.Timer(0.02, stop.set).start()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        assert signal.getsignal(signal.SIGTERM) is handle  # what is put in its place is taken away again
        signal.signal(signal.SIGTERM, before)


def train_until(stop: threading.Event) -> None:
    """Calls of some seconds, one after the other, until a signal ends one."""
    x = np.tile(embeddings(20_000, 64), (1, 4))
    codec = Codec.create("IVF4,PQ32", 256, "l2", 0)
    codec.set_centroids(x[:4])
    with interruptible(stop):
        while True:
            codec.train_code(x)


def test_a_signal_ends_the_training_of_a_code() -> None:
    stop = threading.Event()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with handled(stop), pytest.raises(ooc.Stopped):
        train_until(stop)
    assert stop.is_set()


def test_a_signal_that_stops_nothing_ends_nothing() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with interruptible(threading.Event()):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            seen.append(0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM, 0]


def test_other_threads_and_those_who_ask_for_no_stop_change_no_handlers() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    inside: list[object] = []

    def look(stop: threading.Event | None) -> None:
        with interruptible(stop):
            inside.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM))

    thread = threading.Thread(target=look, args=(threading.Event(),))
    thread.start()
    thread.join()
    look(None)
    assert inside == 2 * before
