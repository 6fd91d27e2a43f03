"""Show how far a build or a compaction is that runs in another terminal, or was interrupted."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ooc.cli.options import add_json, print_json
from ooc.cli.text import print_lines, terminal_width
from ooc.cli.tracker import NoteLine, Snapshot, StageView, time_left
from ooc.units import format_seconds

if TYPE_CHECKING:
    from ooc.build.status import Status

HELP = "how far a running or interrupted build or compaction is"

_LOOK_SECONDS = 1.0
_LOG_SECONDS = 10.0

#: A build speaks once a second while rows go by; one long step (k-means) may take its time.
_SILENT_SECONDS = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="directory of the index")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="go on showing until the build ends")
    add_json(how)  # type: ignore[arg-type]  # a group takes arguments as a parser does


def run(args: argparse.Namespace) -> int:
    from ooc.build.status import read_status

    path = Path(args.index).expanduser()
    if args.watch:
        _watch(path)
    status = read_status(path)
    live = _generation(path, status)
    if args.json:
        build = None if status is None else status.to_record()
        print_json({"index": str(path.absolute()), "generation": live, "build": build})
    elif status is None or status.state == "finished":
        what = f"generation {live} is live" if live is not None else "nothing was published yet"
        print_lines([f"{path}: no build is running; {what}"])
    elif not args.watch:  # else it was shown already
        _show(path, status)
    return 0


def _generation(path: Path, status: Status | None) -> int | None:
    """The live generation; an error where there is no index, and no build that makes one."""
    from ooc.index.layout import Layout

    layout = Layout.of(path)
    if status is None:
        layout.read_header()
    return layout.live()


def _show(path: Path, status: Status) -> None:
    from ooc.cli.drawing import draw

    width = terminal_width()
    lines = draw(_snapshot(path, status), width)
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        for line in lines:
            console.print(line)
    else:
        print_lines(line.plain.rstrip() for line in lines)


def _watch(path: Path) -> None:
    """Show the build until it ends."""
    from ooc.build.status import read_status

    if not sys.stdout.isatty():
        _watch_log(path)
        return
    from ooc.cli.drawing import draw
    from ooc.cli.screen import Screen

    screen = Screen(sys.stdout)
    snapshot = None
    with screen.shown():
        while (status := read_status(path)) is not None:
            snapshot = _snapshot(path, status)
            screen.paint(draw(snapshot, screen.size()[0], unicode=screen.unicode))
            if status.state != "running":
                return
            time.sleep(_LOOK_SECONDS)
        # The file goes when the index is published; what was seen of it last is a moment old.
        if snapshot is not None and _generation(path, None) is not None:
            done = tuple(dataclasses.replace(stage, state="done") for stage in snapshot.stages)
            snapshot = dataclasses.replace(snapshot, state="finished", stages=done)
            screen.paint(draw(snapshot, screen.size()[0], unicode=screen.unicode))


def _watch_log(path: Path) -> None:
    from ooc.build.status import read_status
    from ooc.cli.drawing import clock, log_line

    while (status := read_status(path)) is not None:
        snapshot = _snapshot(path, status)
        tail = "" if status.state == "running" else f"  {status.state}"
        print(f"{clock()} {log_line(snapshot)}{tail}", flush=True)
        if status.state != "running":
            return
        until = time.monotonic() + _LOG_SECONDS
        while time.monotonic() < until and read_status(path) is not None:
            time.sleep(_LOOK_SECONDS)


def _snapshot(path: Path, status: Status) -> Snapshot:
    """The file's contents in the form that displays draw."""
    views = []
    running = status.state == "running"
    last = max((i for i, stage in enumerate(status.stages) if stage.state != "waiting"), default=0)
    for i, stage in enumerate(status.stages):
        did = stage.done - stage.done_before
        rate = did / stage.seconds if did > 0 and stage.seconds > 0 else None
        state, share = stage.state, stage.share
        if state == "waiting" and i < last:
            state, share = "done", 0.0  # an earlier run did it
        here = running and state == "running"
        views.append(
            StageView(
                name=stage.name,
                share=share,
                state="stopped" if state == "running" and not running else state,
                done=stage.done,
                done_before=stage.done_before,
                total=stage.total,
                unit=stage.unit,
                row_bytes=stage.row_bytes,
                seconds=stage.seconds,
                rate=rate,
                left_seconds=(stage.total - stage.done) / rate if here and rate else None,
            )
        )
    seconds = status.updated - status.started
    return Snapshot(
        title=f"{status.operation} {path}",
        state=status.state,
        stages=tuple(views),
        seconds=seconds,
        left_seconds=time_left(views, seconds) if running else None,
        private_bytes=status.private_bytes,
        peak_bytes=status.peak_bytes,
        memory_bytes=status.memory_bytes,
        notes=tuple(_notes(status)),
    )


def _notes(status: Status) -> list[NoteLine]:
    silent = time.time() - status.updated
    notes = [NoteLine(message=f"process {status.pid} on {status.host}")]
    if status.message:
        notes.append(NoteLine(message=status.message, level="warning"))
    if status.state == "running" and silent > _SILENT_SECONDS:
        notes.append(NoteLine(message=f"has said nothing for {format_seconds(silent)}", level="warning"))
    if status.state in ("interrupted", "stopped", "failed"):
        verb = status.operation if status.operation.startswith("compact") else "build"
        notes.append(NoteLine(message=f"Run the same `ooc {verb}` again: it goes on from what is finished."))
    return notes
