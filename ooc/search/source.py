"""Where the rows for exact distances are: the index's own copy, or the store that was indexed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ooc.errors import ConflictError, StoreError
from ooc.index.segment import Segment
from ooc.stores import Store, open_store
from ooc.types import StoreLike

__all__ = ["Source"]


class Source:
    """Opens the rows when they are first needed, and sees that they are those that were indexed.

    Safe from several threads.

    Parameters
    ----------
    name : str
        The index, for messages.
    record : mapping
        Of the generation.
    segment : Segment
        May have rows of its own.
    store : store, optional
        Where the rows are now; opened and checked at once.

    Raises
    ------
    StoreError, ConflictError
        ``store`` cannot be read, or does not hold the indexed rows.
    """

    def __init__(
        self, name: str, record: Mapping[str, Any], segment: Segment, store: StoreLike | None
    ) -> None:
        self._name, self._record, self._segment = name, record, segment
        self._lock = threading.Lock()
        self._rows = None if store is None else self._checked(open_store(store))
        #: The store that was indexed, where it was asked for.
        self._original = self._rows

    def rows(self) -> Store:
        """The rows: the index's own, else the store's.

        Raises
        ------
        StoreError
            The store is gone.
        ConflictError
            It holds other rows.
        """
        rows = self._rows
        if rows is not None:
            return rows
        with self._lock:
            if self._rows is None:
                own = self._segment.open_vectors()
                self._rows = self._indexed() if own is None else own
            return self._rows

    def original(self) -> Store:
        """The store that was indexed, even where the index has rows of its own.

        Raises
        ------
        StoreError, ConflictError
            As ``rows``.
        """
        with self._lock:
            return self._indexed()

    def _indexed(self) -> Store:
        """The store that was indexed, opened when it is first asked for; the lock is held."""
        if self._original is None:
            self._original = self._checked(self._find())
        return self._original

    def close(self) -> None:
        """Close the rows, if they were opened."""
        with self._lock:
            opened = [self._rows, self._original]
            self._rows = self._original = None
        for store in opened:
            if store is not None:
                store.close()

    def _find(self) -> Store:
        uri = self._record["store"]["uri"]
        hint = (
            "Point to where it is now: open_index(path, store=...), `ooc search --store`; "
            "or search by the codes alone: rerank=0."
        )
        if not uri:
            raise StoreError(
                "the rows were an array in memory and the index keeps no copy",
                kind="store-missing",
                hint=hint,
            )
        try:
            return open_store(uri)
        except StoreError as error:
            raise StoreError(
                f"exact distances need the store: {error.message}", kind=error.kind, hint=hint
            ) from error

    def _checked(self, store: Store) -> Store:
        """The store, if it holds the rows that were indexed."""
        plan = self._record["plan"]
        wrong = ""
        if store.d != plan["d"] or store.n < plan["n"]:
            wrong = f"it is {store.n} x {store.d} and {plan['n']} x {plan['d']} were indexed"
        elif store.fingerprint(plan["n"]) != plan["fingerprint"]:
            wrong = "its rows are not those that were indexed"
        if wrong:
            described = store.describe()
            store.close()
            raise ConflictError(
                f"{described} does not fit the index {self._name}: {wrong}",
                kind="store-changed",
                hint="Name the store that was indexed, build again, or search with rerank=0.",
            )
        return store
