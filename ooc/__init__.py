"""Vector indexes over collections that do not fit in memory.

    import ooc

    ooc.build("vectors.h5::/emb", "my.ooc", memory="1GiB", metric="cosine")
    with ooc.open_index("my.ooc") as index:
        distances, ids = index.search(queries, k=10)

Everything public is in ``__all__``; the rest of the package may change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The package `ooc.build` is imported before the function of the same name is bound, so that a later
# import of one of its modules does not put the package in the function's place.
import ooc.build as _build_package  # noqa: F401
import ooc.forks  # noqa: F401 - makes forking safe
from ooc.api import (
    append,
    build,
    compact,
    delete,
    export,
    fill,
    gc,
    generations,
    import_index,
    merge,
    plan,
    rollback,
    train,
    upsert,
    verify,
)
from ooc.errors import (
    ArgumentError,
    ConflictError,
    DataError,
    IndexDirError,
    MissingExtraError,
    OocError,
    PlanError,
    RecallWarning,
    ResourceError,
    Stopped,
    StoreError,
)

if TYPE_CHECKING:
    from ooc.build.plan import Plan
    from ooc.evaluation.evaluate import evaluate
    from ooc.evaluation.exact import exact
    from ooc.search.searcher import Index, open_index
    from ooc.stores import Store, create_store, open_store
    from ooc.stores.convert import convert

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ConflictError",
    "DataError",
    "Index",
    "IndexDirError",
    "MissingExtraError",
    "OocError",
    "Plan",
    "PlanError",
    "RecallWarning",
    "ResourceError",
    "Stopped",
    "Store",
    "StoreError",
    "__version__",
    "append",
    "build",
    "compact",
    "convert",
    "create_store",
    "delete",
    "evaluate",
    "exact",
    "export",
    "fill",
    "gc",
    "generations",
    "import_index",
    "merge",
    "open_index",
    "open_store",
    "plan",
    "rollback",
    "train",
    "upsert",
    "verify",
]

#: Where the rest of the public names live: imported when first asked for, so that `import ooc` is
#: quick and a reader of an index pays for nothing it does not use.
_LAZY = {
    "Index": "ooc.search.searcher",
    "Plan": "ooc.build.plan",
    "Store": "ooc.stores",
    "convert": "ooc.stores.convert",
    "create_store": "ooc.stores",
    "evaluate": "ooc.evaluation.evaluate",
    "exact": "ooc.evaluation.exact",
    "open_index": "ooc.search.searcher",
    "open_store": "ooc.stores",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'ooc' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
