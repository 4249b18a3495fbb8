"""Sound bounds of the spectrum of a Gram matrix, for the constants of potentials."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ROUNDING", "gram_bounds", "norm_bound"]

ROUNDING = 1e-8
"""Relative margin for what float64 may round away.

Eigenvalues of a Gram matrix of an (m, n) matrix as computed are wrong by less than about
``mn 2⁻⁵²`` of the largest; this covers all matrices of up to 4·10⁷ entries.
"""


@torch.no_grad()
def gram_bounds(matrix: Float[Tensor, "m n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return a lower and an upper bound of the eigenvalues of the smaller of ``AAᵀ`` and ``AᵀA``.

    They are 0-dimensional, in float64, and hold in spite of rounding. Unlike
    :func:`stabnet.bounds.spectral_norm_bound`, which proves more, this needs no host
    synchronization and can be traced.

    Args:
        matrix: ``A``.
    """
    A = matrix.double()
    values = torch.linalg.eigvalsh(A @ A.mT if A.shape[0] < A.shape[1] else A.mT @ A)
    margin = ROUNDING * values[-1]
    return (values[0] - margin).clamp_min(0), values[-1] + margin


def norm_bound(matrix: Float[Tensor, "m n"]) -> Float[Tensor, ""]:
    """Return an upper bound of the spectral norm; see :func:`gram_bounds`."""
    return gram_bounds(matrix)[1].clamp_min(0).sqrt()
