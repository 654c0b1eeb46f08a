"""Factors of a direction: truncated singular value decompositions of its matrices, rounded to what is stored.

Large matrices are decomposed by a randomised range finder with power iterations, which needs passes over blocks of rows
and never the whole matrix at once. Source: N. Halko, P. G. Martinsson and J. A. Tropp, "Finding Structure with
Randomness" (2011), algorithm 4.4, and 5.1 for the decomposition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from relex_codec.core.dtypes import F32
from relex_codec.format.factors import Factors

FULL_SVD: Final = 1 << 17
"""Matrices of at most so many elements are decomposed in full, from the Gram matrix of their shorter side: exact to
float64's root, and three times as fast as LAPACK's decomposition of the matrix."""
OVERSAMPLING: Final = 8
POWER_ITERATIONS: Final = 2
BLOCK_ELEMENTS: Final = 1 << 22
ReadElements = Callable[[int, int], F32]
"""Elements lo .. hi of a direction, float32."""


def decompose(read: ReadElements, shape: tuple[int, ...], rank: int) -> Factors:
    """Return the first `rank` singular pairs of each matrix of a tensor, unrounded, with balanced magnitudes.

    Args:
        read: the direction's elements.
        shape: of the tensor, [..., m, n'].
        rank: at most min(m, n').

    Returns:
        Factors with float32 a [H, rank, m] and b [H, rank, n']: a_j = sqrt(s_j) u_j, b_j = sqrt(s_j) v_j.

    Examples:
        >>> matrix = np.outer(np.arange(1, 4), np.arange(4)).astype(np.float32)
        >>> factors = decompose(lambda lo, hi: matrix.reshape(-1)[lo:hi], matrix.shape, rank=1)
        >>> bool(np.allclose(np.outer(factors.a[0, 0], factors.b[0, 0]), matrix, atol=1e-5))
        True
    """
    m, n = shape[-2:]
    count = int(np.prod(shape[:-2], dtype=np.int64))
    a = np.empty((count, rank, m), np.float32)
    b = np.empty((count, rank, n), np.float32)
    for h in range(count):
        start = h * m * n
        if m * n <= FULL_SVD:
            u, s, v = _from_gram(read(start, start + m * n).reshape(m, n), rank)
        else:
            u, s, v = _randomised(read, start, m, n, rank)
        scale = np.sqrt(s[:rank])
        a[h] = (u[:, :rank] * scale).T
        b[h] = v[:rank] * scale[:, None]
    return Factors(a, b)


def _from_gram(matrix: F32, rank: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the first singular triplets of a matrix: eigenvectors on its shorter side, and what it maps them to."""
    if matrix.shape[0] > matrix.shape[1]:
        v, s, u = _from_gram(matrix.T, rank)
        return u.T, s, v.T
    wide = matrix.astype(np.float64)
    vectors = np.linalg.eigh(wide @ wide.T)[1][:, : -rank - 1 : -1]
    mapped = vectors.T @ wide
    s = np.linalg.norm(mapped, axis=1)
    return vectors, s, mapped / np.maximum(s, np.finfo(np.float64).tiny)[:, None]


def _randomised(
    read: ReadElements, start: int, m: int, n: int, rank: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    rows = max(1, BLOCK_ELEMENTS // n)
    blocks = [(lo, min(lo + rows, m)) for lo in range(0, m, rows)]

    def block(lo: int, hi: int) -> F32:
        return read(start + lo * n, start + hi * n).reshape(hi - lo, n)

    def times(right: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([block(lo, hi) @ right for lo, hi in blocks])

    def transposed_times(left: npt.NDArray[Any]) -> npt.NDArray[Any]:
        total: npt.NDArray[Any] = np.sum([block(lo, hi).T @ left[lo:hi] for lo, hi in blocks], axis=0)
        return total

    width = min(rank + OVERSAMPLING, m, n)
    # A fixed seed: the same run gives the same file.
    basis = np.linalg.qr(times(np.random.default_rng(0).standard_normal((n, width), np.float32)))[0]
    for _ in range(POWER_ITERATIONS):
        basis = np.linalg.qr(times(np.linalg.qr(transposed_times(basis))[0]))[0]
    u, s, v = np.linalg.svd(transposed_times(basis).T, full_matrices=False)
    return basis @ u, s, v


def explained_by_rank(factors: Factors) -> list[float]:
    """Return the energy that the first 0, 1, ... pairs of `decompose` explain, over all matrices.

    A pair's magnitudes are balanced: the square of either's norm is the singular value.
    """
    squares = np.sum(np.sum(factors.a.astype(np.float64) ** 2, axis=2) ** 2, axis=0)
    return [0.0, *np.cumsum(squares).tolist()]


def round_factors(factors: Factors, rank: int, mantissa: int) -> Factors:
    """Return the first `rank` pairs, rounded to BF16 with only `mantissa` of its 7 explicit mantissa bits in use.

    The other bits are zero, which the planes' entropy coding turns into saved bytes: the factors only have to be good
    to the share of the direction that they do not explain anyway (RATIONALE.md).

    Args:
        factors: as `decompose` returns them.
        rank: at most theirs.
        mantissa: 0 to 7.
    """
    return Factors(*(_round(np.ascontiguousarray(x[:, :rank]), 23 - mantissa) for x in (factors.a, factors.b)))


def _round(x: F32, drop: int) -> F32:
    u = x.view(np.uint32)
    u = u + np.uint32((1 << (drop - 1)) - 1) + ((u >> np.uint32(drop)) & np.uint32(1))
    values: F32 = ((u >> np.uint32(drop)) << np.uint32(drop)).view(np.float32)
    return values
