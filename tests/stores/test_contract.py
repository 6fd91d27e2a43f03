"""The contract of stores, for every readable format in every layout that is read differently.

Files are written by the formats' own libraries, so that reading is not tested against our writing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec

from ooc.testing.store_contract import StoreContract
from ooc.types import AnyArray, StoreLike

Maker = Callable[[Path, AnyArray], StoreLike]


def array_as_it_is(directory: Path, x: AnyArray) -> StoreLike:
    return x


def array_with_strides(directory: Path, x: AnyArray) -> StoreLike:
    wide = np.zeros((2 * len(x), x.shape[1] + 3), x.dtype)
    wide[::2, 1 : 1 + x.shape[1]] = x
    return wide[::2, 1 : 1 + x.shape[1]]


def array_big_endian(directory: Path, x: AnyArray) -> StoreLike:
    return x.astype(x.dtype.newbyteorder(">"))


def array_memmap(directory: Path, x: AnyArray) -> StoreLike:
    np.save(directory / "x.npy", x)
    return np.load(directory / "x.npy", mmap_mode="r")


def npy(order: str = "C", byteorder: str = "<") -> Maker:
    def make(directory: Path, x: AnyArray) -> StoreLike:
        np.save(directory / "x.npy", np.asarray(x, x.dtype.newbyteorder(byteorder), order=order))
        return directory / "x.npy"

    return make


def bin_file(suffix: str) -> Maker:
    def make(directory: Path, x: AnyArray) -> StoreLike:
        path = directory / f"x{suffix}"
        path.write_bytes(np.array(x.shape, "<u4").tobytes() + x.tobytes())
        return path

    return make


def vecs(suffix: str) -> Maker:
    def make(directory: Path, x: AnyArray) -> StoreLike:
        dims = np.full((len(x), 1), x.shape[1], "<i4").view(np.uint8)
        rows = np.hstack([dims, np.ascontiguousarray(x).view(np.uint8)])
        (directory / f"x{suffix}").write_bytes(rows.tobytes())
        return directory / f"x{suffix}"

    return make


def hdf5(*, byteorder: str = "<", userblock: int = 0, **options: Any) -> Maker:
    def make(directory: Path, x: AnyArray) -> StoreLike:
        with h5py.File(directory / "x.h5", "w", userblock_size=userblock) as file:
            file["labels"] = np.arange(len(x))
            file.create_dataset("a/emb", data=x.astype(x.dtype.newbyteorder(byteorder)), **options)
        return f"{directory}/x.h5::/a/emb"

    return make


def hdf5_external(directory: Path, x: AnyArray) -> StoreLike:
    with h5py.File(directory / "x.h5", "w") as file:
        external = [(str(directory / "x.raw"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("emb", data=x, external=external)
    return directory / "x.h5"


def hdf5_virtual(directory: Path, x: AnyArray) -> StoreLike:
    layout = h5py.VirtualLayout(x.shape, x.dtype)
    half = len(x) // 2
    for i, part in enumerate((x[:half], x[half:])):
        with h5py.File(directory / f"part{i}.h5", "w") as file:
            file["emb"] = part
        layout[i * half : i * half + len(part)] = h5py.VirtualSource(
            str(directory / f"part{i}.h5"), "emb", part.shape
        )
    with h5py.File(directory / "x.h5", "w") as file:
        file.create_virtual_dataset("emb", layout)
    return directory / "x.h5"


def hdf5_blosc(directory: Path, x: AnyArray) -> StoreLike:
    plugin = pytest.importorskip("hdf5plugin")
    return hdf5(chunks=(50, 7), **plugin.Blosc())(directory, x)


def zarr_array(*, byteorder: str = "<", **options: Any) -> Maker:
    def make(directory: Path, x: AnyArray) -> StoreLike:
        dtype = x.dtype
        if options["zarr_format"] == 2:
            dtype = x.dtype.newbyteorder(byteorder)
        elif byteorder == ">":
            options["serializer"] = BytesCodec(endian="big")
        array = zarr.create_array(str(directory / "x.zarr"), shape=x.shape, dtype=dtype, **options)
        array[:] = x
        return directory / "x.zarr"

    return make


def zarr_index_at_start(directory: Path, x: AnyArray) -> StoreLike:
    from zarr.codecs import ShardingCodec

    array = zarr.create_array(
        str(directory / "x.zarr"),
        shape=x.shape,
        dtype=x.dtype,
        chunks=(128, 8),
        serializer=ShardingCodec(chunk_shape=(64, 4), codecs=[BytesCodec()], index_location="start"),
        compressors=None,
    )
    array[:] = x
    return directory / "x.zarr"


def zarr_group(directory: Path, x: AnyArray) -> StoreLike:
    group = zarr.open_group(str(directory / "x.zarr"), mode="w")
    group.create_array("labels", data=np.arange(len(x)))
    group.create_array("deep/emb", data=x, chunks=(100, 7), compressors=None)
    return directory / "x.zarr"


def zarr_zip(directory: Path, x: AnyArray) -> StoreLike:
    store = zarr.storage.ZipStore(directory / "x.zarr.zip", mode="w")
    zarr.create_array(store, data=x, chunks=(100, 7), compressors=None)
    store.close()
    return directory / "x.zarr.zip"


def zarr_bfloat16(directory: Path, x: AnyArray) -> StoreLike:
    """zarr does not write this dtype: the bits as uint16, then the name in the metadata."""
    zarr.create_array(
        str(directory / "x.zarr"), data=x.view("u2"), chunks=(64, 7), compressors=None, fill_value=0
    )
    path = directory / "x.zarr" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_type": "bfloat16", "fill_value": 0.0}))
    return directory / "x.zarr"


def parts_glob(directory: Path, x: AnyArray) -> StoreLike:
    for i, begin in enumerate(range(0, len(x), 25)):
        np.save(directory / f"part-{i}.npy", x[begin : begin + 25])
    return str(directory / "part-*.npy")


def parts_directory(directory: Path, x: AnyArray) -> StoreLike:
    parts_glob(directory, x)
    (directory / "README").write_text("not a part")
    return directory


def parts_decoded(directory: Path, x: AnyArray) -> StoreLike:
    for i, begin in enumerate(range(0, len(x), 90)):
        with h5py.File(directory / f"part-{i}.h5", "w") as file:
            file.create_dataset("emb", data=x[begin : begin + 90], chunks=(30, 7), compression="gzip")
    return f"{directory}/part-*.h5::/emb"


def parts_mixed(directory: Path, x: AnyArray) -> StoreLike:
    first = npy()(directory, x[:100])
    second = hdf5(chunks=(30, 7), compression="gzip")(directory, x[100:140])
    third = zarr_array(zarr_format=3, chunks=(64, 7), compressors=None)(directory, x[140:])
    return [first, second, third]  # type: ignore[list-item]


V2, V3 = {"zarr_format": 2}, {"zarr_format": 3}
RAW: dict[str, Any] = {"compressors": None}

#: name: maker, mapped, dtype
VARIANTS: dict[str, tuple[Maker, bool, str]] = {
    "Array": (array_as_it_is, False, "float32"),
    "ArrayWithStrides": (array_with_strides, False, "float32"),
    "ArrayBigEndian": (array_big_endian, False, "float64"),
    "ArrayMemmap": (array_memmap, False, "float32"),
    "Npy": (npy(), True, "float32"),
    "NpyFortran": (npy("F"), True, "float32"),
    "NpyBigEndian": (npy(byteorder=">"), True, "float16"),
    "NpyFortranBigEndian": (npy("F", ">"), True, "float64"),
    "Fvecs": (vecs(".fvecs"), True, "float32"),
    "Bvecs": (vecs(".bvecs"), True, "uint8"),
    "Fbin": (bin_file(".fbin"), True, "float32"),
    "U8bin": (bin_file(".u8bin"), True, "uint8"),
    "I8bin": (bin_file(".i8bin"), True, "int8"),
    "F16bin": (bin_file(".f16bin"), True, "float16"),
    "Bf16bin": (bin_file(".bf16bin"), True, "bfloat16"),
    "Hdf5Contiguous": (hdf5(), True, "float32"),
    "Hdf5BigEndian": (hdf5(byteorder=">"), True, "float32"),
    "Hdf5UserBlock": (hdf5(userblock=1024), True, "float16"),
    "Hdf5Chunked": (hdf5(chunks=(64, 7)), True, "float32"),
    "Hdf5ChunkedUserBlock": (hdf5(chunks=(64, 7), userblock=512), True, "int8"),
    "Hdf5ColumnChunks": (hdf5(chunks=(64, 3), byteorder=">"), True, "float64"),
    "Hdf5Gzip": (hdf5(chunks=(64, 3), compression="gzip", shuffle=True), False, "float32"),
    "Hdf5Lzf": (hdf5(chunks=(100, 7), compression="lzf", byteorder=">"), False, "float32"),
    "Hdf5Blosc": (hdf5_blosc, False, "float32"),
    "Hdf5External": (hdf5_external, False, "float32"),
    "Hdf5Virtual": (hdf5_virtual, False, "float32"),
    "Zarr2": (zarr_array(**V2, chunks=(64, 7)), False, "float32"),
    "Zarr2Raw": (zarr_array(**V2, chunks=(64, 7), **RAW), True, "float32"),
    "Zarr2RawBigEndian": (zarr_array(**V2, chunks=(64, 4), byteorder=">", **RAW), True, "float64"),
    "Zarr2RawFortran": (zarr_array(**V2, chunks=(64, 4), order="F", **RAW), False, "float32"),
    "Zarr3": (zarr_array(**V3, chunks=(64, 4)), False, "float16"),
    "Zarr3Raw": (zarr_array(**V3, chunks=(64, 7), **RAW), True, "float32"),
    "Zarr3RawColumns": (zarr_array(**V3, chunks=(100, 3), **RAW), True, "uint8"),
    "Zarr3RawBigEndian": (zarr_array(**V3, chunks=(64, 7), byteorder=">", **RAW), True, "float32"),
    "Zarr3OneChunk": (zarr_array(**V3, chunks=(400, 9), **RAW), True, "float32"),
    "Zarr3Sharded": (zarr_array(**V3, chunks=(32, 4), shards=(128, 8)), False, "float32"),
    "Zarr3ShardedRaw": (zarr_array(**V3, chunks=(32, 4), shards=(128, 8), **RAW), True, "float32"),
    "Zarr3IndexAtStart": (zarr_index_at_start, True, "float32"),
    "ZarrGroup": (zarr_group, True, "float32"),
    "ZarrZip": (zarr_zip, False, "float32"),
    "ZarrBfloat16": (zarr_bfloat16, True, "bfloat16"),
    "PartsGlob": (parts_glob, True, "float32"),
    "PartsDirectory": (parts_directory, True, "float32"),
    "PartsDecoded": (parts_decoded, False, "float32"),
    "PartsMixed": (parts_mixed, False, "float32"),
}


def _contract(maker: Maker, mapped: bool, dtype: str) -> type[StoreContract]:
    class Variant(StoreContract):
        def make(self, directory: Path, x: AnyArray) -> StoreLike:
            return maker(directory, x)

        def vectors(self, n: int | None = None, *, seed: int = 7) -> AnyArray:
            if self.dtype == "bfloat16":
                pytest.importorskip("ml_dtypes")
            return super().vectors(n, seed=seed)

    Variant.mapped, Variant.dtype = mapped, dtype
    return Variant


for _name, _variant in VARIANTS.items():
    globals()[f"Test{_name}"] = _contract(*_variant)
