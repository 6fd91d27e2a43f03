"""What every store promises, as tests: for the formats in ``ooc`` and for those written elsewhere.

class TestMyStore(StoreContract):
    mapped = False

    def make(self, directory, x):
        write_my_format(directory / "x.mine", x)
        return MyStore(directory / "x.mine")
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from ooc.errors import ArgumentError
from ooc.stores import Store, open_store
from ooc.stores.base import DTYPES
from ooc.types import AnyArray, StoreLike

__all__ = ["StoreContract"]


class StoreContract:
    """Tests of one kind of store; a subclass says how to make it.

    Attributes
    ----------
    shape : (n, d)
        Of the array that ``make`` is given; ``n`` at least 100.
    dtype : str
        Its dtype.
    mapped : bool, optional
        What ``Store.mapped`` must be; ``None`` where either is right.
    """

    shape: ClassVar[tuple[int, int]] = (300, 7)
    dtype: ClassVar[str] = "float32"
    mapped: ClassVar[bool | None] = None

    def make(self, directory: Path, x: AnyArray) -> StoreLike:
        """Write ``x`` into the empty directory; return what ``open_store`` takes."""
        raise NotImplementedError

    def vectors(self, n: int | None = None, *, seed: int = 7) -> AnyArray:
        """The first ``n`` rows of the array to write."""
        n = self.shape[0] if n is None else n
        rng = np.random.default_rng(seed)
        return (rng.standard_normal((n, self.shape[1])) * 40 + 60).astype(self.dtype)

    @contextmanager
    def opened(self, directory: Path, x: AnyArray, name: str = "store") -> Iterator[Store]:
        """The array as an open store, in a directory of its own."""
        place = directory / name
        place.mkdir()
        with open_store(self.make(place, x)) as store:
            yield store

    def test_says_what_it_is(self, tmp_path: Path) -> None:
        x = self.vectors()
        with self.opened(tmp_path, x) as store:
            assert (store.n, store.d) == x.shape
            assert store.dtype == x.dtype.newbyteorder("=")
            assert store.dtype.isnative
            assert store.dtype.name in DTYPES
            assert store.row_bytes == x.shape[1] * x.dtype.itemsize
            assert store.nbytes == x.size * x.dtype.itemsize
            assert store.format
            assert f"{store.n} x {store.d} {store.dtype.name}" in repr(store)
            if self.mapped is not None:
                assert store.mapped is self.mapped

    def test_chunks_cover_the_rows_in_order(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, self.vectors()) as store:
            starts = store.chunk_starts
            assert starts.dtype == np.int64
            assert (starts[0], starts[-1]) == (0, store.n)
            assert (np.diff(starts) > 0).all()
            if store.mapped or not store.uri:
                assert store.chunk_bytes == 0
            else:
                assert store.chunk_bytes > 0

    def test_reads_any_span(self, tmp_path: Path) -> None:
        x = self.vectors()
        n = len(x)
        with self.opened(tmp_path, x) as store:
            edges = sorted({0, 1, 17, 64, n // 2, n - 1, n, *store.chunk_starts[:4].tolist()})
            for start in edges:
                for stop in edges:
                    if start <= stop:
                        rows = store.read(start, stop)
                        assert rows.shape == (stop - start, store.d)
                        assert rows.dtype == store.dtype
                        np.testing.assert_array_equal(rows, x[start:stop])

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4), (0, 10**6), (10**6, 10**6 + 1)])
    def test_refuses_a_span_outside(self, tmp_path: Path, start: int, stop: int) -> None:
        with self.opened(tmp_path, self.vectors()) as store, pytest.raises(ArgumentError, match="rows"):
            store.read(start, stop)

    def test_takes_rows_in_the_order_asked_for(self, tmp_path: Path) -> None:
        x = self.vectors()
        n = len(x)
        rng = np.random.default_rng(3)
        asked: list[AnyArray] = [
            rng.integers(0, n, 3 * n),
            np.arange(n)[::-1],
            np.array([n - 1, 0, 0, n // 2, n - 1], np.int32),
            np.array([n // 3], np.uint64),
            np.arange(10, 40),
        ]
        with self.opened(tmp_path, x) as store:
            for rows in asked:
                taken = store.take(rows)
                assert taken.dtype == store.dtype
                assert taken.flags.c_contiguous
                np.testing.assert_array_equal(taken, x[rows.astype(np.int64)])

    def test_takes_no_rows(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, self.vectors()) as store:
            taken = store.take(np.empty(0, np.int64))
            assert taken.shape == (0, store.d)
            assert taken.dtype == store.dtype

    def test_taken_rows_are_a_copy(self, tmp_path: Path) -> None:
        x = self.vectors()
        with self.opened(tmp_path, x.copy()) as store:
            store.take(np.arange(5))[...] = 0
            np.testing.assert_array_equal(store.read(0, 5), x[:5])

    @pytest.mark.parametrize(
        "rows", [np.array([0, -1]), np.array([10**6]), np.array([0.5]), np.zeros((2, 2), np.int64)]
    )
    def test_refuses_rows_that_are_not_there(self, tmp_path: Path, rows: AnyArray) -> None:
        with self.opened(tmp_path, self.vectors()) as store, pytest.raises(ArgumentError, match="row"):
            store.take(rows)

    @pytest.mark.parametrize("rows", [7, 64, 100, 1000])
    def test_blocks_tile_the_rows(self, tmp_path: Path, rows: int) -> None:
        x = self.vectors()
        with self.opened(tmp_path, x) as store:
            at = 0
            for block in store.blocks(rows):
                assert block.start == at
                assert len(block.rows) == min(rows, len(x) - at)
                np.testing.assert_array_equal(block.rows, x[at : at + rows])
                at += rows
            assert at >= len(x)

    def test_blocks_of_a_part(self, tmp_path: Path) -> None:
        x = self.vectors()
        with self.opened(tmp_path, x) as store:
            got = [(b.start, b.rows.copy()) for b in store.blocks(20, start=13, stop=90)]
            assert [start for start, _ in got] == [13, 33, 53, 73]
            np.testing.assert_array_equal(np.concatenate([rows for _, rows in got]), x[13:90])
            assert list(store.blocks(20, start=13, stop=13)) == []
            for wrong in ({"start": -1}, {"start": 5, "stop": 4}, {"stop": len(x) + 1}):
                with pytest.raises(ArgumentError):
                    store.blocks(20, **wrong)
            with pytest.raises(ArgumentError):
                store.blocks(0)

    def test_blocks_can_be_left_early(self, tmp_path: Path) -> None:
        before = threading.active_count()
        x = self.vectors()
        with self.opened(tmp_path, x) as store:
            blocks = store.blocks(10)
            np.testing.assert_array_equal(next(blocks).rows, x[:10])
            blocks.close()  # type: ignore[attr-defined]
            assert not [t for t in threading.enumerate() if t.name == "ooc-read-ahead"]
            np.testing.assert_array_equal(store.read(0, len(x)), x)
        assert threading.active_count() <= before + 8  # libraries may keep pools of their own

    def test_advice_changes_no_result(self, tmp_path: Path) -> None:
        x = self.vectors()
        with self.opened(tmp_path, x) as store:
            store.will_need(0, store.n)
            np.testing.assert_array_equal(store.read(3, 200), x[3:200])
            store.forget(0, store.n)
            store.will_need(5, 5)
            store.will_take(np.array([store.n - 1, 0, 0]))
            store.will_take(np.empty(0, np.int64))
            store.forget(5, 5)
            np.testing.assert_array_equal(store.read(3, 200), x[3:200])

    def test_fingerprint_knows_the_first_rows(self, tmp_path: Path) -> None:
        x = self.vectors()
        n = len(x) - 40
        with self.opened(tmp_path, x, "whole") as store:
            whole, first = store.fingerprint(), store.fingerprint(n)
            assert store.fingerprint() == whole
        with self.opened(tmp_path, x[:n].copy(), "first") as store:
            assert store.fingerprint() == first
        with self.opened(tmp_path, x[::-1].copy(), "reversed") as store:
            assert store.fingerprint() != whole
        with self.opened(tmp_path, x + np.ones((), x.dtype), "changed") as store:
            assert store.fingerprint() != whole
            with pytest.raises(ArgumentError):
                store.fingerprint(store.n + 1)

    def test_serves_several_threads(self, tmp_path: Path) -> None:
        x = self.vectors()

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(6):
                rows = rng.integers(0, len(x), 50)
                np.testing.assert_array_equal(store.take(rows), x[rows])
                start, stop = np.sort(rng.integers(0, len(x) + 1, 2)).tolist()
                np.testing.assert_array_equal(store.read(start, stop), x[start:stop])

        with self.opened(tmp_path, x) as store, ThreadPoolExecutor(4) as threads:
            for done in [threads.submit(work, seed) for seed in range(4)]:
                done.result()

    def test_closes_twice(self, tmp_path: Path) -> None:
        with self.opened(tmp_path, self.vectors()) as store:
            store.read(0, 3)
            store.close()
            store.close()

    def test_rows_outlive_the_store(self, tmp_path: Path) -> None:
        x = self.vectors()
        with self.opened(tmp_path, x) as store:
            rows = store.read(2, 90)
        np.testing.assert_array_equal(rows, x[2:90])

    def test_opens_again_by_its_uri(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        x = self.vectors()
        with self.opened(tmp_path, x) as store:
            uri, fingerprint = store.uri, store.fingerprint()
            if not uri:
                assert store.format in ("array", "scaled")
                return
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        monkeypatch.chdir(elsewhere)
        with open_store(uri) as again:
            assert again.uri == uri
            assert again.fingerprint() == fingerprint
            np.testing.assert_array_equal(again.read(0, len(x)), x)
