"""The input-convex Lyapunov function, with its gradient in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import Context, Potential
from stabnet.values import flag, number, shape, whole

from ..center import center_of, offset_from, point
from .spectrum import ROUNDING, norm_bound

__all__ = ["ICNN", "smooth_relu"]


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
    slope = _slope(x, width)
    return slope * torch.sub(x, slope, alpha=width / 2), slope


def _slope(x: Tensor, width: float) -> Tensor:
    """Return the derivative of the smooth ReLU; unlike clamp's, its own is a single kernel."""
    return F.hardtanh(x / width, 0.0, 1.0)


class _Sweep(NamedTuple):
    """What a forward and a reverse sweep through the network find, layer by layer.

    Attributes:
        inputs: what the smooth ReLU is applied to.
        slopes: its derivatives.
        shares: the derivatives of ``g`` by its values.
        gradient: the derivative of ``g`` by the state.
    """

    inputs: list[Tensor]
    slopes: list[Tensor]
    shares: list[Tensor]
    gradient: Tensor


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

    The non-negative weights are :math:`U = \mathrm{softplus}(\cdot)` divided by the fan-in. Biases
    start such that every unit bends around the center. What lies above the tangent plane there is
    computed layer by layer, so that value and gradient are accurate at any distance from it.

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
        self.state_shape = shape("state_shape", state_shape)
        self.eta = number("eta", eta, above=0)
        self.smoothing = number("smoothing", smoothing, above=0)
        self.tangent = flag("tangent", tangent)
        self.register_buffer("center", point(center, self.state_shape))
        n = math.prod(self.state_shape)
        widths = (*(whole("hidden", width, 1) for width in hidden), 1)
        self.direct = nn.ModuleList(nn.Linear(n, width) for width in widths)
        with torch.no_grad():
            for layer in self.direct:  # start on the curved piece around the center
                linear = cast(nn.Linear, layer)
                linear.bias.add_(self.smoothing / 2 - linear.weight @ self.center.flatten())
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
        offset, c = offset_from(center_of(self, context), z, len(self.state_shape))
        weights = [F.softplus(raw) / raw.shape[1] for raw in self.positive]
        here = self._sweep(z.flatten(-len(self.state_shape)), weights)
        center = self._sweep(c, weights)
        rise, gradient = self._above_tangent(here, center), here.gradient
        if self.tangent:
            gradient = gradient - center.gradient
        else:
            rise = rise + (center.gradient * offset).sum(-1)
        # At the center itself nothing may be left of the rounding of two sweeps.
        rise = torch.where((offset == 0).all(-1), 0, rise)
        value, factor = smooth_relu(rise, self.smoothing)
        value = value + self.eta * offset.square().sum(-1)
        gradient = factor[..., None] * gradient + 2 * self.eta * offset
        return value, gradient.unflatten(-1, self.state_shape)

    def _sweep(self, z: Float[Tensor, "... n"], weights: list[Tensor]) -> _Sweep:
        """Sweep through the network at flattened states."""
        first, *others = self.direct
        inputs, slopes = [first(z)], []
        for layer, U in zip(others, weights, strict=True):
            q, slope = smooth_relu(inputs[-1], self.smoothing)
            slopes.append(slope)
            inputs.append(F.linear(q, U) + layer(z))
        slopes.append(_slope(inputs[-1], self.smoothing))
        direct = [cast(nn.Linear, layer).weight for layer in (first, *others)]
        shares = [torch.ones_like(slopes[-1])]
        delta = slopes[-1]
        gradient = delta @ direct[-1]
        for slope, U, W in zip(slopes[-2::-1], weights[::-1], direct[-2::-1], strict=True):
            shares.append(delta @ U)
            delta = slope * shares[-1]
            gradient = gradient + delta @ W
        return _Sweep(inputs, slopes, shares[::-1], gradient)

    def _above_tangent(self, here: _Sweep, center: _Sweep) -> Float[Tensor, "..."]:
        r"""Return :math:`g(z) - g(c) - \nabla g(c)^\top (z - c)`, accurate near the center.

        It is what each layer's smooth ReLU leaves above its own tangent at the center,

        .. math:: \sigma(a) - \sigma(a_c) - \sigma'(a_c)(a - a_c)
                  = (s - s_c)(a - \tfrac d2 (s + s_c)) \ge 0, \qquad s = \sigma'(a),

        times the derivative of ``g(c)`` by that layer. So the rounding of ``g`` does not enter,
        which near the center outweighs the difference of two values.
        """
        parts = [
            (share * ((s - s_c) * torch.sub(a, s + s_c, alpha=self.smoothing / 2))).sum(-1)
            for a, s, s_c, share in zip(
                here.inputs, here.slopes, center.slopes, center.shares, strict=True
            )
        ]
        return sum(parts[1:], parts[0])

    def growth_bound(self) -> Float[Tensor, ""]:
        """Return ``η``; see :class:`stabnet.interfaces.BoundsGrowth`."""
        return torch.tensor(self.eta, dtype=torch.float64, device=self.center.device)

    def smoothness_bound(self) -> Float[Tensor, ""]:
        r"""Return a Lipschitz constant of ``∇V``; see :class:`stabnet.interfaces.BoundsSmoothness`.

        The smooth ReLU has slopes in [0, 1] and curvatures in [0, 1/d], and weights between layers
        are not negative. So the derivatives of ``g`` by the units of layer ``i`` lie between 0 and
        :math:`\Lambda_i = (U_{k-1} \cdots U_i)^\top 1`, and with the Jacobians :math:`J_i` of
        what the layers are applied to

        .. math:: \|\nabla g(z) - \tau \nabla g(c)\| \le G = \sum_i
                  \min\{\|\Lambda_i\| \|W_i\|,\; \Lambda_i^\top \|W_i\|_{rows}\}, \qquad
                  \|\nabla^2 g\| \le H = \tfrac1d \sum_i \|\Lambda_i^{1/2} J_i\|^2,

        and :math:`L = G^2/d + H + 2\eta`. The norms with :math:`J_i` are bounded by its recursion
        :math:`J_{i+1} = U_i S_i J_i + W_{i+1}`, in spectral norms or row by row.
        """
        with torch.no_grad():
            direct = [cast(nn.Linear, layer).weight.double() for layer in self.direct]
            weights = [F.softplus(raw.double()) / raw.shape[1] for raw in self.positive]
            shares = [torch.ones_like(direct[-1][:, 0])]
            for U in reversed(weights):
                shares.insert(0, shares[0] @ U)
            slope = curvature = norm = direct[0].new_zeros(())
            rows = direct[0].new_zeros(1)
            first = direct[0].new_zeros(len(direct[0]), 1)  # nothing comes before it
            for share, W, U in zip(shares, direct, [first, *weights], strict=True):
                lengths = W.norm(dim=1)
                slope = slope + torch.minimum(share.norm() * norm_bound(W), share @ lengths)
                rows = U @ rows + lengths
                root = share.sqrt()[:, None]
                weighted = torch.minimum(
                    norm_bound(root * U) * norm + norm_bound(root * W), (root[:, 0] * rows).norm()
                )
                norm = torch.minimum(norm_bound(U) * norm + norm_bound(W), rows.norm())
                curvature = curvature + weighted.square()
            bound = (slope.square() + curvature) / self.smoothing + 2 * self.eta
            return bound * (1 + ROUNDING)

    def extra_repr(self) -> str:
        """Return the constants."""
        return f"eta={self.eta}, smoothing={self.smoothing}, tangent={self.tangent}"
