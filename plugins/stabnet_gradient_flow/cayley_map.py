r"""The Cayley map: from free matrices to those with orthonormal columns or rows.

References:
    Trockman, Kolter: "Orthogonalizing convolutional layers with the Cayley transform", ICLR 2021.
    Wang, Manchester: "Direct parameterization of Lipschitz-bounded deep networks", ICML 2023.
"""

from __future__ import annotations

import torch
from jaxtyping import Inexact
from torch import Tensor

from stabnet import InvalidInputError

__all__ = ["GAIN_LIMIT", "cayley", "rescaled", "saturated"]

GAIN_LIMIT = 128.0
"""What the gain of :func:`rescaled` stays below, so that the equations of the map keep digits."""


def cayley(X: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
    r"""Return a matrix with orthonormal columns for any matrix, or rows where it is wide.

    For :math:`m \ge n`, with the upper square ``U`` and the rest ``V``,

    .. math:: X = \begin{bmatrix} U \\ V \end{bmatrix}, \qquad S = U - U^H + V^H V, \qquad
              Q = \begin{bmatrix} (I - S)(I + S)^{-1} \\ -2 V (I + S)^{-1} \end{bmatrix} ;

    for :math:`m < n` the adjoint of that for :math:`X^H`. The derivative is that of the formula.

    *The inverse exists*: :math:`S + S^H = 2 V^H V \succeq 0`, so that :math:`\operatorname{Re}
    x^H (I + S) x \ge \|x\|^2`, and :math:`\|(I + S)^{-1}\| \le 1`. *The columns are orthonormal*:
    :math:`Q^H Q = (I + S)^{-H} N (I + S)^{-1}` with

    .. math:: N = (I - S)^H (I - S) + 4 V^H V
                = I - (S + S^H) + S^H S + 2 (S + S^H) = (I + S)^H (I + S) .

    The inverse is wrong by some :math:`\epsilon (1 + \|X\|)^2`. One Newton step towards the nearest
    matrix with orthonormal columns, :math:`Q + \tfrac{1}{2} Q (I - Q^H Q)`, replaces the singular
    values :math:`\sigma` by :math:`\tfrac{1}{2} \sigma (3 - \sigma^2)`. That is at most 1 for
    :math:`\sigma \le 2`, and as near to it as the square of the error: so up to some
    :math:`\epsilon` no norm exceeds 1, whatever the matrix. Where the columns are orthonormal the
    step changes neither ``Q`` nor its derivative.

    It is computed in the precision of ``X`` under autocast too.

    >>> Q = cayley(torch.ones(3, 2, dtype=torch.float64))
    >>> torch.allclose(Q.T @ Q, torch.eye(2, dtype=torch.float64))
    True

    Args:
        X: real or complex matrices. In single precision their norms should stay below some
            hundreds.

    Returns:
        ``Q``, of the shape of ``X``; square matrices are those orthogonal (unitary) ones that do
        not have the eigenvalue −1.

    Raises:
        InvalidInputError: for vectors.
    """
    if X.ndim < 2:
        raise InvalidInputError(
            f"the Cayley map takes matrices (..., m, n); got shape {tuple(X.shape)}"
        )
    if X.shape[-2] < X.shape[-1]:
        return cayley(X.mH).mH
    with torch.autocast(X.device.type, enabled=False):
        return _tall(X)


def _tall(X: Inexact[Tensor, "*batch m n"]) -> Inexact[Tensor, "*batch m n"]:
    n = X.shape[-1]
    U, V = X[..., :n, :], X[..., n:, :]
    identity = torch.eye(n, dtype=X.dtype, device=X.device)
    # The inverse, whose norm is at most 1: products with it, forwards and backwards, are several
    # times faster than solves, and what they round away the last step makes up for.
    inverse = torch.linalg.inv_ex(identity + U - U.mH + V.mH @ V)[0]
    Q: Tensor = torch.cat([2 * inverse - identity, -2 * V @ inverse], -2)
    # The step's own derivative is zero up to rounding, and would cost twice what the step does.
    fixed = Q.detach()
    return Q + 0.5 * (fixed @ (identity - fixed.mH @ fixed))


def rescaled(weight: Inexact[Tensor, "..."], gain: Inexact[Tensor, ""]) -> Inexact[Tensor, "..."]:
    r"""Return weights of a norm of their own: :math:`g\, X / \|X\|_F`.

    So the size of ``X`` does not matter, and no step of an optimizer makes it too large for the
    Cayley map. The gain saturates, see :func:`saturated`, below :data:`GAIN_LIMIT`.
    Where all entries are below the precision of the numbers, the result fades to zero with them,
    so that zero weights, which have no direction, have a finite gradient too.

    Args:
        weight: ``X``, of any size.
        gain: ``g``, a number.
    """
    # Dividing by the largest entry changes nothing, so its derivative may be left out.
    largest = weight.detach().abs().amax().clamp(min=torch.finfo(weight.dtype).eps)
    scaled = weight / largest
    norm: Tensor = torch.linalg.vector_norm(scaled).clamp(min=1)
    return saturated(gain, GAIN_LIMIT) * (scaled / norm)


def saturated(x: Inexact[Tensor, "..."], limit: float) -> Inexact[Tensor, "..."]:
    r"""Return :math:`\ell \tanh(x / \ell)`: nearly ``x`` where that is small, never beyond ``ℓ``.

    Args:
        x: any numbers.
        limit: ``ℓ``, positive.
    """
    return limit * torch.tanh(x / limit)
