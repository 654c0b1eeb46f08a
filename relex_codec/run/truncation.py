"""The best matrices of low rank for what one or several steps change: truncated singular value decompositions.

Several steps that share their right factor are decomposed together. If step s changes a matrix by the sum over k of
``g[s, k] V_k``, and ``g = Q T`` with orthonormal columns of Q, then the stack of all steps has the right singular
vectors of the stack of the few matrices ``U_j = sum over k of T[j, k] V_k``, and each step is a sum of those.

Large matrices are decomposed by a randomised range finder. Source: N. Halko, P. G. Martinsson and J. A. Tropp, "Finding
Structure with Randomness" (2011), algorithms 4.4 and 5.1, which `torch.svd_lowrank` is.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from relex_codec.core.dtypes import F32

EXACT_SIDE: Final = 512
"""Matrices whose shorter side is at most so long are decomposed in full."""
OVERSAMPLING: Final = 16
POWER_ITERATIONS: Final = 4


class Changes(NamedTuple):
    """What steps change in one matrix, stacked.

    Attributes:
        left: float32 [J m, n], the stack itself; or [J m, q] where it is a product.
        right: float32 [q, n], which `left` is multiplied with; None: with nothing.
    """

    left: torch.Tensor
    right: torch.Tensor | None = None

    @property
    def energy(self) -> float:
        """The squared norm."""
        if self.right is None:
            return float((torch.linalg.vector_norm(self.left, dim=1, dtype=torch.float64) ** 2).sum())
        left, right = self.left.double(), self.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum())


def mixed(coefficients: F32) -> tuple[F32, F32]:
    """Return Q and T of the coefficients of some steps: float32 [S, J] and [J, K], J the smaller of S and K.

    Args:
        coefficients: float32 [S, K].

    Examples:
        >>> q, t = mixed(np.float32([[2.0], [4.0]]))
        >>> bool(np.allclose(q @ t, [[2], [4]]))
        True
    """
    if len(coefficients) == 1:  # then nothing is to be mixed, and no bit shall be lost
        return np.ones((1, 1), np.float32), coefficients
    q, t = np.linalg.qr(coefficients.astype(np.float64))
    return q.astype(np.float32), t.astype(np.float32)


def truncated(changes: Changes, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the best product of so low a rank.

    Returns:
        float32 [J m, r] and [r, n] of equal size, r at most `rank`, and how much of the energy their product has.

    Examples:
        >>> matrix = torch.outer(torch.arange(4.0), torch.arange(3.0))
        >>> left, right, kept = truncated(Changes(matrix), rank=1)
        >>> torch.allclose(left @ right, matrix, atol=1e-5), round(kept, 3), round(Changes(matrix).energy, 3)
        (True, 70.0, 70.0)
    """
    u, s, v = _decomposed(changes, rank)
    root = s.sqrt()
    return (u * root).float(), (root[:, None] * v.T).float(), float((s.double() ** 2).sum())


def singular_values(changes: Changes, count: int) -> npt.NDArray[np.float64]:
    """Return the largest singular values of a matrix, float64, at most `count`."""
    left, right = changes
    if right is None and min(left.shape) <= EXACT_SIDE:
        tall = left if left.shape[0] >= left.shape[1] else left.T
        gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64)
        for lo in range(0, len(tall), 1 << 14):
            wide = tall[lo : lo + (1 << 14)].double()
            gram += wide.T @ wide
        found: npt.NDArray[np.float64] = torch.linalg.eigvalsh(gram).flip(0)[:count].clamp(min=0).sqrt().numpy()
        return found
    return _decomposed(changes, count)[1].double().numpy()


def _decomposed(changes: Changes, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the first singular triplets, U [J m, r], s [r], V [n, r]."""
    left, right = changes
    if right is not None:
        q_left, r_left = torch.linalg.qr(left.double())
        q_right, r_right = torch.linalg.qr(right.double().T)
        u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
        u, v = q_left @ u, q_right @ vh.T
    elif min(left.shape) <= EXACT_SIDE:
        u, s, vh = torch.linalg.svd(left.double(), full_matrices=False)
        v = vh.T
    else:
        width = min(rank + OVERSAMPLING, *left.shape)
        with torch.random.fork_rng(devices=[]):  # the same file gives the same adapter
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(left, q=width, niter=POWER_ITERATIONS)
    return u[:, :rank], s[:rank], v[:, :rank]
