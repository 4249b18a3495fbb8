"""Lyapunov's equation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["solve_lyapunov"]

_DOUBLINGS = 64


def solve_lyapunov(matrix: Float[Tensor, "n n"], right: Float[Tensor, "n n"]) -> Tensor:
    r"""Solve :math:`B^\top P + P B = -Q`, for ``B`` with eigenvalues in the left half plane.

    With :math:`U = (B - qI)^{-1}(B + qI)` for any :math:`q > 0`, of spectral radius below one,

    .. math:: P = \sum_k (U^k)^\top W U^k, \qquad W = 2q\,(B - qI)^{-\top} Q\,(B - qI)^{-1},

    summed by doubling, in time :math:`O(n^3)`. With ``Q`` all terms are positive semidefinite, so
    none of them cancel.

    Args:
        matrix: ``B``.
        right: ``Q``, symmetric positive definite.

    Returns:
        ``P``, symmetric; not finite, or no solution, where an eigenvalue is not in the left half
        plane by more than rounding.

    References:
        Smith, "Matrix equation XA + BX = C", 1968.
    """
    n = len(matrix)
    # Any q will do; of the order of the eigenvalues, U has the smallest powers.
    q = torch.linalg.matrix_norm(matrix) / math.sqrt(n)
    shift = q * torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    inverse = torch.linalg.inv_ex(matrix - shift).inverse
    power = inverse @ (matrix + shift)
    total = 2 * q * inverse.mT @ right @ inverse
    for _ in range(_DOUBLINGS):
        more = power.mT @ total @ power
        total = total + more
        if not bool(more.abs().max() > torch.finfo(matrix.dtype).eps * total.abs().max()):
            break
        power = power @ power
    solution: Tensor = (total + total.mT) / 2
    return solution
