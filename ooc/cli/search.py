"""Search an index with the queries of a store, and print the hits or write them to a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from ooc.cli.options import add_json, add_progress, print_json, watching
from ooc.cli.signals import say, stop_on_signals
from ooc.cli.text import aligned, pairs, print_lines
from ooc.errors import ArgumentError
from ooc.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from ooc.search.filters import Filter
    from ooc.search.searcher import Index
    from ooc.types import AnyArray, FloatArray, IntArray

    #: The first query's number; distances, ids and, where rows have some, keys.
    _Found: TypeAlias = tuple[int, FloatArray, IntArray, AnyArray | None]

HELP = "search an index with the queries of a store"

#: Queries searched together where hits are printed: the first are seen soon.
_BLOCK_QUERIES = 256

#: A JSON document larger than this waits in a temporary file.
_KEPT_BYTES = 16 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("index", metavar="INDEX", help="directory of the index")
    add("queries", metavar="QUERIES", help="queries: any store, as a build takes")
    add("-k", type=int, default=10, metavar="N", help="hits a query")
    add(
        "--recall",
        type=float,
        metavar="R",
        help="share of the true neighbours that shall be found, by what the build measured (default: 0.95); "
        "1 compares all rows",
    )
    add("--nprobe", type=int, metavar="N", help="instead of a recall: lists to look into")
    add(
        "--rerank",
        type=int,
        metavar="N",
        help="candidates re-ranked by exact distance, 0 for none (default: what the recall takes)",
    )
    add("--first", type=int, metavar="N", help="only the first N queries")
    add(
        "--out",
        metavar="FILE",
        help="write distances and ids to FILE instead of printing them, as they come: any number of queries; "
        "the suffix says the format (.npz .h5 .zarr .parquet)",
    )
    add("--overwrite", action="store_true", help="replace FILE, once the new one is whole")
    add(
        "--batch",
        type=int,
        metavar="N",
        help="queries searched together (default: as many as take 128 MiB, at most 16384); with --out",
    )
    add(
        "--where",
        metavar="SQL",
        help="only rows that meet this condition on the columns of TABLE, as in "
        "\"lang = 'en' AND year > 2020\"",
    )
    add(
        "--metadata",
        metavar="TABLE",
        help="a table beside the rows (Parquet, Arrow, Feather): a row for each id, in their order, or with "
        "a column id",
    )
    add(
        "--parameter",
        action="append",
        metavar="VALUE",
        help="a value for a ? of --where, in their order: bound, never pasted; read as JSON (2020, true, "
        '"en"), or else as text; may be repeated',
    )
    add("--store", metavar="STORE", help="where the indexed vectors are now, if they were moved")
    add(
        "--memory",
        metavar="SIZE",
        help="memory that the search may use, as 256MiB (default: plans for 1 GiB)",
    )
    add(
        "--explain",
        action="store_true",
        help="instead of hits, tell what the search of all queries took: lists, reads, candidates, times",
    )
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    for name in ("first", "batch"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ArgumentError(f"--{name} must be at least 1, not {value}", kind=name)
    for name in ("overwrite", "batch"):
        if getattr(args, name) and not args.out:
            raise ArgumentError(f"--{name} goes with --out", kind="usage")
    if (args.where is None) != (args.metadata is None):
        raise ArgumentError("--where and --metadata go together", kind="usage")
    if args.parameter and args.where is None:
        raise ArgumentError("--parameter goes with --where", kind="usage")
    if args.explain and args.out:
        raise ArgumentError("--explain finds nothing to write to --out", kind="usage")
    from ooc.search.searcher import open_index

    with open_index(args.index, store=args.store, memory=args.memory, metadata=args.metadata) as index:
        if args.out:
            return _to_file(args, index)
        return _explain(args, index) if args.explain else _print(args, index)


def _parameters(args: argparse.Namespace) -> list[Any] | None:
    """What is bound to the condition."""
    return None if args.parameter is None else [_value(text) for text in args.parameter]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _allowed(args: argparse.Namespace, index: Index) -> Filter | None:
    """What the condition allows; None where there is none."""
    return None if args.where is None else index.filter(where=args.where, parameters=_parameters(args))


def _to_file(args: argparse.Namespace, index: Index) -> int:
    with watching(args, f"search {args.index}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = index.search_to(
            args.queries,
            args.out,
            k=args.k,
            recall=args.recall,
            nprobe=args.nprobe,
            rerank=args.rerank,
            where=args.where,
            parameters=_parameters(args),
            first=args.first,
            batch=args.batch,
            overwrite=args.overwrite,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        what = f"{args.k} hits each of {format_count(figures['nq'])} queries"
        print_lines([f"{figures['out']}: {what}, in {format_seconds(figures['seconds'])}"])
    return 0


def _print(args: argparse.Namespace, index: Index) -> int:
    from ooc.search.stream import search_blocks, search_settings
    from ooc.stores import open_store

    allowed = _allowed(args, index)
    with open_store(args.queries) as queries, stop_on_signals(say) as stop:
        found = search_blocks(
            index,
            queries,
            k=args.k,
            recall=args.recall,
            nprobe=args.nprobe,
            rerank=args.rerank,
            filter=allowed,
            nq=args.first,
            batch=_BLOCK_QUERIES,
            stop=stop,
        )
        if args.json:
            settings = search_settings(index, args.k, args.recall, args.nprobe, args.rerank, allowed)
            _print_json(settings, found)
        else:
            _print_table(found)
    return 0


def _explain(args: argparse.Namespace, index: Index) -> int:
    """What a search of all queries together took, as a table or JSON."""
    from ooc.search.stream import search_settings
    from ooc.stores import open_store
    from ooc.stores.base import as_float32

    allowed = _allowed(args, index)
    asked: dict[str, Any] = {
        "recall": args.recall,
        "nprobe": args.nprobe,
        "rerank": args.rerank,
        "filter": allowed,
    }
    with open_store(args.queries) as queries, stop_on_signals(say) as stop:
        some = as_float32(queries.read(0, min(args.first or queries.n, queries.n)))
        done = index.explain(some, args.k, **asked, stop=stop)
    if args.json:
        print_json(search_settings(index, args.k, **asked) | dataclasses.asdict(done))
        return 0

    def read(bytes_: int, reads: int) -> str:
        return f"{format_bytes(bytes_)}, {format_count(reads)} reads asked for"

    stages = [(stage, f"{seconds * 1e3:.2f} ms") for stage, seconds in done.seconds.items()]
    print_lines(
        [
            *pairs(
                [
                    ("queries", format_count(done.queries)),
                    ("nprobe, rerank", f"{done.nprobe}, {done.rerank}"),
                    ("lists", f"{format_count(done.lists)}, {format_count(done.entries)} entries"),
                    ("", read(done.list_bytes, done.list_reads)),
                    ("candidates", format_count(done.candidates)),
                    ("rows", f"{format_count(done.rows)} compared"),
                    ("", read(done.row_bytes, done.row_reads)),
                ]
            ),
            "",
            *aligned([("stage", "time"), *stages], right=(1,)),
        ]
    )
    return 0


def _print_table(found: Iterator[_Found]) -> None:
    """A line a hit, with its query: good to read and to cut into columns."""
    for start, distances, ids, keys in found:
        named = [] if keys is None else [[_shown(key) for key in line] for line in keys.tolist()]
        rows = [
            (str(query), str(rank + 1), str(hit), *([named[line][rank]] if named else ()), f"{distance:.6g}")
            for line, (query, near, hits) in enumerate(
                zip(range(start, start + len(ids)), distances.tolist(), ids.tolist(), strict=True)
            )
            for rank, (distance, hit) in enumerate(zip(near, hits, strict=True))
            if hit >= 0
        ]
        head = ("query", "rank", "id", *(("key",) if named else ()), "distance")
        header = [head] if start == 0 else []
        print_lines(aligned([*header, *rows], right=range(len(head))))


def _shown(key: object) -> str:
    """A key on one line."""
    text = str(key)
    return text if text.isprintable() else repr(text)[1:-1]


def _print_json(settings: dict[str, Any], found: Iterator[_Found]) -> None:
    """One document. It is kept aside until it is whole: an error must not leave half of one on stdout."""
    begin = json.dumps(settings).removesuffix("}") + ', "results": [\n'
    with tempfile.SpooledTemporaryFile(_KEPT_BYTES, mode="w+") as document:
        for start, distances, ids, keys in found:
            for i, (line, hits) in enumerate(zip(distances, ids.tolist(), strict=True)):
                # The shortest digits that give the same float32; where there is no hit, no distance.
                short = [float(str(value)) for value in line]
                shown = [value if math.isfinite(value) else None for value in short]
                result: dict[str, Any] = {"query": start + i, "ids": hits, "distances": shown}
                if keys is not None:
                    result["keys"] = [
                        None if hit < 0 else key for hit, key in zip(hits, keys[i].tolist(), strict=True)
                    ]
                document.write(f"{begin}{json.dumps(result)}")
                begin = ",\n"
        document.write("\n]}\n")
        document.seek(0)
        shutil.copyfileobj(document, sys.stdout)
