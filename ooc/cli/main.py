"""The command ``ooc``: parses, runs one verb, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ooc.cli.signals import interruptions
from ooc.errors import ArgumentError, OocError, ResourceError, Stopped

__all__ = ["EXIT_BROKEN_PIPE", "EXIT_UNFORESEEN", "VERBS", "main", "make_parser"]

#: In the order that help shows them. Each module has ``HELP`` (one line), ``add_arguments(parser)`` and
#: ``run(args)``, which imports what it needs: `ooc -h` waits for neither numpy nor faiss.
VERBS = (
    "plan", "build", "train", "fill", "merge", "status", "info", "search", "exact", "eval",
    "append", "upsert", "delete", "compact", "rollback", "gc", "verify", "convert", "export", "import",
    "help",
)  # fmt: skip

#: Those that go on where they were stopped.
_GO_ON = ("build", "train", "fill", "merge", "append", "upsert", "convert")

EXIT_UNFORESEEN = 1
EXIT_BROKEN_PIPE = 141


class _Formatter(argparse.HelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.default not in (None, False, argparse.SUPPRESS) and bool(action.option_strings)
        return f"{action.help} (default: %(default)s)" if shown else action.help or ""


class Parser(argparse.ArgumentParser):
    """argparse, with usage errors that go the way of all others."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message, kind="usage", hint=f"See `{self.prog} --help`.")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line; a verb's parser has its module as the default ``module``."""
    parser = Parser(
        prog="ooc",
        description="Vector indexes over collections that do not fit in memory.",
        epilog="`ooc help` lists the pages of documentation; `ooc VERB --help` the options of a verb.",
        allow_abbrev=False,
    )
    # Asked of the package by its name: an import would make an arrow to all that the package offers.
    version = sys.modules["ooc"].__version__
    parser.add_argument("--version", action="version", version=f"ooc {version}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in VERBS:
        module = importlib.import_module(f"ooc.cli.{name}")
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=(module.__doc__ or "").partition("\n")[0],
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        module.add_arguments(verb)
        verb.set_defaults(module=module, verb=name)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``ooc`` with these arguments (default: the process's, which ends then); the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        with interruptions(to_the_end=argv is None) as interrupted:
            ended = _run(given, interrupted)
    return ended if isinstance(ended, int) else _report(ended, given)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Warnings are for people: what is the matter, without where in the code it was seen."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _run(argv: list[str], interrupted: Sequence[int]) -> int | OocError:
    """Parse and run; the exit status, or what went wrong."""
    try:
        args = make_parser().parse_args(argv)
        status = int(args.module.run(args))
        sys.stdout.flush()
        return status
    except SystemExit as leaving:  # argparse, after --help and --version
        return leaving.code if isinstance(leaving.code, int) else EXIT_UNFORESEEN
    except BrokenPipeError:
        # Whoever read the results has enough. Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return Stopped("stopped")
    except Exception as error:
        # What is raised is not always what was: see `interruptions`.
        return Stopped("stopped") if interrupted else _named(error, argv)


def _named(error: Exception, argv: list[str]) -> OocError:
    """It as one of ours."""
    if isinstance(error, OocError):
        return error
    if isinstance(error, MemoryError):
        return ResourceError.no_memory(error, f"running `ooc {argv[0]}`")
    unforeseen = OocError(
        f"unforeseen: {type(error).__name__}: {error}",
        kind="unforeseen",
        hint="Set OOC_DEBUG=1 to see where; please report it with that.",
    )
    unforeseen.__cause__ = error
    return unforeseen


def _report(error: OocError, argv: list[str]) -> int:
    """Say what went wrong, to people on stderr and to programs on stdout; the exit status."""
    record: dict[str, Any] = {"kind": error.kind, "message": error.message, "hint": error.hint}
    goes_on = isinstance(error, Stopped) and bool(argv) and argv[0] in _GO_ON
    resume = command(argv) if goes_on else None
    if resume is not None:
        record["resume"] = resume
    if "--json" in argv:
        print(json.dumps({"error": record}, indent=2), flush=True)
    if "--log-json" in argv:
        from ooc.cli.jsonlog import JsonLog

        JsonLog(sys.stderr).error(record)
        return error.exit_code
    if os.environ.get("OOC_DEBUG"):
        traceback.print_exception(error.__cause__ if error.kind == "unforeseen" else error)
    lines = [error.message if isinstance(error, Stopped) else f"error: {error.message}"]
    if resume is not None:
        lines += [error.hint or "The same command goes on from there:", f"  {resume}"]
    elif error.hint:
        lines.append(f"hint: {error.hint}")
    print("\n".join(lines), file=sys.stderr, flush=True)
    return error.exit_code


def command(argv: Sequence[str]) -> str:
    """What to type into a shell to run this again."""
    run = Path(sys.argv[0]).name
    begin = ["ooc"] if run == "ooc" else [sys.executable, "-m", "ooc"]
    return shlex.join([*begin, *argv])
