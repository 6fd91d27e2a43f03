"""How much memory a search may use for what: shares of one budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from ooc.errors import ArgumentError
from ooc.units import format_bytes, parse_bytes

__all__ = ["Budget"]

_MIB = 1024 * 1024

#: What a search is planned for where the caller states nothing.
_DEFAULT = 1024 * _MIB
#: The interpreter, numpy and faiss take about 50 MB before the first query.
_LEAST = 64 * _MIB
#: Rows that are asked for and compared together: few enough to stay in the processor's cache.
_WAVE = 8 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Shares of the memory of a search. Half of it is planned with; the rest is the interpreter's.

    Attributes
    ----------
    batch_bytes : int
        Private memory of the queries that are searched together.
    group_bytes : int
        Lists that are brought in and scanned together; two such groups are in memory at a time.
    wave_bytes : int
        Rows that are brought in and compared together; two such waves are in memory at a time.
    keep_bytes : int or None
        A batch that goes through more bytes than this lets go of them behind; None: never.
    """

    batch_bytes: int
    group_bytes: int
    wave_bytes: int
    keep_bytes: int | None

    @classmethod
    def of(cls, memory: int | str | None) -> Self:
        """The shares of ``memory`` (bytes, or text such as ``"256MiB"``); None: of 1 GiB, and nothing let go.

        Raises
        ------
        ArgumentError
            It is no size, or below 64 MiB.
        """
        total = _DEFAULT if memory is None else parse_bytes(memory)
        if total < _LEAST:
            raise ArgumentError(
                f"a search does not fit in {format_bytes(total)}: Python and its libraries take most of that",
                kind="memory",
                hint=f"Give it at least {format_bytes(_LEAST)}.",
            )
        return cls(
            batch_bytes=total // 4,
            group_bytes=total // 16,
            wave_bytes=min(_WAVE, total // 32),
            keep_bytes=None if memory is None else total // 4,
        )
