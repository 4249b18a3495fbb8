"""The input-convex Lyapunov function, with its gradient in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import Context, Potential
from stabnet.values import flag, number, whole

from ..center import center_of, offset_from, point

__all__ = ["ICNN", "smooth_relu"]


_ROUNDING = 1 + 1e-9
"""Covers the rounding of float64 norms and products of any width that fits into memory."""


def smooth_relu(x: Tensor, width: float) -> tuple[Tensor, Tensor]:
    r"""Return the smooth ReLU :math:`\sigma(x)` and its derivative.

    .. math:: \sigma(x) = 0 \;(x \le 0), \quad x^2/(2d) \;(0 < x < d), \quad x - d/2 \;(x \ge d)

    Convex, non-decreasing, continuously differentiable.

    Args:
        x: any tensor.
        width: the width ``d > 0`` of the quadratic part.

    References:
        [LyaDEQ] (12); [MK] (13).
    """
    slope = (x / width).clamp(0, 1)
    return slope * (x - slope * (width / 2)), slope


@final
class ICNN(Potential):
    r"""A convex Lyapunov function that vanishes exactly at its center.

    .. math:: V(z) = \sigma(g(z) - g(c) - \tau\,\nabla g(c)^\top (z - c)) + \eta \|z - c\|^2

    with the input-convex network

    .. math:: q_1 = \sigma(W_0 z + b_0), \quad q_{i+1} = \sigma(U_i q_i + W_i z + b_i), \quad
              U_i \ge 0, \quad g = q_k,

    and the smooth ReLU :math:`\sigma`. ``V`` is convex with a continuous gradient, zero with zero
    gradient at :math:`c` alone, and at least :math:`\eta\|z - c\|^2`. The center's terms are
    recomputed at every call, so all of this holds at any stage of training.

    The non-negative weights are :math:`U = \mathrm{softplus}(\cdot)` divided by the fan-in.

    Args:
        state_shape: shape of one state; ``n`` is its number of entries.
        hidden: widths of the hidden layers; the last layer of ``g`` is scalar.
        eta: the weight ``η > 0`` of the quadratic term.
        smoothing: the width ``d > 0`` of the smooth ReLU.
        center: where ``V`` vanishes unless the context gives a center per sample; the origin if
            ``None``.
        tangent: whether the tangent plane at the center is subtracted, ``τ = 1``. Then ``V`` grows
            in all directions as ``g`` bends; without it ([LyaDEQ]'s form) only where ``g`` rises.

    Raises:
        InvalidOptionError: if a width, ``eta`` or ``smoothing`` is not positive.

    References:
        [LyaDEQ] (9), (10), (12); [MK] (11)–(13); Amos, Xu, Kolter: "Input Convex Neural Networks".
    """

    convex = True
    center: Tensor

    def __init__(
        self,
        state_shape: Sequence[int],
        hidden: Sequence[int] = (64,),
        eta: float = 0.1,
        smoothing: float = 1.0,
        tangent: bool = False,
        center: Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        if not hidden:
            raise InvalidOptionError(
                "hidden=() is empty; give one width of a hidden layer at least"
            )
        self.state_shape = tuple(state_shape)
        self.eta = number("eta", eta, above=0)
        self.smoothing = number("smoothing", smoothing, above=0)
        self.tangent = flag("tangent", tangent)
        self.register_buffer("center", point(center, self.state_shape))
        n = math.prod(self.state_shape)
        widths = (*(whole("hidden", width, 1) for width in hidden), 1)
        self.direct = nn.ModuleList(nn.Linear(n, width) for width in widths)
        self.positive = nn.ParameterList(
            torch.empty(after, before).uniform_(-1, 1) for before, after in pairwise(widths)
        )

    def forward(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> Float[Tensor, "*batch"]:
        """Evaluate ``V``; the center is ``context.center``, or the potential's own."""
        return self.value_and_gradient(z, context)[0]

    def value_and_gradient(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
        r"""Evaluate ``V`` and its gradient, in closed form.

        .. math:: \nabla V = \sigma'(\cdot)\,(\nabla g(z) - \tau \nabla g(c)) + 2\eta (z - c)

        Autocast is switched off: near the center its rounding would outweigh the values.
        """
        with torch.autocast(z.device.type, enabled=False):
            precision = torch.promote_types(z.dtype, self.positive[0].dtype)
            return self._evaluate(z.to(precision), context)

    def _evaluate(self, z: Tensor, context: Context | None) -> tuple[Tensor, Tensor]:
        offset, flat_c = offset_from(center_of(self, context), z, len(self.state_shape))
        g, slope = self._network(z.flatten(-len(self.state_shape)))
        g_c, slope_c = self._network(flat_c)
        rise = g - g_c
        if self.tangent:
            rise = rise - (slope_c * offset).sum(-1)
            slope = slope - slope_c
        # At the center itself nothing may be left of the rounding of two evaluations.
        rise = torch.where((offset == 0).all(-1), 0, rise)
        value, factor = smooth_relu(rise, self.smoothing)
        value = value + self.eta * offset.square().sum(-1)
        gradient = factor[..., None] * slope + 2 * self.eta * offset
        return value, gradient.unflatten(-1, self.state_shape)

    def growth_bound(self) -> Float[Tensor, ""]:
        """Return ``η``; see :class:`stabnet.interfaces.BoundsGrowth`."""
        return torch.tensor(self.eta, dtype=torch.float64, device=self.center.device)

    def smoothness_bound(self) -> Float[Tensor, ""]:
        r"""Return a Lipschitz constant of ``∇V``; see :class:`stabnet.interfaces.BoundsSmoothness`.

        Unit by unit, :math:`\rho` bounds the gradients and :math:`h` the Hessians of a layer:

        .. math:: \rho_{i+1} = U_i \rho_i + \|W_i\|_{rows}, \qquad
                  h_{i+1} = U_i h_i + \rho_{i+1}^2/d

        since the smooth ReLU has slopes in [0, 1] and curvatures in [0, 1/d]. Then
        :math:`L = ((1 + \tau)\rho)^2/d + h + 2\eta`, one layer more of the same.
        """
        d = self.smoothing
        with torch.no_grad():
            rows = [cast(nn.Linear, w).weight.double().norm(dim=1) for w in self.direct]
            weights = [F.softplus(raw.double()) / raw.shape[1] for raw in self.positive]
            slope, curvature = rows[0], rows[0].square() / d
            for U, row in zip(weights, rows[1:], strict=True):
                slope = U @ slope + row
                curvature = U @ curvature + slope.square() / d
            rise = slope[0] * (2 if self.tangent else 1)
            bound: Tensor = (rise.square() / d + curvature[0] + 2 * self.eta) * _ROUNDING
            return bound

    def _network(self, z: Float[Tensor, "... n"]) -> tuple[Tensor, Tensor]:
        """Return ``g(z)`` and ``∇g(z)``, by one forward and one reverse sweep."""
        weights = [F.softplus(raw) / raw.shape[1] for raw in self.positive]
        q, slope = smooth_relu(self.direct[0](z), self.smoothing)
        slopes = [slope]
        for layer, U in zip(self.direct[1:], weights, strict=True):
            q, slope = smooth_relu(F.linear(q, U) + layer(z), self.smoothing)
            slopes.append(slope)
        delta = slopes[-1]
        direct = [cast(nn.Linear, layer).weight for layer in self.direct]
        gradient = delta @ direct[-1]
        for slope, U, W in zip(slopes[-2::-1], weights[::-1], direct[-2::-1], strict=True):
            delta = slope * (delta @ U)
            gradient = gradient + delta @ W
        return q[..., 0], gradient

    def extra_repr(self) -> str:
        """Return the constants."""
        return f"eta={self.eta}, smoothing={self.smoothing}, tangent={self.tangent}"
