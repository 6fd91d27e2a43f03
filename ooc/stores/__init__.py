"""Where vectors live: one module a format, one protocol, one opener.

``open_store`` reads, ``create_store`` writes. A format's library is imported when a store of that
format is opened, not before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ooc.stores.base import Block, Store
from ooc.stores.opener import open_store

if TYPE_CHECKING:
    from ooc.stores.write import create_store

__all__ = ["Block", "Store", "create_store", "open_store"]


def __getattr__(name: str) -> Any:
    if name == "create_store":
        return importlib.import_module("ooc.stores.write").create_store
    raise AttributeError(f"module 'ooc.stores' has no attribute {name!r}")
