"""Wrong input: the documented exit code, a message with a hint, and everything as it was."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ooc.cli import options, reference
from ooc.cli.main import VERBS, main, make_parser
from ooc.errors import ResourceError
from ooc.types import METRICS

from .process import FLAT, run


def bad_values(here: Path) -> None:
    x = np.load(here / "x.npy")
    x[1234, 5] = np.nan
    np.save(here / "bad.npy", x)


CASES = {
    "no verb": ([], 2, "usage"),
    "unknown option": (["plan", "x.npy", "--memoryy", "1GiB"], 2, "usage"),
    "half an option": (["plan", "x.npy", "--mem", "1GiB"], 2, "usage"),
    "bad size": (["plan", "x.npy", "--memory", "lots"], 2, "size"),
    "bad k": (["search", "my.ooc", "q.npy", "-k", "0"], 2, "k"),
    "bad first": (["search", "my.ooc", "q.npy", "--first", "0"], 2, "first"),
    "out of unknown kind": (["search", "my.ooc", "q.npy", "--out", "h.txt"], 2, "out-name"),
    "out in no directory": (["search", "my.ooc", "q.npy", "--out", "no/h.npz"], 2, "directory-missing"),
    "bad k of a file": (["search", "my.ooc", "q.npy", "--out", "h.npz", "-k", "0"], 2, "k"),
    "bad batch": (["search", "my.ooc", "q.npy", "--out", "h.npz", "--batch", "0"], 2, "batch"),
    "batch without out": (["search", "my.ooc", "q.npy", "--batch", "5"], 2, "usage"),
    "out is there": (["search", "my.ooc", "q.npy", "--out", "there.h5"], 7, "out-exists"),
    "out is something else": (
        ["search", "my.ooc", "q.npy", "--out", "there.h5", "--overwrite"],
        7,
        "out-exists",
    ),
    "no queries": (["search", "my.ooc", "none.npy", "--out", "h.h5"], 3, "store-empty"),
    "queries with nan": (["search", "my.ooc", "bad.npy", "--out", "h.parquet"], 4, "query-values"),
    "queries of another d to a file": (
        ["search", "my.ooc", "narrow.npy", "--out", "h.zarr"],
        4,
        "query-shape",
    ),
    "no store": (["build", "nix.npy", "b.ooc"], 3, "store-missing"),
    "not a store": (["build", "text.txt", "b.ooc"], 3, "store-format"),
    "one dimension": (["build", "flat.npy", "b.ooc"], 3, "store-shape"),
    "nan": (["build", "bad.npy", "b.ooc", *FLAT], 4, "bad-rows"),
    "queries of another d": (["search", "my.ooc", "narrow.npy"], 4, "query-shape"),
    "too little memory": (["build", "x.npy", "b.ooc", "--memory", "1MiB"], 5, "memory-too-small"),
    "fewer rows than lists": (["build", "x.npy", "b.ooc", "--factory", "IVF5000,Flat"], 5, "too-few-rows"),
    "code not on disk": (["plan", "x.npy", "--factory", "HNSW32"], 5, "factory"),
    "no index": (["info", "nix.ooc"], 6, "index-missing"),
    "foreign directory": (["search", "foreign", "q.npy"], 6, "index-foreign"),
    "status of nothing": (["status", "nix.ooc"], 6, "index-missing"),
    "destination in use": (["build", "x.npy", "foreign", *FLAT], 7, "destination-exists"),
    "no page": (["help", "nix"], 2, "topic"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_input(
    case: str,
    here: Path,
    collection: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv, code, kind = CASES[case]
    (here / "my.ooc").symlink_to(collection / "my.ooc")
    (here / "text.txt").write_text("not vectors, just a line of text\n")
    (here / "foreign").mkdir()
    (here / "foreign" / "thesis.tex").write_text("years of work")
    np.save(here / "flat.npy", np.zeros(7, np.float32))
    np.save(here / "narrow.npy", np.zeros((2, 3), np.float32))
    np.save(here / "none.npy", np.zeros((0, 16), np.float32))
    with h5py.File(here / "there.h5", "w") as file:
        file["emb"] = np.zeros((2, 3), np.float32)
    bad_values(here)
    monkeypatch.chdir(here)
    before = sorted(path.name for path in here.rglob("*"))
    takes_json = bool(argv) and argv[0] not in ("help",)

    assert main([*argv, "--json"] if takes_json else argv) == code
    out, err = capsys.readouterr()
    assert any(line.startswith("error: ") for line in err.splitlines()), err
    assert "Traceback" not in err
    if takes_json:
        error = json.loads(out)["error"]
        assert error["kind"] == kind
        assert f"error: {error['message']}" in err
        assert error["hint"] is None or f"hint: {error['hint']}" in err
    assert sorted(path.name for path in here.rglob("*")) == before


def test_a_bad_query_is_named_whether_printed_or_written(here: Path, collection: Path) -> None:
    bad_values(here)
    for where in ([], ["--out", "h.npz"], ["--json"]):
        done = run("search", str(collection / "my.ooc"), "bad.npy", *where, "--quiet", cwd=here)
        assert done.returncode == 4
        assert "query 1234 of " in done.stderr


def test_log_json_ends_with_the_error(here: Path) -> None:
    bad_values(here)
    done = run("build", "bad.npy", "b.ooc", "--log-json", *FLAT, cwd=here)
    assert (done.returncode, done.stdout) == (4, "")
    last = [json.loads(line) for line in done.stderr.splitlines()][-1]
    assert (last["event"], last["kind"]) == ("error", "bad-rows")
    assert "1234" in last["message"]


def test_an_unforeseen_error_is_one_line_and_a_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(args: object) -> int:
        raise KeyError("surprise")

    monkeypatch.setattr("ooc.cli.help.run", broken)
    assert main(["help"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unforeseen: KeyError: 'surprise'\n")
    assert "OOC_DEBUG=1" in err
    assert "Traceback" not in err
    monkeypatch.setenv("OOC_DEBUG", "1")
    assert main(["help"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in broken" in err


class _Interrupted:
    """A descriptor during whose naming Ctrl-C is pressed: Python 3.11 makes a RuntimeError of it."""

    def __set_name__(self, owner: type, name: str) -> None:
        signal.raise_signal(signal.SIGINT)


def _while_a_class_is_made() -> None:
    type("Loaded", (), {"field": _Interrupted()})


def _while_a_module_is_loaded() -> None:
    """As numpy does."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("could not be loaded") from None


def _while_a_package_is_looked_for() -> None:
    try:
        _while_a_module_is_loaded()
    except ImportError:
        raise ResourceError("a package is not installed", kind="worker-failed") from None


@pytest.mark.parametrize(
    "pressed",
    [
        lambda: signal.raise_signal(signal.SIGINT),
        _while_a_class_is_made,
        _while_a_module_is_loaded,
        _while_a_package_is_looked_for,
    ],
)
def test_ctrl_c_is_130_whatever_becomes_of_the_exception(
    pressed: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ooc.cli.help.run", lambda _: pressed())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["help"]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "stopped\n"


def test_the_reference_is_as_the_parsers_are() -> None:
    page = Path(sys.modules["ooc"].__path__[0]) / "docs" / "cli.md"
    assert page.read_text() == reference.reference(), "run: python -m ooc.cli.reference > ooc/docs/cli.md"


def test_every_verb_and_option_has_help() -> None:
    verbs = reference.reference().partition("## ")[2]
    entries = [line for line in verbs.splitlines() if line.startswith("- `")]
    assert len(entries) > 40
    for line in entries:
        assert len(line.partition("`: ")[2]) > 5, line
    for verb in VERBS:
        assert f"## ooc {verb}\n" in reference.reference()


def test_the_parser_offers_what_the_library_takes() -> None:
    from inspect import signature

    from ooc.api import plan

    args = make_parser().parse_args(["plan", "x"])
    given = options.plan_options(args)
    taken = {
        name: parameter.default
        for name, parameter in signature(plan).parameters.items()
        if name not in ("store", "index")
    }
    assert given == taken
    for metric in METRICS:
        assert make_parser().parse_args(["plan", "x", "--metric", metric]).metric == metric
