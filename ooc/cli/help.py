"""List the pages of documentation, or show one of them, or the options of a verb."""

from __future__ import annotations

import argparse
import difflib
import sys
from importlib import resources

from ooc.cli.text import aligned, heading, print_lines, terminal_width
from ooc.errors import ArgumentError

HELP = "list or show the documentation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="TOPIC", nargs="?", help="a page, or a verb")


def run(args: argparse.Namespace) -> int:
    pages = _pages()
    if args.topic is None:
        titles = [(name, text.partition("\n")[0].lstrip("# ")) for name, text in sorted(pages.items())]
        print_lines([heading("ooc help TOPIC"), *aligned(titles, right=())])
        print_lines(["", "`ooc help VERB` or `ooc VERB --help` shows the options of a verb."])
    elif args.topic in pages:
        _show(pages[args.topic])
    else:
        _show_verb(args.topic, list(pages))
    return 0


def _pages() -> dict[str, str]:
    """Name and text of each page."""
    directory = resources.files("ooc") / "docs"
    return {
        page.name.removesuffix(".md"): page.read_text(encoding="utf-8")
        for page in directory.iterdir()
        if page.name.endswith(".md")
    }


def _show(text: str) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console(width=min(terminal_width(), 100)).print(Markdown(text))
    else:
        print_lines(text.splitlines())


def _show_verb(topic: str, pages: list[str]) -> None:
    from ooc.cli.main import VERBS, make_parser

    if topic in VERBS:
        make_parser().parse_args([topic, "--help"])  # prints and leaves
    close = difflib.get_close_matches(topic, [*pages, *VERBS], n=1)
    raise ArgumentError(
        f"there is no page {topic!r}",
        kind="topic",
        hint=f"Did you mean {close[0]!r}?" if close else "`ooc help` lists the pages.",
    )
