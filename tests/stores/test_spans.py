"""Spans of stores read as one: what one store would give, whatever they are, and compared where they lie."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ooc import mapping
from ooc.errors import StoreError
from ooc.mapping import MappedFile
from ooc.stores import Store, open_store
from ooc.stores.scaled import ScaledStore, to_int8
from ooc.stores.spans import Span, SpannedStore
from ooc.types import AnyArray

N, D = 40, 6


def npy(path: Path, x: AnyArray) -> Callable[[], Store]:
    np.save(path.with_suffix(".npy"), x)
    return lambda: open_store(path.with_suffix(".npy"))


def fvecs(path: Path, x: AnyArray) -> Callable[[], Store]:
    d = np.full((len(x), 1), x.shape[1], np.int32)
    np.concatenate((d, x.view(np.int32)), axis=1).tofile(path.with_suffix(".fvecs"))
    return lambda: open_store(path.with_suffix(".fvecs"))


def parquet(path: Path, x: AnyArray) -> Callable[[], Store]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"v": pa.array(list(x))}), path.with_suffix(".parquet"))
    return lambda: open_store(path.with_suffix(".parquet"))


def half(path: Path, x: AnyArray) -> Callable[[], Store]:
    return npy(path, x.astype(np.float16))


def swapped(path: Path, x: AnyArray) -> Callable[[], Store]:
    return npy(path, x.astype(">f4"))


def in_memory(path: Path, x: AnyArray) -> Callable[[], Store]:
    return lambda: open_store(x)


def strided(path: Path, x: AnyArray) -> Callable[[], Store]:
    wide = np.zeros((len(x), 3 * x.shape[1]), np.float32)
    wide[:, : x.shape[1]] = x
    return lambda: open_store(wide[:, : x.shape[1]])


def scaled(path: Path, x: AnyArray) -> Callable[[], Store]:
    values, scales = to_int8(x)
    np.save(path.with_suffix(".values.npy"), values)
    np.save(path.with_suffix(".scales.npy"), scales)

    def opened() -> Store:
        parts = [open_store(path.with_suffix(f".{name}.npy")) for name in ("values", "scales")]
        return ScaledStore(*parts)  # type: ignore[arg-type]

    return opened


MAKERS = (npy, fvecs, parquet, half, swapped, in_memory, strided, scaled)


@given(
    kinds=st.lists(st.sampled_from(MAKERS), min_size=1, max_size=5),
    asked=st.lists(st.lists(st.integers(0, N - 1), max_size=30), min_size=1, max_size=4),
    data=st.data(),
)
def test_rows_of_any_stores_are_what_one_array_has(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[Callable[[Path, AnyArray], Callable[[], Store]]],
    asked: list[list[int]],
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("spans")
    # Halves: every dtype holds them, and with 127 in each row int8 does.
    x = np.random.default_rng(0).integers(-20, 20, (len(kinds), N, D)).astype(np.float32)
    x[:, :, 0] = 127
    spans, expected = [], []
    for i, kind in enumerate(kinds):
        first = data.draw(st.integers(0, N - 8))
        spans.append(Span(open=kind(directory / str(i), x[i]), first=first, rows=N - first - 4))
        expected.append(x[i, first : N - 4])
    whole = np.concatenate(expected)
    with SpannedStore(spans, D, mapped=False) as store:
        for some in asked:
            rows = np.array(some, np.int64) * len(whole) // N
            assert store.will_take(rows) >= 0
            np.testing.assert_array_equal(store.gather(rows), whole[rows])
            np.testing.assert_array_equal(store.take(rows), whole[rows])
            placed = store.in_place(rows)
            if placed is not None:
                np.testing.assert_array_equal(placed[0][placed[1]], whole[rows])
            elif len(rows) and len(kinds) == 1:
                assert kinds[0] not in (npy, in_memory)
        np.testing.assert_array_equal(store.read(0, store.n), whole)


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="places mappings")
@pytest.mark.parametrize("d", [1, 3, 96, 100, 256, 769, 1024, 2048])
def test_float32_files_are_compared_in_their_place(tmp_path: Path, d: int) -> None:
    rng = np.random.default_rng(d)
    parts = [rng.standard_normal((n, d), dtype=np.float32) for n in (50, 7, 1, 30)]
    spans = [Span(open=npy(tmp_path / str(i), x), first=0, rows=len(x)) for i, x in enumerate(parts)]
    with SpannedStore(spans, d, mapped=True) as store:
        rows = rng.integers(0, 88, 60)
        placed = store.in_place(rows)
        assert placed is not None
        array, places = placed
        assert array.flags.c_contiguous
        assert array.flags.aligned
        assert (places >= 0).all()
        np.testing.assert_array_equal(array[places], np.concatenate(parts)[rows])
        del array, placed
    with pytest.raises(StoreError, match="closed"):
        store.gather(rows)


def test_where_mappings_cannot_be_placed_rows_are_gathered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "_placed", lambda *_: None)
    x = np.random.default_rng(0).standard_normal((3, N, 100)).astype(np.float32)
    spans = [Span(open=npy(tmp_path / str(i), x[i]), first=0, rows=N) for i in range(3)]
    with SpannedStore(spans, 100, mapped=True) as store:
        rows = np.arange(3 * N)[::-1]
        np.testing.assert_array_equal(store.take(rows), x.reshape(-1, 100)[rows])


def test_only_stores_whose_rows_are_wanted_are_opened(tmp_path: Path) -> None:
    def missing() -> Store:
        raise StoreError("it is gone", kind="store-missing")

    x = np.ones((N, D), np.float32)
    spans = [Span(open=npy(tmp_path / "x", x), first=0, rows=N), Span(open=missing, first=0, rows=N)]
    with SpannedStore(spans, D, mapped=True) as store:
        assert store.in_place(np.arange(N)) is not None
        with pytest.raises(StoreError, match="gone"):
            store.in_place(np.arange(N, 2 * N))


@pytest.mark.parametrize(("first", "width"), [(128, 400), (4096, 3076), (8, 8192), (0, 12)])
def test_a_placed_file_reads_like_any_and_goes_with_its_last_array(
    tmp_path: Path, first: int, width: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    mapped = MappedFile(path, random=True, rows=(first, width))
    other = MappedFile(path, rows=(first, width))
    assert (mapped.bytes.ctypes.data - other.bytes.ctypes.data) % width == 0
    mapped.will_need(0, mapped.size)
    mapped.drop(0, mapped.size)
    part = mapped.bytes[5:19_999]
    assert not part.flags.writeable
    mapped.close()
    mapped.close()
    assert mapped.will_need(0, 10) == 0
    assert part.tobytes() == path.read_bytes()[5:19_999]
