"""Options that several verbs share, and how they choose where progress goes."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ooc.events import Event
from ooc.units import DEFAULT_MEMORY

if TYPE_CHECKING:
    from ooc.cli.progress import Display

__all__ = [
    "add_copies",
    "add_copy_dtype",
    "add_json",
    "add_keys",
    "add_memory",
    "add_metric",
    "add_on_bad",
    "add_plan_options",
    "add_progress",
    "add_scratch",
    "add_threads",
    "plan_options",
    "print_json",
    "watching",
]


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """``--quiet`` and ``--log-json``."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quiet", action="store_true", help="show no progress; errors are shown still")
    how.add_argument(
        "--log-json",
        action="store_true",
        help="write events and errors to stderr as JSON lines, and nothing else there",
    )


def add_memory(
    parser: argparse.ArgumentParser,
    about: str = "budget of private memory of the whole process, as in 512MiB",
) -> None:
    """``--memory``."""
    parser.add_argument("--memory", metavar="SIZE", default=DEFAULT_MEMORY, help=about)


def add_metric(parser: argparse.ArgumentParser) -> None:
    """``--metric``."""
    parser.add_argument(
        "--metric",
        choices=("l2", "ip", "cosine"),
        default="l2",
        help="l2: squared distances, ascending; ip and cosine: similarities, descending",
    )


def add_threads(parser: argparse.ArgumentParser, what: str = "threads to use") -> None:
    """``--threads``."""
    about = f"{what} (default: the processors this process may use)"
    parser.add_argument("--threads", type=int, metavar="N", help=about)


def add_on_bad(parser: argparse.ArgumentParser) -> None:
    """``--on-bad``."""
    parser.add_argument(
        "--on-bad",
        choices=("stop", "skip"),
        default="stop",
        help="at rows with NaN or infinity: stop, or leave them out",
    )


def add_copies(parser: argparse.ArgumentParser) -> None:
    """``--copy-vectors`` and ``--copy-dtype``."""
    parser.add_argument(
        "--copy-vectors",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether the index keeps its own rows for exact re-ranking; "
        "auto: where the store cannot be mapped, or --copy-dtype is given",
    )
    add_copy_dtype(parser)


def add_copy_dtype(parser: argparse.ArgumentParser) -> None:
    """``--copy-dtype``."""
    parser.add_argument(
        "--copy-dtype",
        choices=("store", "float16", "int8"),
        default="store",
        help="dtype of those rows: as in the store, or smaller with a loss that is measured; "
        "int8 has a scale for each row",
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """What decides an index and its build, under the names that the Python functions have."""
    add = parser.add_argument
    add_memory(parser)
    add_metric(parser)
    add(
        "--factory",
        metavar="CODE",
        help="faiss factory string, as in HR,IVF4096,RaBitQ2 or SQ8; what is left out is planned "
        "(default: chosen by rows and dimensions)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the sample, the rotation and k-means")
    add("--shard-rows", type=int, metavar="N", help="rows of a shard (default: from the budget)")
    add_threads(parser)
    add_copies(parser)
    add(
        "--spill",
        choices=("off", "on"),
        default="off",
        help="whether each row is in a second list too: twice the bytes of lists, of which some collections "
        "then need far fewer for the same recall, and others more; see `ooc help plan`",
    )
    add_on_bad(parser)
    add(
        "--template",
        metavar="INDEX",
        help="reuse the trained template of this index, its code and its lists; nothing is trained then",
    )
    add(
        "--queries",
        metavar="QUERIES",
        help="queries of the kind that will be asked, by which recall is measured: any store "
        "(default: rows of STORE)",
    )
    add_keys(parser, "a key for each row, each once")


def add_keys(parser: argparse.ArgumentParser, about: str) -> None:
    """``--keys``."""
    forms = "a text file (a key a line), .npy, PATH::column of Parquet or Arrow, PATH::/name in HDF5 or Zarr"
    parser.add_argument("--keys", metavar="KEYS", help=f"{about}: {forms}")


def add_scratch(parser: argparse.ArgumentParser) -> None:
    """``--scratch``."""
    parser.add_argument(
        "--scratch",
        metavar="DIR",
        help="where sample and shards go until the index is published (default: into INDEX)",
    )


def plan_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of ``ooc.plan`` and ``ooc.build``."""
    names = (
        "memory",
        "metric",
        "factory",
        "seed",
        "shard_rows",
        "threads",
        "copy_vectors",
        "copy_dtype",
        "spill",
        "on_bad",
        "template",
        "queries",
        "keys",
    )
    return {name: getattr(args, name) for name in names}


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


@contextlib.contextmanager
def watching(args: argparse.Namespace, title: str) -> Iterator[Display]:
    """The observer that ``--quiet`` and ``--log-json`` ask for, or the display."""
    if args.log_json:
        from ooc.cli.jsonlog import JsonLog

        yield JsonLog(sys.stderr)
    elif args.quiet:
        yield _Quiet()
    else:
        from ooc.cli.progress import display  # brings rich

        with display(sys.stderr, title=title) as shown:
            yield shown


class _Quiet:
    def __call__(self, event: Event) -> None:
        pass

    def stopping(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)
