"""Zarr through fsspec: in memory, and over HTTP from a server on this machine."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import ooc
from ooc.errors import OocError, ResourceError, StoreError
from ooc.stores.convert import convert

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

N, D = 100, 6
ROWS = np.random.default_rng(11).standard_normal((N, D)).astype(np.float32)


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves files, and ranges of them (``bytes=a-b``, ``bytes=-n``), which shards are read by."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        file = Path(self.translate_path(self.path))
        if wanted is None or not file.is_file():
            super().do_GET()
            return
        data = file.read_bytes()
        first, last = wanted.groups()
        begin = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        self.send_response(206)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[begin:end])

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder at an address of this machine, until the block ends."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Files, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check_reads(store: ooc.stores.Store) -> None:
    assert (store.n, store.d, store.dtype.name, store.mapped) == (N, D, "float32", False)
    np.testing.assert_array_equal(store.read(0, N), ROWS)
    picked = np.random.default_rng(2).integers(0, N, 200)
    np.testing.assert_array_equal(store.take(picked), ROWS[picked])
    blocks = np.concatenate([np.array(block.rows) for block in store.blocks(17)])
    np.testing.assert_array_equal(blocks, ROWS)


@pytest.mark.parametrize("options", [{}, {"zarr_format": 2}, {"shard_rows": 64}, {"compression": "zstd"}])
def test_a_store_over_http_reads_like_one_on_disk(tmp_path: Path, options: dict) -> None:
    with ooc.create_store(tmp_path / "x.zarr", d=D, chunk_rows=32, **options) as writer:
        writer.append(ROWS)
    with served(tmp_path) as address, ooc.open_store(f"{address}/x.zarr") as store:
        check_reads(store)
        with ooc.open_store(store.uri) as again, ooc.open_store(tmp_path / "x.zarr") as local:
            assert again.fingerprint() == local.fingerprint()


def test_an_array_in_a_group_over_http_is_named(tmp_path: Path) -> None:
    with ooc.create_store(tmp_path / "x.zarr::/g/emb", d=D, chunk_rows=32) as writer:
        writer.append(ROWS)
    with served(tmp_path) as address, ooc.open_store(f"{address}/x.zarr::/g/emb") as store:
        check_reads(store)


def test_a_store_in_memory_reads_like_one_on_disk() -> None:
    zarr.create_array("memory://ooc-test/x.zarr", data=ROWS, chunks=(32, D))
    with ooc.open_store("memory://ooc-test/x.zarr") as store:
        check_reads(store)
    zarr.create_group("memory://ooc-test/g.zarr").create_array("emb", data=ROWS, chunks=(32, D))
    with ooc.open_store("memory://ooc-test/g.zarr::/emb") as store:
        check_reads(store)


def test_a_remote_store_is_converted(tmp_path: Path) -> None:
    zarr.create_array("memory://ooc-test/c.zarr", data=ROWS, chunks=(32, D))
    convert("memory://ooc-test/c.zarr", tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), ROWS)


def test_a_chunk_that_is_not_there_reads_as_the_fill_value(tmp_path: Path) -> None:
    with ooc.create_store(tmp_path / "x.zarr", d=D, chunk_rows=32) as writer:
        writer.append(ROWS)
    (tmp_path / "x.zarr" / "c" / "1" / "0").unlink()
    expected = ROWS.copy()
    expected[32:64] = 0
    with served(tmp_path) as address, ooc.open_store(f"{address}/x.zarr") as store:
        np.testing.assert_array_equal(store.read(0, N), expected)
        np.testing.assert_array_equal(store.take(np.array([40, 3])), expected[[40, 3]])


def test_a_server_that_goes_away_is_an_error_with_the_address_and_not_zeros(tmp_path: Path) -> None:
    with ooc.create_store(tmp_path / "x.zarr", d=D, chunk_rows=32) as writer:
        writer.append(ROWS)
    with served(tmp_path) as address:
        store = ooc.open_store(f"{address}/x.zarr")
        store.read(0, 32)
    with store:
        with pytest.raises(ResourceError) as caught:
            store.read(32, 64)
        assert caught.value.kind == "store-unreadable"
        assert address in caught.value.message
        with pytest.raises(ResourceError):
            list(store.blocks(10))


def test_a_server_that_was_never_there_and_a_path_that_is_not_on_it(tmp_path: Path) -> None:
    with served(tmp_path) as address:
        with pytest.raises(StoreError) as caught:
            ooc.open_store(f"{address}/nothing.zarr")
        assert caught.value.kind == "store-missing"
        assert f"{address}/nothing.zarr" in caught.value.message
    with pytest.raises(OocError) as gone:
        ooc.open_store(f"{address}/x.zarr")
    assert address in gone.value.message
