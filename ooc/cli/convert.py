"""Copy vectors from one store format to another; run again after an interruption, it goes on."""

from __future__ import annotations

import argparse

from ooc.cli.options import add_json, add_progress, print_json, watching
from ooc.cli.signals import stop_on_signals
from ooc.cli.text import print_lines
from ooc.units import format_bytes, format_count, format_seconds

HELP = "copy a store into another format"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("src", metavar="SRC", help="vectors: PATH, PATH::/dataset, a pattern, or a URL")
    add(
        "dst",
        metavar="DST",
        help="where to: the suffix says the format (.zarr .h5 .npy .fvecs .bvecs .fbin .u8bin .i8bin "
        ".parquet .arrow)",
    )
    add("--dtype", metavar="NAME", help="what to store, as in float16 (default: the source's)")
    add("--chunk-rows", type=int, metavar="N", help="rows of a chunk, for the formats that have them")
    add(
        "--compression",
        metavar="NAME",
        help="as in zstd, gzip, lz4 (default: none, so that the result can be memory-mapped)",
    )
    add("--memory", metavar="SIZE", default="256MiB", help="bound on what the conversion itself takes")
    add("--overwrite", action="store_true", help="replace what is at DST, once the new store is whole")
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    from ooc.stores.convert import convert

    with watching(args, f"convert {args.dst}") as shown, stop_on_signals(shown.stopping) as stop:
        figures = convert(
            args.src,
            args.dst,
            dtype=args.dtype,
            chunk_rows=args.chunk_rows,
            compression=args.compression,
            memory=args.memory,
            overwrite=args.overwrite,
            observer=shown,
            stop=stop,
        )
    if args.json:
        print_json(figures)
    else:
        shape = f"{format_count(figures['rows'])} x {figures['d']} {figures['dtype']}"
        took = f"{format_bytes(figures['bytes'])}, in {format_seconds(figures['seconds'])}"
        print_lines([f"{figures['path']}: {shape} as {figures['format']}, {took}"])
    return 0
