"""Where the rows for exact distances are: the index's own copies, or the stores that were indexed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial

from ooc.errors import ArgumentError, ConflictError, IndexDirError, StoreError
from ooc.index.generation import Generation, Origin, Part
from ooc.index.layout import Layout
from ooc.index.segment import open_vectors
from ooc.stores import Store, open_store
from ooc.stores.spans import Span, SpannedStore
from ooc.types import StoreLike

__all__ = ["Source", "open_origin", "open_own"]


class Source:
    """Opens the rows when they are first needed, and sees that they are those that were indexed.

    Rows are numbered as in the lists. Safe from several threads.

    Parameters
    ----------
    layout : Layout
    generation : Generation
        Says where its rows are.
    d : int
    moved : store or mapping, optional
        Where rows are now: the store that was indexed first, opened and checked at once; or, by the URI of
        each store that moved, where that is now.

    Raises
    ------
    StoreError, ConflictError
        ``moved`` cannot be read, or does not hold the indexed rows.
    ArgumentError
        It names a store that was not indexed.

    Attributes
    ----------
    known : bool
        Whether it is known of all rows where their vectors were; of an index that was imported it may not be.
    """

    def __init__(
        self,
        layout: Layout,
        generation: Generation,
        d: int,
        moved: StoreLike | Mapping[str, StoreLike] | None,
    ) -> None:
        self._layout, self._parts, self._d = layout, generation.parts, d
        self.known = all(part.own is not None or part.origin.fingerprint for part in self._parts)
        self._lock = threading.Lock()
        self._rows: Store | None = None
        self._original: Store | None = None
        #: Stores by URI, for those that are elsewhere now.
        self._moved: dict[str, StoreLike] = {}
        self._given = False
        if isinstance(moved, Mapping):
            known = {one.uri for one in (*(part.origin for part in self._parts), *generation.gone)}
            for uri in moved.keys() - known:
                raise ArgumentError(
                    f"{layout.root} was not made of {uri}",
                    kind="store",
                    hint=f"It was made of {', '.join(sorted(known - {''})) or 'arrays in memory'}.",
                )
            self._moved = dict(moved)
        elif moved is not None:
            first = self._parts[0].origin
            self._given = True
            opened = _checked(open_store(moved), first, self._d, str(layout.root))
            self._moved[first.uri] = opened
            if len(self._parts) == 1 and not self._parts[0].picked:
                # What was pointed to is read, even where the index has rows of its own.
                self._rows = self._original = opened

    def rows(self) -> Store:
        """The rows: the index's own where it has them, else those of the stores.

        Raises
        ------
        StoreError
            A store is gone.
        ConflictError
            It holds other rows.
        """
        rows = self._rows
        if rows is not None:
            return rows
        with self._lock:
            if self._rows is None:
                self._rows = self._joined(original=False)
            return self._rows

    def original(self) -> Store:
        """The stores that were indexed, even where the index has rows of its own.

        Of rows that came later as an array there are those alone.

        Raises
        ------
        StoreError, ConflictError
            As ``rows``.
        """
        with self._lock:
            if self._original is None:
                self._original = self._joined(original=True)
            return self._original

    def _joined(self, *, original: bool) -> Store:
        """All parts as one store; the store itself, where all of them are of one."""
        spans: list[Span] = []
        before: Part | None = None
        for part in self._parts:
            origin = part.origin if self._reads_origin(part, original=original) else None
            if origin is None:
                opens = partial(open_own, self._layout, part, self._d)
                spans.append(Span(open=opens, first=0, rows=part.rows))
            elif before is not None and _goes_on(before, part):
                # One store that grew: it is what all of its parts are of if it is what the last one is of.
                first, rows = spans[-1].first, spans[-1].rows + part.rows
                spans[-1] = Span(open=self._opens(part), first=first, rows=rows)
            else:
                spans.append(Span(open=self._opens(part), first=origin.first, rows=part.rows))
            before = None if origin is None else part
        if len(spans) == 1 and not spans[0].first:
            return spans[0].open()
        mapped = all(part.own is not None or part.origin.mapped for part in self._parts)
        return SpannedStore(spans, self._d, mapped=mapped)

    def _reads_origin(self, part: Part, *, original: bool) -> bool:
        """Whether the rows of a part are read from its store, not from the index's own copy."""
        if part.picked:
            return False
        pointed = self._given and part is self._parts[0]
        # What came beside the first store as an array is nowhere but here.
        named = bool(part.origin.uri) or len(self._parts) == 1
        return part.own is None or (original and named) or pointed

    def _opens(self, part: Part) -> Callable[[], Store]:
        return partial(open_origin, self._layout, part, self._d, self._moved)

    def close(self) -> None:
        """Close the rows, if they were opened."""
        with self._lock:
            opened = [self._rows, self._original, *self._moved.values()]
            self._rows = self._original = None
        for store in opened:
            if isinstance(store, Store):
                store.close()


def _goes_on(before: Part, part: Part) -> bool:
    """Whether a part is of the same store as the one before, and of the rows that follow there."""
    one, other = before.origin, part.origin
    return bool(one.uri) and one.uri == other.uri and other.first == one.first + before.rows


def open_own(layout: Layout, part: Part, d: int) -> Store:
    """The rows of a part that the index keeps itself.

    Raises
    ------
    IndexDirError, StoreError
        They are missing or damaged.
    """
    store = open_vectors(layout.segment(str(part.own)))
    if (store.n, store.d) != (part.rows, d):
        described = store.describe()
        store.close()
        raise IndexDirError(
            f"{described} are not the {part.rows} x {d} rows that the index kept",
            kind="index-damaged",
            hint="Copy the directory anew, or remove it and build.",
        )
    return store


def open_origin(layout: Layout, part: Part, d: int, moved: Mapping[str, StoreLike]) -> Store:
    """The store that the rows of a part came from, if it holds what was indexed.

    Parameters
    ----------
    layout, part, d
        Of the index.
    moved : mapping
        By URI, where stores are now.

    Raises
    ------
    StoreError, ConflictError
        It is gone, or holds other rows.
    """
    origin = part.origin
    if part.picked:
        raise StoreError(
            f"which rows of {origin.uri or 'an array'} some are is not known any more: the index keeps them",
            kind="store-missing",
        )
    where = moved.get(origin.uri, origin.uri)
    hint = (
        "Point to where it is now: open_index(path, store=...), `ooc search --store`; "
        "or search by the codes alone: rerank=0."
    )
    if not origin.fingerprint:
        raise _imported(str(layout.root))
    if isinstance(where, str) and not where:
        raise StoreError(
            "the rows were an array in memory and the index keeps no copy",
            kind="store-missing",
            hint=hint,
        )
    try:
        store = open_store(where)
    except StoreError as error:
        raise StoreError(
            f"exact distances need the store: {error.message}", kind=error.kind, hint=hint
        ) from error
    return _checked(store, origin, d, str(layout.root))


def _checked(store: Store, origin: Origin, d: int, name: str) -> Store:
    """The store, if it holds the rows that were indexed."""
    wrong = ""
    if not origin.fingerprint:
        store.close()
        raise _imported(name)
    if store.d != d or store.n < origin.n:
        wrong = f"it is {store.n} x {store.d} and {origin.n} x {d} were indexed"
    elif store.fingerprint(origin.n) != origin.fingerprint:
        wrong = "its rows are not those that were indexed"
    if wrong:
        described = store.describe()
        store.close()
        raise ConflictError(
            f"{described} does not fit the index {name}: {wrong}",
            kind="store-changed",
            hint="Name the store that was indexed, build again, or search with rerank=0.",
        )
    return store


def _imported(name: str) -> StoreError:
    return StoreError(
        f"{name} was imported without its vectors: there are none to compare exactly",
        kind="no-vectors",
        hint="Search by the codes alone (rerank=0), or import it again with the store of its vectors.",
    )
