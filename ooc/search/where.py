"""Filters by what a table beside the rows says of them: a condition in SQL, made a set of ids by DuckDB.

The condition is one expression over the columns of the table. It is parsed before it is run, and it is run in
a database of its own, in memory, which may read the table and nothing else: no other file, no extension, no
variable of the process. Parameters are bound, never pasted into the text.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import pickle
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ooc.errors import ArgumentError, MissingExtraError, OocError, ResourceError
from ooc.search.filters import Filter
from ooc.types import IntArray, PathOrStr
from ooc.units import KIB, MIB

__all__ = ["SUFFIXES", "Metadata", "Parameters"]

#: Values for ``?`` in their order, or for ``$name`` by name.
Parameters: TypeAlias = Sequence[Any] | Mapping[str, Any]

_PARQUET = (".parquet", ".pq")
_ARROW = (".arrow", ".feather", ".ipc")
SUFFIXES = (*_PARQUET, *_ARROW)

#: Of a table with this column it says which id a row is of; else rows are in the order of the ids.
_ID = "id"
#: The column that numbers the rows otherwise: DuckDB's name, of Parquet, for all.
_NUMBER = "file_row_number"
_WHOLE = {f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT")}

#: The first version of DuckDB whose locked configuration no function changes: before it a condition could
#: turn a log on, in any file.
_OLDEST = 2
#: Conditions whose ids are kept, and the part of the memory that these may take.
_KEPT, _KEPT_SHARE = 64, 4
#: The database does little with less.
_LEAST_BYTES = 32 * MIB
_THREADS = 4
#: Ids that are taken from the database at a time.
_BATCH = 1 << 16


@dataclass(frozen=True, slots=True)
class _Table:
    """How the database reads the table: as what, and which column has the ids of its rows."""

    source: str
    number: str


class Metadata:
    """A table beside an index. Safe from several threads.

    Parameters
    ----------
    path : path
        ``.parquet`` or ``.pq``; ``.arrow``, ``.feather`` or ``.ipc``: a row for each id, in the order of the
        ids, or with a column ``id``.
    memory_bytes : int
        What evaluating a condition may use, and so the sets of ids that are kept, together.

    Raises
    ------
    ArgumentError
        There is no such file, or it is of another kind.
    MissingExtraError
        DuckDB is not installed, or an earlier one than is needed.
    """

    def __init__(self, path: PathOrStr, memory_bytes: int) -> None:
        self.path = Path(path).expanduser().absolute()
        if self.path.suffix.lower() not in SUFFIXES or set("*?[") & set(str(self.path)):
            raise ArgumentError(
                f"{self.path} has a name that no table has",
                kind="metadata",
                hint=f"Name one file that ends in one of {', '.join(SUFFIXES)}.",
            )
        if not self.path.is_file():
            raise ArgumentError(f"there is no table {self.path}", kind="metadata")
        _see_installed(self.path)
        self._memory_bytes = max(memory_bytes, _LEAST_BYTES)
        self._kept_bytes = self._memory_bytes // _KEPT_SHARE
        self._kept: OrderedDict[object, Filter] = OrderedDict()
        self._lock = threading.Lock()

    def filter(self, where: str, parameters: Parameters | None, *, ids: int, generation: int) -> Filter:
        """The ids of rows that meet a condition.

        Parameters
        ----------
        where : str
            An SQL expression over the columns of the table.
        parameters : sequence or mapping, optional
            Values for ``?``, or by name for ``$name``.
        ids, generation : int
            One more than the largest id of the index, and the number of the generation that is read.

        Raises
        ------
        ArgumentError
            It is no expression, or one that DuckDB cannot evaluate; or the table is of another number of
            rows.
        ResourceError
            It takes more memory than there is.
        """
        values = _values(where, parameters)
        status = self.path.stat() if self.path.exists() else None
        stamp = None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)
        key: object = None
        with contextlib.suppress(Exception):  # values that have no bytes are not kept
            key = (generation, ids, stamp, where, pickle.dumps(values))
        with self._lock:
            if key is not None and key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = self._evaluate(where, values, ids)
        if key is not None:
            self._keep(key, made)
        return made

    def _keep(self, key: object, made: Filter) -> None:
        with self._lock:
            self._kept[key] = made
            while (
                len(self._kept) > _KEPT or sum(one.nbytes for one in self._kept.values()) > self._kept_bytes
            ):
                self._kept.popitem(last=False)

    def _evaluate(self, where: str, values: Parameters, ids: int) -> Filter:
        import duckdb

        with self._translated(duckdb, where), self._connected(duckdb) as database:
            table = self._table(database, ids)
            statement = f"SELECT {table.number} FROM {table.source} WHERE (\n{where}\n)"
            _see_expression(duckdb, where)
            found = database.sql(statement, params=values).to_arrow_reader(_BATCH)
            numbers = (batch.column(0).drop_null().to_numpy(zero_copy_only=False) for batch in found)
            return _filter((some.astype(np.int64) for some in numbers), ids, dense=table.number != f'"{_ID}"')

    @contextlib.contextmanager
    def _connected(self, duckdb: Any) -> Iterator[Any]:
        """A database of its own in memory, which may read the table alone."""
        settings = {
            "threads": _THREADS,
            "memory_limit": f"{self._memory_bytes // KIB}KiB",
            "temp_directory": "",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        }
        with contextlib.closing(duckdb.connect(":memory:", config=settings)) as database:
            if self.path.suffix.lower() in _ARROW:
                import pyarrow.dataset

                database.register("metadata", pyarrow.dataset.dataset(self.path, format="ipc"))
            else:
                database.execute(f"SET allowed_paths = [{_quoted(str(self.path))}]")
            database.execute("SET enable_external_access = false")
            database.execute("SET lock_configuration = true")
            yield database

    def _table(self, database: Any, ids: int) -> _Table:
        """How the table is read; seen to be of the index."""
        arrow = self.path.suffix.lower() in _ARROW
        plain = "metadata" if arrow else f"read_parquet({_quoted(str(self.path))})"
        columns = {
            str(name): str(kind)
            for name, kind, *_ in database.execute(f"DESCRIBE SELECT * FROM {plain}").fetchall()
        }
        if _ID in columns:
            if columns[_ID] not in _WHOLE:
                raise ArgumentError(
                    f"the column {_ID} of {self.path} is {columns[_ID]}, not whole numbers",
                    kind="metadata",
                    hint="It says which id of the index a row is of. Give it another name if it is something "
                    "else, and lay the rows in the order of the ids.",
                )
            return _Table(plain, f'"{_ID}"')
        # All is fetched: what is left of a result keeps the connection from the next statement.
        [(rows,)] = database.execute(f"SELECT count(*) FROM {plain}").fetchall()
        if _NUMBER in map(str.lower, columns):
            raise ArgumentError(
                f"{self.path} has a column {_NUMBER}, and by this name its rows are numbered",
                kind="metadata",
                hint="Give it another name.",
            )
        if rows != ids:
            raise ArgumentError(
                f"{self.path} has {rows} rows, and the index has ids 0 to {ids - 1}",
                kind="metadata",
                hint="Bring it up to date: a row for each id, in the order of the ids, those that were "
                f"deleted too; or a column {_ID}.",
            )
        if arrow:
            # The number goes before the condition, so rows are numbered as they come.
            return _Table(f"(SELECT *, row_number() OVER () - 1 AS {_NUMBER} FROM metadata)", _NUMBER)
        return _Table(f"read_parquet({_quoted(str(self.path))}, {_NUMBER} = true)", _NUMBER)

    @contextlib.contextmanager
    def _translated(self, duckdb: Any, where: str) -> Iterator[None]:
        """DuckDB's errors as ours."""
        try:
            yield
        except OocError:
            raise
        except duckdb.OutOfMemoryException as error:
            raise ResourceError(
                f"the condition {where!r} takes more than the {self._memory_bytes // MIB} MiB "
                "that it may use",
                kind="memory",
                hint="Open the index with more memory (memory=, --memory), or give the ids as a filter.",
            ) from error
        except (duckdb.Error, OSError, RuntimeError, ValueError) as error:
            said = str(error).partition("\n\nLINE")[0].strip()
            raise ArgumentError(
                f"the condition {where!r} cannot be evaluated on {self.path}: {said}",
                kind="where",
                hint="It must be one SQL expression over the columns of the table; see `ooc help filters`.",
            ) from error


def _see_installed(path: Path) -> None:
    """See that the database is there, without importing it."""
    for package, oldest in (("duckdb", _OLDEST), ("pyarrow", 0)):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            wrong = f"the package {package} is not installed"
        else:
            if int(version.partition(".")[0]) >= oldest:
                continue
            wrong = f"{package} {version} is installed, and at least {oldest}.0 is needed"
        raise MissingExtraError(
            f"conditions on {path} cannot be evaluated: {wrong}", hint="pip install 'ooc[where]'"
        )


def _values(where: object, parameters: object) -> Parameters:
    """What is bound, seen to be something that can be."""
    if not isinstance(where, str) or not where.strip():
        raise ArgumentError(
            f"where must be an SQL expression, not {where!r}",
            kind="where",
            hint="""Write it as in where="lang = 'en' AND year > ?", parameters=[2020].""",
        )
    if parameters is None:
        return []
    if isinstance(parameters, Mapping):
        return {str(name): _plain(value) for name, value in parameters.items()}
    if isinstance(parameters, Sequence | np.ndarray) and not isinstance(parameters, str | bytes):
        return [_plain(value) for value in parameters]
    raise ArgumentError(
        "parameters must be a list of values or a mapping of names to values, "
        f"not {type(parameters).__name__}",
        kind="where",
        hint="Write them as in parameters=[2020] for ?, or parameters={'since': 2020} for $since.",
    )


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _see_expression(duckdb: Any, where: str) -> None:
    """See that the text is one expression.

    As a condition in parentheses it must parse where it will stand, and between WHEN and THEN too: what would
    leave the parentheses to go on with the statement, as ``) UNION (``, cannot stand there.
    """
    for statement in (f"SELECT 1 WHERE (\n{where}\n)", f"SELECT CASE WHEN (\n{where}\n) THEN 1 END"):
        if len(duckdb.extract_statements(statement)) != 1:
            raise ArgumentError(
                f"the condition {where!r} is more than one expression",
                kind="where",
                hint="Leave the semicolon and what follows it out.",
            )


def _filter(numbers: Iterator[IntArray], ids: int, *, dense: bool) -> Filter:
    """The filter of ids, some at a time, in any order; those that the index has not are passed over."""
    if not dense:
        listed = [some[(some >= 0) & (some < ids)] for some in numbers]
        return Filter.of(np.concatenate([np.empty(0, np.int64), *listed]), ids)
    bits = np.zeros(-(-ids // 8), np.uint8)
    for some in numbers:
        np.bitwise_or.at(bits, some >> 3, np.left_shift(1, some & 7).astype(np.uint8))

    def within(first: int, last: int) -> Any:
        window = np.unpackbits(bits[first >> 3 : (last + 7) >> 3], bitorder="little")
        return window[: last - first].view(bool)

    return Filter.of_windows(ids, within)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
