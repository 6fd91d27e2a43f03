"""Shards are independent: whoever fills them, in whatever order and pieces, the index is the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ooc
from ooc.build import room
from ooc.build.begun import need_begun, plan_as_begun
from ooc.build.draw import draw_sample
from ooc.build.fill import fill as fill_stage
from ooc.build.processes import PARENT_VARIABLE, _Worker
from ooc.build.shards import format_numbers, parse_numbers, shards_done
from ooc.build.sizes import held_out
from ooc.build.status import read_status
from ooc.build.train import load_template
from ooc.build.witness import Witnesses
from ooc.events import Event, Note, Progress, StageFinished, StageStarted
from ooc.index.layout import Layout
from ooc.index.lock import lease
from ooc.types import FloatArray
from tests.helpers import embeddings, exact_search, recall, tree

PLAN: dict[str, Any] = {"factory": "IVF64,SQ8", "copy_vectors": "always", "shard_rows": 6144}
BUDGET: dict[str, Any] = {"memory": "400MiB"}


@pytest.fixture(scope="module")
def rows() -> FloatArray:
    return embeddings(60_000, 16)


@pytest.fixture(scope="module")
def store(rows: FloatArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "x.npy"
    np.save(path, rows)
    return path


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index that one build in one go makes."""
    index = tmp_path_factory.mktemp("whole") / "i"
    ooc.build(store, index, **PLAN, **BUDGET)
    return index


@pytest.fixture
def begun(store: Path, tmp_path: Path) -> Path:
    """A build that was trained and has 10 shards to fill."""
    figures = ooc.train(store, tmp_path / "i", **PLAN, **BUDGET)
    assert (figures["shards"], figures["shards_missing"]) == (10, list(range(10)))
    return tmp_path / "i"


def filler(store: Path, index: Path, *more: str, **popen: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ooc", "fill", str(store), str(index), "--memory", "400MiB", *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen)


def test_two_fillers_at_once_make_the_index_that_one_build_makes(
    store: Path, whole: Path, begun: Path
) -> None:
    fillers = [filler(store, begun, "--threads", "1", "--json") for _ in range(2)]
    outputs = [one.communicate(timeout=60) for one in fillers]
    assert [one.returncode for one in fillers] == [0, 0], outputs
    for out, _ in outputs:
        assert json.loads(out)["shards_missing"] == []
    figures = ooc.merge(store, begun)
    assert (figures["rows"], figures["already_built"]) == (60_000, False)
    assert tree(begun) == tree(whole)
    assert not (begun / "build").exists()


def test_shards_can_be_filled_in_any_order_and_by_number(store: Path, whole: Path, begun: Path) -> None:
    assert ooc.fill(store, begun, shards=[9, 3, 4], **BUDGET)["shards_missing"] == [0, 1, 2, 5, 6, 7, 8]
    assert ooc.fill(store, begun, shards=[0], threads=1, **BUDGET)["rows_filled"] == 60_000 - 6 * 6144
    assert ooc.fill(store, begun, **BUDGET)["shards_missing"] == []
    ooc.merge(store, begun)
    assert tree(begun) == tree(whole)


def test_build_goes_on_with_what_train_and_fill_left(store: Path, whole: Path, begun: Path) -> None:
    ooc.fill(store, begun, shards=[5], **BUDGET)
    seen: list[Event] = []
    ooc.build(store, begun, **PLAN, **BUDGET, observer=seen.append)
    started = [event for event in seen if isinstance(event, StageStarted)]
    assert [event.stage for event in started] == ["fill", "merge", "calibrate", "publish"]
    assert started[0].done == 6144
    assert tree(begun) == tree(whole)


def test_build_and_fill_share_the_work(store: Path, whole: Path, begun: Path) -> None:
    other: list[subprocess.Popen[str]] = []
    leases = need_begun(Layout.of(begun)).build.leases

    def observe(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "fill" and not other:
            other.append(filler(store, begun, "--threads", "1"))
            while len(list(leases.iterdir())) < 2 and other[0].poll() is None:
                time.sleep(0.01)  # so that the other one has something left to do

    ooc.build(store, begun, **PLAN, memory="400MiB", threads=1, observer=observe)
    said = other[0].communicate(timeout=60)
    assert other[0].returncode == 0, said
    assert tree(begun) == tree(whole)


def test_a_shard_that_another_one_holds_is_passed_over_and_filled_when_given_up(
    store: Path, whole: Path, begun: Path
) -> None:
    build = need_begun(Layout.of(begun)).build
    build.leases.mkdir()
    seen: list[Event] = []
    figures: list[dict[str, Any]] = []

    def work() -> None:
        figures.append(ooc.fill(store, begun, **BUDGET, observer=seen.append))

    thread = threading.Thread(target=work)
    with lease(build.lease(0)) as ours:
        assert ours
        thread.start()
        deadline = time.monotonic() + 30
        while not any(isinstance(event, Note) for event in seen) and time.monotonic() < deadline:
            time.sleep(0.05)
        starts = [shard.start for shard in shards_done(build)]
        assert starts == [6144 * number for number in range(1, 10)]
        assert thread.is_alive()
    thread.join(30)
    notes = [event for event in seen if isinstance(event, Note)]
    assert [note.kind for note in notes] == ["shards-held"]
    assert f"process {os.getpid()} " in notes[0].message
    assert figures[0]["shards_missing"] == []
    ooc.merge(store, begun)
    assert tree(begun) == tree(whole)


def test_waiting_for_a_held_shard_can_be_stopped(store: Path, begun: Path) -> None:
    build = need_begun(Layout.of(begun)).build
    build.leases.mkdir()
    stop = threading.Event()

    def observe(event: Event) -> None:
        if isinstance(event, Note):
            stop.set()

    with lease(build.lease(7)), pytest.raises(ooc.Stopped):
        ooc.fill(store, begun, **BUDGET, observer=observe, stop=stop)
    assert ooc.fill(store, begun, **BUDGET)["shards_missing"] == []


def test_the_lease_of_a_killed_filler_is_free_again(store: Path, whole: Path, begun: Path) -> None:
    code = (
        "import sys, os, signal, ooc\n"
        "def observe(event):\n"
        "    if type(event).__name__ == 'Progress' and event.done > 15_000:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "ooc.fill(sys.argv[1], sys.argv[2], memory='400MiB', observer=observe)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(store), str(begun)], check=False)
    assert run.returncode == -signal.SIGKILL
    build = need_begun(Layout.of(begun)).build
    assert [shard.start for shard in shards_done(build)] == [0, 6144]
    assert json.loads(build.lease(2).read_text())["pid"] > 0
    status = read_status(begun)
    assert status is not None
    assert (status.operation, status.state) == ("fill", "interrupted")
    ooc.fill(store, begun, **BUDGET)
    ooc.merge(store, begun)
    assert tree(begun) == tree(whole)


def test_smaller_budgets_cut_a_numbered_shard_into_pieces_and_keep_the_grid(
    store: Path, whole: Path, begun: Path
) -> None:
    layout = Layout.of(begun)
    there = need_begun(layout)
    with ooc.open_store(store) as opened:
        made = plan_as_begun(opened, there, layout, memory="400MiB", threads=2)
        template = load_template(layout, made)
        assert template is not None
        for number, piece in ((1, 2048), (2, 4096), (1, 5120)):
            cut = type(made).from_record({**made.to_record(), "shard_rows": piece})
            fill_stage(opened, cut, template, there.build, shards=[number], grid_rows=6144)
    spans = [(shard.start, shard.stop) for shard in shards_done(there.build)]
    assert spans == [(6144, 8192), (8192, 10240), (10240, 12288), (12288, 16384), (16384, 18432)]
    ooc.fill(store, begun, **BUDGET)
    ooc.merge(store, begun)
    assert tree(begun) == tree(whole)


def test_merge_names_the_shards_that_are_missing_and_changes_nothing(store: Path, begun: Path) -> None:
    ooc.fill(store, begun, shards=[0, 4, 5], **BUDGET)
    before = tree(begun)
    with pytest.raises(ooc.ConflictError, match=r"7 of 10 shards are not filled: 1-3,6-9") as error:
        ooc.merge(store, begun)
    assert error.value.kind == "shards-missing"
    assert "--shards 1-3,6-9" in str(error.value)
    assert tree(begun) == before


def test_what_was_not_begun_or_not_trained_cannot_be_filled(store: Path, tmp_path: Path) -> None:
    for verb in (ooc.fill, ooc.merge):
        with pytest.raises(ooc.IndexDirError) as error:
            verb(store, tmp_path / "none")
        assert error.value.kind == "index-missing"
    stop = threading.Event()
    stop.set()
    with pytest.raises(ooc.Stopped):
        ooc.train(store, tmp_path / "i", **PLAN, **BUDGET, stop=stop)
    with pytest.raises(ooc.IndexDirError, match="ooc train") as error:
        ooc.fill(store, tmp_path / "i", **BUDGET)
    assert error.value.kind == "not-trained"


def test_numbers_of_no_shard_and_other_stores_are_refused(
    store: Path, begun: Path, rows: FloatArray, tmp_path: Path
) -> None:
    with pytest.raises(ooc.ArgumentError, match="no shard 10: this build has 10"):
        ooc.fill(store, begun, shards=[3, 10], **BUDGET)
    np.save(tmp_path / "other.npy", rows[::-1])
    for call in (ooc.fill, ooc.merge):
        with pytest.raises(ooc.ConflictError) as error:
            call(tmp_path / "other.npy", begun)
        assert error.value.kind == "store-changed"
    with pytest.raises(ooc.PlanError) as small:
        ooc.fill(store, begun, memory="20MiB")
    assert small.value.kind == "memory-too-small"


def test_after_publishing_nothing_is_left_to_do(store: Path, whole: Path) -> None:
    before = tree(whole)
    assert ooc.train(store, whole, **PLAN, **BUDGET)["already_built"]
    assert ooc.fill(store, whole)["already_built"]
    assert ooc.merge(store, whole)["already_built"]
    assert tree(whole) == before


@given(st.sets(st.integers(0, 10**6)))
def test_numbers_of_shards_are_read_as_they_are_written(numbers: set[int]) -> None:
    if numbers:
        assert parse_numbers(format_numbers(sorted(numbers))) == sorted(numbers)


@pytest.mark.parametrize("text", ["", "a", "3-", "-3", "7-3", "1,,2", "1.5", "1;2", "3--4"])
def test_what_is_no_range_of_shards_is_refused(text: str) -> None:
    with pytest.raises(ooc.ArgumentError, match="no range of shards") as error:
        parse_numbers(text)
    assert error.value.kind == "shards"
    assert parse_numbers("3-7, 9,4-5") == [3, 4, 5, 6, 7, 9]


# --- a disk of their own for sample and shards


def test_scratch_holds_sample_and_shards_and_is_left_as_it_was(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    scratch, index = tmp_path / "fast", tmp_path / "i"
    scratch.mkdir()
    (scratch / "mine.txt").write_text("not ooc's")
    ooc.train(store, index, **PLAN, **BUDGET, scratch=scratch)
    ooc.fill(store, index, shards=[1, 2], **BUDGET)
    (place,) = [path for path in scratch.iterdir() if path.is_dir()]
    assert len(list((place / "shards").glob("*.ivfdata"))) == 2
    assert not list(index.rglob("*.ivfdata"))
    with pytest.raises(ooc.ConflictError, match="--scratch") as error:
        ooc.build(store, index, **PLAN, **BUDGET, scratch=tmp_path / "elsewhere")
    assert error.value.kind == "scratch-differs"
    ooc.build(store, index, **PLAN, **BUDGET)  # it is known where the shards are
    assert tree(index) == tree(whole)
    assert [path.name for path in scratch.iterdir()] == ["mine.txt"]


def test_a_scratch_disk_that_is_gone_is_an_error_until_it_is_back(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    scratch, index = tmp_path / "fast", tmp_path / "i"
    ooc.train(store, index, **PLAN, **BUDGET, scratch=scratch)
    ooc.fill(store, index, **BUDGET)
    scratch.rename(tmp_path / "unmounted")
    for call in (ooc.fill, ooc.merge):
        with pytest.raises(ooc.ResourceError, match="not there") as error:
            call(store, index)
        assert error.value.kind == "scratch-missing"
    (tmp_path / "unmounted").rename(scratch)
    ooc.merge(store, index)
    assert tree(index) == tree(whole)
    assert list(scratch.iterdir()) == []


def test_each_disk_is_asked_for_its_own_part(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ooc.plan(store, **PLAN, **BUDGET)
    free = {"i": sum(plan.index_bytes.values()), "fast": plan.scratch_bytes}
    usage = shutil.disk_usage(tmp_path)
    (tmp_path / "i").mkdir()
    (tmp_path / "fast").mkdir()
    monkeypatch.setattr(room, "_disk", lambda path: path.name)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free[path.name]))
    with pytest.raises(ooc.ResourceError, match="needs"):  # all on one disk is too much for it
        ooc.train(store, tmp_path / "i", **PLAN, **BUDGET)
    free["fast"] -= 1
    with pytest.raises(ooc.ResourceError, match="fast"):
        ooc.train(store, tmp_path / "i", **PLAN, **BUDGET, scratch=tmp_path / "fast")
    free["fast"] += 1
    assert not any((tmp_path / "i").iterdir())
    ooc.train(store, tmp_path / "i", **PLAN, **BUDGET, scratch=tmp_path / "fast")


# --- the template of another index


def test_a_template_is_reused_without_training(
    store: Path, whole: Path, rows: FloatArray, tmp_path: Path
) -> None:
    part = tmp_path / "part.npy"
    np.save(part, rows[20_000:])
    source = tmp_path / "source"
    shutil.copytree(whole, source)
    settings: dict[str, Any] = {"template": source, "copy_vectors": "never"}
    seen: list[Event] = []
    ooc.build(part, tmp_path / "a", **settings, **BUDGET, observer=seen.append)
    stages = [event.stage for event in seen if isinstance(event, StageStarted)]
    assert stages == ["fill", "merge", "calibrate", "publish"]
    ooc.train(part, tmp_path / "b", **settings, **BUDGET, factory="SQ8", shard_rows=8192)
    shutil.rmtree(source)  # the new index needs it no more
    ooc.fill(part, tmp_path / "b", threads=1, **BUDGET)
    ooc.merge(part, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    for name in ("template.faiss", "centroids.npy"):
        assert (tmp_path / "a/template" / name).read_bytes() == (whole / "template" / name).read_bytes()
    xq = rows[:20] + np.float32(0.01)
    with ooc.open_index(tmp_path / "a") as index:
        assert recall(index.search(xq, 10, nprobe=64)[1], exact_search(rows[20_000:], xq, 10, "l2")[1]) > 0.99
    # The digest is of the contents: a copy of a copy is the same template.
    again = ooc.plan(part, template=tmp_path / "a", copy_vectors="never", **BUDGET)
    assert again.digest == ooc.plan(part, template=whole, copy_vectors="never", **BUDGET).digest


def test_a_build_with_a_template_is_another_than_one_without(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    ooc.train(store, tmp_path / "i", **PLAN, **BUDGET, template=whole)
    with pytest.raises(ooc.ConflictError, match="template") as error:
        ooc.build(store, tmp_path / "i", **PLAN, **BUDGET)
    assert error.value.kind == "index-exists"
    with pytest.raises(ooc.ConflictError, match="template"):
        ooc.build(store, whole, **PLAN, **BUDGET, template=whole)
    assert ooc.build(store, tmp_path / "i", **PLAN, **BUDGET, template=whole)["rows"] == 60_000


@pytest.mark.parametrize(
    ("change", "said"),
    [({"metric": "ip"}, "metric ip"), ({"factory": "SQ4"}, "not SQ4"), ({"factory": "IVF32,SQ8"}, "IVF32")],
)
def test_a_template_of_another_kind_is_refused(
    change: dict[str, Any], said: str, store: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(ooc.PlanError, match=said) as error:
        ooc.build(store, tmp_path / "i", template=whole, **change, **BUDGET)
    assert error.value.kind == "template-differs"
    assert not (tmp_path / "i").exists()


def test_a_template_of_other_dimensions_missing_or_damaged_is_refused(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "wide.npy", embeddings(300, 20))
    with pytest.raises(ooc.PlanError, match="16-d"):
        ooc.plan(tmp_path / "wide.npy", template=whole)
    with pytest.raises(ooc.IndexDirError):
        ooc.plan(store, template=tmp_path / "none")
    shutil.copytree(whole, tmp_path / "source")
    path = tmp_path / "source/template/centroids.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ooc.IndexDirError, match="centroids") as error:
        ooc.build(store, tmp_path / "i", template=tmp_path / "source", **BUDGET)
    assert error.value.kind == "index-damaged"
    assert not (tmp_path / "i").exists()
    (tmp_path / "source/template/train.json").unlink()
    with pytest.raises(ooc.IndexDirError) as untrained:
        ooc.plan(store, template=tmp_path / "source")
    assert untrained.value.kind == "not-trained"


# --- several processes on this machine

TEAM: dict[str, Any] = {**PLAN, "memory": "700MiB", "workers": 2}


def children() -> list[int]:
    """Processes that this one started to fill."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{PARENT_VARIABLE}={os.getpid()}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # gone, or not ours to look at
    return found


def test_workers_make_the_same_index_and_tell_how_far_they_are(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    seen: list[Event] = []
    figures = ooc.build(store, tmp_path / "i", **TEAM, observer=seen.append)
    assert tree(tmp_path / "i") == tree(whole)
    assert figures["stages"]["fill"]["workers"] == 2
    assert figures["stages"]["fill"]["workers_peak_bytes"] > 2 * 2**20
    done = [event.done for event in seen if isinstance(event, Progress) and event.stage == "fill"]
    assert done == sorted(done)
    assert done[-1] == 60_000
    notes = [event for event in seen if isinstance(event, Note)]
    assert [(note.kind, note.message) for note in notes] == [
        ("workers", "2 workers, each with 302 MiB and 1 thread")
    ]
    finished = [event.stage for event in seen if isinstance(event, StageFinished)]
    assert finished == ["plan", "sample", "train", "fill", "merge", "calibrate", "publish"]


def on_fill(rows: int, do: Callable[[], None]) -> Callable[[Event], None]:
    """An observer that does something once when so many rows are filled."""
    once: list[bool] = []

    def observe(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == "fill" and event.done >= rows and not once:
            once.append(True)
            do()

    return observe


def test_a_killed_worker_is_an_error_and_the_next_run_goes_on(
    store: Path, whole: Path, tmp_path: Path
) -> None:
    def kill() -> None:
        os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(ooc.ResourceError, match="SIGKILL") as error:
        ooc.build(store, tmp_path / "i", **TEAM, threads=1, observer=on_fill(0, kill))
    assert error.value.kind == "worker-killed"
    assert children() == []
    seen: list[Event] = []
    ooc.build(store, tmp_path / "i", **TEAM, observer=seen.append)
    assert not any(isinstance(event, StageStarted) and event.stage == "train" for event in seen)
    assert tree(tmp_path / "i") == tree(whole)


def test_workers_stop_at_a_safe_point(store: Path, whole: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(ooc.Stopped, match="safe point"):
        ooc.build(store, tmp_path / "i", **TEAM, observer=on_fill(0, stop.set), stop=stop)
    assert children() == []
    ooc.build(store, tmp_path / "i", **PLAN, **BUDGET)
    assert tree(tmp_path / "i") == tree(whole)


def test_workers_end_when_the_build_is_killed(store: Path, whole: Path, begun: Path) -> None:
    with filler(store, begun, env={**os.environ, PARENT_VARIABLE: "1"}) as orphan:
        said = orphan.communicate(timeout=60)
        assert orphan.returncode == 130, said
    ooc.build(store, begun, **PLAN, **BUDGET)
    assert tree(begun) == tree(whole)


def test_what_a_worker_stumbles_over_is_the_error_of_the_build(rows: FloatArray, tmp_path: Path) -> None:
    bad = rows.copy()
    assert 59_000 not in draw_sample(60_000, 16_384, 0, held_out(60_000))
    bad[59_000] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    settings: dict[str, Any] = {**TEAM, "factory": "IVF8,Flat"}
    with pytest.raises(ooc.DataError, match="row 59000 of") as error:
        ooc.build(tmp_path / "bad.npy", tmp_path / "i", **settings)
    assert error.value.kind == "bad-rows"
    assert "--on-bad skip" in str(error.value)
    figures = ooc.build(tmp_path / "bad.npy", tmp_path / "i", **settings, on_bad="skip")
    assert (figures["rows"], figures["skipped_rows"]) == (59_999, 1)


@pytest.mark.parametrize("cls", [ooc.DataError, ooc.IndexDirError, ooc.ResourceError, ooc.StoreError])
def test_the_error_of_a_worker_is_of_its_class(cls: type[ooc.OocError]) -> None:
    with subprocess.Popen([sys.executable, "-c", f"raise SystemExit({cls.exit_code})"], text=True) as process:
        worker = _Worker(process)
        worker.take({"event": "error", "message": "what", "kind": "why", "hint": "do"})
        process.wait()
        error = worker.problem()
    assert (type(error), error.kind, error.hint) == (cls, "why", "do")


def test_witnesses_are_drawn_once_by_fillers_that_begin_together(
    store: Path, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw_witnesses = [], Witnesses.draw

    def slowly(of: ooc.Store, **options: Any) -> Witnesses:
        drawn.append(threading.get_ident())
        time.sleep(0.3)
        return draw_witnesses(of, **options)

    monkeypatch.setattr(Witnesses, "draw", slowly)
    numbers = [[0], [1]]
    threads = [
        threading.Thread(target=ooc.fill, args=(store, begun), kwargs={"shards": some, **BUDGET})
        for some in numbers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 1
    there = need_begun(Layout.of(begun))
    assert len(shards_done(there.build)) == 2


def test_workers_that_cannot_be_are_refused_before_the_work(
    store: Path, rows: FloatArray, tmp_path: Path
) -> None:
    with pytest.raises(ooc.ArgumentError, match="at least 1") as error:
        ooc.build(store, tmp_path / "i", workers=0)
    assert error.value.kind == "workers"
    with pytest.raises(ooc.ArgumentError, match="named"):
        ooc.build(rows, tmp_path / "i", workers=2)
    with pytest.raises(ooc.PlanError, match=r"8 workers get [\d.]+ MiB each of 300 MiB") as small:
        ooc.build(store, tmp_path / "i", workers=8, memory="300MiB")
    assert small.value.kind == "memory-too-small"
    assert not (tmp_path / "i").exists()
