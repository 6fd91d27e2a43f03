"""Random rotations by Walsh-Hadamard transforms, many rows at a time.

A transform of 2ᵃ⁺ᵇ values is the Kronecker product of one of 2ᵃ and one of 2ᵇ: products with small
matrices, which BLAS computes in half the time in which faiss goes through a row.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from ooc.types import FloatArray

__all__ = ["Rotation"]

#: Rows that are rotated together: few enough to stay in the cache of a processor.
_ROWS = 128


class Rotation:
    """What a ``HadamardRotation`` does to rows, but for rounding. Safe from several threads.

    It is three rounds of signs and a transform, H D₃ H D₂ H D₁. With the values of a row as a matrix,
    H = A ⊗ B multiplies its columns by A and its rows by B, in either order. So products that meet at signs
    become one: with B D₁ in each row, A D₂ A in each column, B D₃ B in each row, and A.
    """

    def __init__(self, step: Any) -> None:
        self._d = int(step.d_out)
        bits = self._d.bit_length() - 1
        a, b = _hadamard(bits // 2), _hadamard(bits - bits // 2)
        first, second, third = (
            faiss.vector_to_array(signs).reshape(len(a), len(b))
            for signs in (step.signs1, step.signs2, step.signs3)
        )
        scale = np.float32(1 / np.sqrt(self._d))
        #: Of each row of the matrix, of each column, and of each row again.
        self._first: FloatArray = b * first[:, None, :] * scale
        self._second: FloatArray = (a * second.T[:, None, :]) @ a * scale
        self._third: FloatArray = (b * third[:, None, :]) @ b * scale
        self._last = a

    def apply(self, x: FloatArray) -> FloatArray:
        """Rows ``(m, d)`` rotated, ``(m, d_out)``: with zeros up to the next power of two."""
        if x.shape[1] < self._d:
            x = np.pad(x, ((0, 0), (0, self._d - x.shape[1])))
        out = np.empty((len(x), self._d), np.float32)
        a, b = len(self._last), self._first.shape[1]
        for start in range(0, len(x), _ROWS):
            some = x[start : start + _ROWS]
            # (a, b, m) all along: rows of the matrices are then products in memory order, and so are columns.
            y = np.matmul(self._first, some.reshape(-1, a, b).transpose(1, 2, 0))
            z = np.empty_like(y)
            np.matmul(self._second, y.transpose(1, 0, 2), out=z.transpose(1, 0, 2))
            np.matmul(self._third, z, out=y)
            np.matmul(self._last, y.reshape(a, -1), out=z.reshape(a, -1))
            out[start : start + _ROWS] = z.reshape(self._d, -1).T
        return out


def _hadamard(bits: int) -> FloatArray:
    """The Walsh-Hadamard matrix of ``2 ** bits`` rows, of 1 and -1."""
    matrix = np.ones((1, 1), np.float32)
    for _ in range(bits):
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    return matrix
