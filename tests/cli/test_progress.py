"""What a display computes and draws, from events and a clock of the test's own."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from ooc import events
from ooc.cli.drawing import draw
from ooc.cli.progress import Log, display, observer_for
from ooc.cli.tracker import Snapshot, StageView, Tracker, time_left

SHARES = {"train": 0.25, "fill": 0.5, "merge": 0.25}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(tracker: Tracker) -> None:
    tracker(events.Started(operation="build", stages=SHARES, memory_bytes=512 << 20))


def test_rate_and_time_left_of_a_steady_stage(clock: Clock) -> None:
    tracker = Tracker(clock=clock)
    started(tracker)
    tracker(events.StageStarted(stage="train", total=1000, row_bytes=8))
    for done in range(0, 500, 50):
        clock.now += 1
        tracker(events.Progress(stage="train", done=done + 50))
    stage = tracker.snapshot().running
    assert stage is not None
    assert stage.rate == pytest.approx(50)
    assert stage.bytes_rate == pytest.approx(400)
    assert stage.left_seconds == pytest.approx(10)
    # 20 s for a quarter of the whole: the other three take 60.
    assert tracker.snapshot().left_seconds == pytest.approx(70)


def test_rate_forgets_what_is_long_ago(clock: Clock) -> None:
    tracker = Tracker(clock=clock)
    started(tracker)
    tracker(events.StageStarted(stage="train", total=10**6))
    done = 0
    for second in range(120):
        clock.now += 1
        done += 1000 if second < 60 else 10
        tracker(events.Progress(stage="train", done=done))
    stage = tracker.snapshot().running
    assert stage is not None
    assert stage.rate == pytest.approx(10)


def test_a_stage_that_stalls_slows_down(clock: Clock) -> None:
    tracker = Tracker(clock=clock)
    started(tracker)
    tracker(events.StageStarted(stage="train", total=1000))
    clock.now += 10
    tracker(events.Progress(stage="train", done=100))
    clock.now += 90
    stage = tracker.snapshot().running
    assert stage is not None
    assert stage.rate == pytest.approx(1)


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed(clock: Clock) -> None:
    tracker = Tracker(clock=clock)
    started(tracker)
    tracker(events.StageStarted(stage="fill", total=1000, done=800))
    clock.now += 10
    tracker(events.Progress(stage="fill", done=900))
    snapshot = tracker.snapshot()
    assert snapshot.stages[0].state == "done"  # train, by the earlier run
    assert snapshot.running is not None
    assert snapshot.running.fraction == pytest.approx(0.9)
    assert snapshot.running.left_seconds == pytest.approx(10)
    # 10 s for a tenth of one half: merge, a quarter, takes 50.
    assert snapshot.left_seconds == pytest.approx(60)


def test_measured_time_corrects_expected_shares() -> None:
    train = StageView(name="train", share=0.25, state="done", done=1, total=1, seconds=100)
    fill = StageView(name="fill", share=0.5, state="running", total=1000, left_seconds=30.0)
    merge = StageView(name="merge", share=0.25)
    assert time_left([train, fill, merge], 100) == pytest.approx(130)
    assert time_left([StageView(name="train", share=0.25), fill, merge], 100) is None


def test_the_end_is_told_apart(clock: Clock) -> None:
    tracker = Tracker(clock=clock)
    started(tracker)
    tracker(events.StageStarted(stage="train", total=10))
    tracker.end("stopped")
    clock.now += 50
    snapshot = tracker.snapshot()
    assert (snapshot.state, snapshot.seconds, snapshot.left_seconds) == ("stopped", 0, None)
    assert snapshot.stages[0].state == "stopped"
    tracker = Tracker(clock=clock)
    started(tracker)
    tracker(events.Finished(operation="build", seconds=1))
    tracker.end("failed")
    assert tracker.snapshot().state == "finished"


SNAPSHOT = Snapshot(
    title="build my.ooc",
    state="running",
    stages=(
        StageView(name="train", state="done", total=65536, done=65536, seconds=83, figures={"nlist": 4096}),
        StageView(
            name="fill", state="running", done=4_100_000, total=10_000_000, row_bytes=4096,
            rate=31_234.5, left_seconds=190.2,
        ),
        StageView(name="merge"),
    ),
    seconds=215,
    left_seconds=400.4,
    private_bytes=402 << 20,
    peak_bytes=431 << 20,
    memory_bytes=512 << 20,
)  # fmt: skip


def test_drawing_at_80_columns() -> None:
    lines = [line.plain.rstrip() for line in draw(SNAPSHOT, 80)]
    assert lines == [
        "build my.ooc                                          3:35 gone, about 6:40 left",
        "  ✓ train   4 096 lists                                                     1:23",
        "  ▸ fill    ━━━━━━━━━━━━━━━━━━━━────────────────────────────   41%     3:10 left",
        "            4 100 000/10 000 000 rows  31 200 rows/s  128 MB/s",
        "  · merge",
        "    memory  ━━━━━━━━━━━━━━━━────  402 MiB of 512 MiB, peak 431 MiB",
    ]


@pytest.mark.parametrize("width", [10, 24, 40, 59, 80, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_wider_than_the_terminal(width: int, unicode: bool) -> None:
    lines = draw(SNAPSHOT, width, unicode=unicode)
    assert max(line.cell_len for line in lines) <= width
    assert "fill" in lines[2].plain or width < 12
    if not unicode and width >= 80:
        assert all(line.plain.isascii() for line in lines)


def test_memory_near_the_budget_is_coloured() -> None:
    def colours(private: int) -> set[str]:
        snapshot = Snapshot(
            title="", state="running", stages=(), seconds=0, private_bytes=private, memory_bytes=100
        )
        return {str(span.style) for span in draw(snapshot, 80)[-1].spans}

    assert "green" in colours(50)
    assert "yellow" in colours(95)
    assert "red" in colours(120)


def test_log_lines() -> None:
    stream = io.StringIO()
    log = Log(stream, title="build my.ooc", every_seconds=0)
    log(events.Started(operation="build", stages=SHARES, memory_bytes=1 << 40))
    log(events.StageStarted(stage="train", total=5000, done=1000, row_bytes=8))
    log(events.Progress(stage="train", done=2500))
    log.tick()
    log(events.Note(message="7 rows are left out", kind="rows-skipped", level="warning"))
    log(events.StageFinished(stage="train", seconds=75.2))
    log.stopping("stopping")
    texts = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in stream.getvalue().splitlines())
    assert texts[0] == "build my.ooc started"
    assert texts[1] == "train   started  5 000 rows (20% done before)"
    assert re.fullmatch(
        r"train    50% 2 500/5 000 rows  .*rows/s .*MB/s  memory [\d.]+ MiB of 1\.00 TiB, peak [\d.]+ MiB",
        texts[2],
    )
    assert texts[3:] == ["warning: 7 rows are left out", "train   done in 1:15  5 000 rows", "stopping"]


def test_log_is_quiet_between_its_times() -> None:
    stream = io.StringIO()
    log = Log(stream, title="build", every_seconds=3600)
    log(events.StageStarted(stage="fill", total=10))
    for done in range(10):
        log(events.Progress(stage="fill", done=done))
        log.tick()
    assert stream.getvalue().count("\n") == 1


def test_display_of_a_stream_that_is_no_terminal_is_a_log(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as stream:
        with display(stream, title="work") as shown:
            shown(events.Started(operation="build", stages=SHARES))
        stream.seek(0)
        assert stream.read().endswith(" work started\n")


def test_observer_for_python_callers(capsys: pytest.CaptureFixture[str]) -> None:
    for progress, expected in ((None, ""), (False, ""), (True, "build started")):
        with observer_for(progress) as observer:
            observer(events.Started(operation="build", stages=SHARES))
        err = capsys.readouterr().err
        assert expected in err
        assert bool(err) == bool(expected)
