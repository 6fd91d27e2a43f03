"""A Zarr store in a directory of which no link leads out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import zarr.storage
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from ooc.stores.inside import refuse_outside

__all__ = ["InsideStore"]


class InsideStore(zarr.storage.LocalStore):
    """As zarr's own; each key is looked at before it is read."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        self._see(key)
        return await super().get(key, prototype, byte_range)

    def get_sync(self, key: str, **options: Any) -> Buffer | None:
        self._see(key)
        return super().get_sync(key, **options)

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Any) -> list[Buffer | None]:
        ranges = list(key_ranges)
        for key, _ in ranges:
            self._see(key)
        return await super().get_partial_values(prototype, ranges)

    async def exists(self, key: str) -> bool:
        self._see(key)
        return await super().exists(key)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        self._see(prefix)
        return super().list_dir(prefix)

    def _see(self, key: str) -> None:
        refuse_outside(self.root / key, self.root, of=str(self.root))
