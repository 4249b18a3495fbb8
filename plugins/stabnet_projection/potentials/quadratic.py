"""The quadratic Lyapunov function, with a learned positive definite matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet.interfaces import Context, Potential
from stabnet.values import number, shape

from ..center import center_of, offset_from, point
from .spectrum import ROUNDING, gram_bounds

__all__ = ["Quadratic"]


@final
class Quadratic(Potential):
    r"""A quadratic form around the center, positive definite for every value of its parameters.

    .. math:: V(z) = (z - c)^\top P (z - c) = \eta\|z - c\|^2 + \|A(z - c)\|^2, \qquad
              P = \eta I + A^\top A \succeq \eta I

    with a learned square :math:`A`, the identity at first (at zero its derivative would vanish).
    Every matrix :math:`P \succeq \eta I` is such a one. By Lyapunov's theorem every stable linear
    system descends a function of this kind.

    Args:
        state_shape: shape of one state; ``A`` is square, as large as a state has entries.
        eta: the weight ``η > 0``, the least curvature.
        center: where ``V`` vanishes unless the context gives a center per sample; the origin if
            ``None``.

    Raises:
        InvalidOptionError: if ``eta`` is not positive, or ``center`` is no state.

    References:
        Khalil: "Nonlinear systems", 2002, theorem 4.6.
    """

    convex = True
    center: Tensor

    def __init__(
        self,
        state_shape: Sequence[int],
        eta: float = 0.1,
        center: Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.eta = number("eta", eta, above=0)
        self.register_buffer("center", point(center, self.state_shape))
        self.factor = nn.Parameter(torch.eye(math.prod(self.state_shape)))

    @property
    def P(self) -> Float[Tensor, "n n"]:  # noqa: N802
        """The matrix ``P = ηI + AᵀA``, differentiable in the parameters."""
        A = self.factor
        return A.mT @ A + self.eta * torch.eye(len(A), dtype=A.dtype, device=A.device)

    def forward(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> Float[Tensor, "*batch"]:
        """Evaluate ``V``; the center is ``context.center``, or the potential's own."""
        return self.value_and_gradient(z, context)[0]

    def value_and_gradient(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
        r"""Evaluate ``V`` and its gradient :math:`2P(z - c)`, as sums that do not cancel.

        Autocast is switched off: the smallest eigenvalue of ``P`` would drown in its rounding.
        """
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.promote_types(z.dtype, self.factor.dtype))
            offset, _ = offset_from(center_of(self, context), z, len(self.state_shape))
            image = F.linear(offset, self.factor)
            value = self.eta * offset.square().sum(-1) + image.square().sum(-1)
            gradient = 2 * (self.eta * offset + image @ self.factor)
            return value, gradient.unflatten(-1, self.state_shape)

    def growth_bound(self) -> Float[Tensor, ""]:
        r"""Return :math:`\lambda_{\min}(P) \ge \eta`; see :class:`stabnet.interfaces.BoundsGrowth`.

        It is the best constant, up to the rounding that it allows for.
        """
        return self.eta + gram_bounds(self.factor)[0]

    def smoothness_bound(self) -> Float[Tensor, ""]:
        r"""Return :math:`2\lambda_{\max}(P)`; see :class:`stabnet.interfaces.BoundsSmoothness`.

        It is the best constant, up to the rounding that it allows for.
        """
        return 2 * (self.eta + gram_bounds(self.factor)[1]) * (1 + ROUNDING)

    def extra_repr(self) -> str:
        """Return the constants."""
        return f"eta={self.eta}"
