"""Certified upper bounds of the operator norms of dense matrices."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InvalidInputError
from .rounding import UNIT_ROUNDOFF, gamma

__all__ = ["largest_spectral_norm_bound", "spectral_norm_bound"]

_SAFETY = 1 + 16 * UNIT_ROUNDOFF
"""More than the few operations on plain numbers below can round away."""


@torch.no_grad()
def spectral_norm_bound(matrix: Float[Tensor, "m n"]) -> float:
    r"""Return an upper bound of :math:`\|A\|_2`, sound in spite of rounding, and close to it.

    A singular value decomposition in float64 only gives the guess :math:`s \gtrsim \|A\|_2^2`. What
    proves the bound is that the Cholesky factorization of :math:`B = sI - A^\top A`, as computed,
    runs to its end. Then the factor satisfies :math:`R^\top R = B + \Delta` with
    :math:`|\Delta| \le \gamma_{n+1} |R|^\top |R|`, so :math:`\|\Delta\|_2 \le \gamma_{n+1}
    \|R\|_F^2 \le \tfrac{\gamma_{n+1}}{1 - \gamma_{n+1}} \operatorname{tr} B`, and with the
    rounding of :math:`A^\top A` and of the subtraction,

    .. math:: \|A\|_2^2 \le s + u s + \tfrac{\gamma_{n+1}}{1 - \gamma_{n+1}} n s
              + \gamma_{m+2} \|A\|_F^2 .

    Nothing is cached: the bound is of the matrix as it stands. It exceeds the norm by a share of
    about :math:`n(n + m)\, 2^{-53}` at most (:math:`n \le m`).

    >>> spectral_norm_bound(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) - 4 < 1e-12
    True

    Args:
        matrix: ``A``, of finite floating-point numbers; 0 rows or columns are allowed.

    Returns:
        The bound, 0 for a zero or empty matrix; infinity where it exceeds the largest float.

    Raises:
        InvalidInputError: for anything but a finite floating-point matrix.

    References:
        Rump: "Verification of positive definiteness", BIT 46, 2006, theorem 2.3. Higham: "Accuracy
        and stability of numerical algorithms", 2002, theorem 10.3 and (3.5).
    """
    if matrix.ndim != 2 or not matrix.is_floating_point():
        raise InvalidInputError(
            f"got {matrix.dtype} of shape {tuple(matrix.shape)}; the spectral norm is bounded for "
            "a matrix (m, n) of floating-point numbers. Flatten a convolution's kernel only if you "
            "mean that matrix: its norm is not the convolution's"
        )
    return largest_spectral_norm_bound(matrix[None])


@torch.no_grad()
def largest_spectral_norm_bound(matrices: Float[Tensor, "batch m n"]) -> float:
    """Return an upper bound of the spectral norms of several matrices, sound in spite of rounding.

    It is that of :func:`spectral_norm_bound`, with one shift that is proven for all of them at
    once: it exceeds the largest norm by little, and others by more.

    Args:
        matrices: finite floating-point numbers; any dimension may be 0.

    Returns:
        The bound, 0 where there are none; infinity where it exceeds the largest float.

    Raises:
        InvalidInputError: for anything but a batch of finite floating-point matrices.
    """
    if matrices.ndim != 3 or not matrices.is_floating_point():
        raise InvalidInputError(
            f"got {matrices.dtype} of shape {tuple(matrices.shape)}; expected matrices "
            "(batch, m, n) of floating-point numbers. A complex one has the norm of the real one "
            "[[Re, -Im], [Im, Re]]"
        )
    if not bool(matrices.isfinite().all()):
        raise InvalidInputError("the matrix holds NaN or infinite values, so its norm has no bound")
    # On the CPU, whose factorization and sums are the plain ones that the theorems speak of.
    return largest_norm(matrices.detach().cpu().to(torch.float64))


def largest_norm(matrices: Float[Tensor, "batch m n"]) -> float:
    """Return an upper bound of the largest spectral norm of finite float64 matrices on the CPU.

    One shift is proven for all matrices at once; see :func:`spectral_norm_bound`.
    """
    scaled, exponent = scaled_to_one(matrices)
    if exponent is None:
        return 0.0
    bound = _verified_norm(scaled.mT if scaled.shape[1] < scaled.shape[2] else scaled)
    return math.nextafter(scaled_back(bound, exponent), math.inf)


def scaled_to_one(x: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], int | None]:
    """Return finite numbers divided by a power of two, the largest about 1, and its exponent.

    So no square overflows, and what underflows is far below the rounding that is accounted for.
    The exponent is ``None`` where all are zero.
    """
    largest = float(x.abs().max()) if x.numel() else 0.0
    if largest == 0:
        return x, None
    exponent = math.frexp(largest)[1]
    for half in (exponent // 2, exponent - exponent // 2):
        x = x * 2.0**-half
    return x, exponent


def scaled_back(bound: float, exponent: int) -> float:
    """Return a bound times a power of two, infinity where it exceeds the largest float."""
    try:
        return math.ldexp(bound, exponent)
    except OverflowError:
        return math.inf


def _verified_norm(A: Float[Tensor, "batch m n"]) -> float:
    """Return the bound for matrices of at least as many rows as columns, largest entry about 1."""
    m, n = A.shape[1:]
    gram = A.mT @ A  # of which the factorization reads one triangle
    square = float(A.square().sum((1, 2)).max()) * (1 + 2 * gamma(m * n + 1))
    cholesky = gamma(n + 1) / (1 - gamma(n + 1))
    guess = float(torch.linalg.eigvalsh(gram).max())
    margin = 4 * (m + n) * UNIT_ROUNDOFF
    while True:
        shift = guess * (1 + margin)
        shifted = shift * torch.eye(n, dtype=A.dtype) - gram
        if not bool(torch.linalg.cholesky_ex(shifted).info.any()):
            break
        margin *= 4
    total = shift * (1 + UNIT_ROUNDOFF + n * cholesky) + gamma(m + 2) * square
    return math.sqrt(total * _SAFETY) * _SAFETY
