"""The page ``ooc/docs/cli.md``, made from the parsers and the errors.

    python -m ooc.cli.reference > ooc/docs/cli.md

A test sees to it that the page is as the parsers are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from ooc import errors
from ooc.cli.main import EXIT_BROKEN_PIPE, EXIT_UNFORESEEN, make_parser

__all__ = ["reference"]

_INTRODUCTION = """\
# The command line

Results go to stdout, progress and messages to stderr. A store is named `PATH`, `PATH::/dataset`
inside HDF5 or a Zarr group, by a pattern such as `'part-*.npy'`, or by a URL that Zarr can open.
Sizes are written as in `512MiB` (powers of 1024) or `1GB` (powers of 1000).

- `--json` prints one JSON document on stdout. When the command fails, it is
  `{"error": {"kind": ..., "message": ..., "hint": ...}}`; `kind` is a stable word.
- `--log-json` writes the events of a long operation to stderr as JSON lines, and nothing else
  there; an error is the last line, with `"event": "error"`.
- On a terminal progress is one live display; `NO_COLOR` is respected. Elsewhere it is lines with the
  time of day, at most one every ten seconds besides starts and ends of stages.
- Ctrl-C (or SIGTERM) asks a build or a conversion to stop at a safe point, and prints the command that goes
  on; a second one ends the process at once. Nothing that was finished is lost either way. A search into a
  file stops after the queries it is at, and leaves no file; so do `exact` and `eval`.
- `OOC_DEBUG=1` adds the traceback to an error.

This page is made from the program: `python -m ooc.cli.reference`.
"""


def reference() -> str:
    """The page as Markdown."""
    return "\n".join([_INTRODUCTION, *_verbs(), *_exit_codes()]) + "\n"


def _verbs() -> Iterator[str]:
    parser = make_parser()
    choices = next(
        action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    for name, verb in choices.items():
        yield f"## ooc {name}\n"
        yield f"{verb.description}\n"
        actions = [action for action in verb._actions if not isinstance(action, argparse._HelpAction)]
        places = [action for action in actions if not action.option_strings]
        options = [action for action in actions if action.option_strings]
        words = [f"[{a.metavar}]" if a.nargs == "?" else f"{a.metavar}" for a in places]
        yield f"    {' '.join(['ooc', name, *words, *(['[options]'] if options else [])])}\n"
        for action in (*places, *options):
            yield _entry(action)
        yield ""


def _entry(action: argparse.Action) -> str:
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else None)
    if not action.option_strings:
        name = f"{value}"
    else:
        name = ", ".join(action.option_strings) + (f" {value}" if value and action.nargs != 0 else "")
    told = f"; default {action.default}" if action.default not in (None, False) else ""
    return f"- `{name}`: {action.help}{told}"


def _exit_codes() -> Iterator[str]:
    yield "## Exit codes\n"
    yield "| code | class | meaning |"
    yield "|---:|---|---|"
    yield "| 0 | | success; building again what is built already is one |"
    yield f"| {EXIT_UNFORESEEN} | | an error that `ooc` did not foresee |"
    classes = [getattr(errors, name) for name in errors.__all__ if name not in ("OocError", "RecallWarning")]
    for cls in sorted(classes, key=lambda cls: int(cls.exit_code)):
        meaning = (cls.__doc__ or "").partition("\n")[0].rstrip(".")
        yield f"| {cls.exit_code} | `{cls.__name__}` | {meaning} |"
    yield f"| {EXIT_BROKEN_PIPE} | | whoever read the results went away (`ooc search ... \\| head`) |"


if __name__ == "__main__":
    sys.stdout.write(reference())
