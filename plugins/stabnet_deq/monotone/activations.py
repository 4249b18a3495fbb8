r"""Activations as proximal operators.

A function :math:`\sigma` of one variable is the proximal operator of a convex :math:`\varphi`
exactly if it does not decrease and no slope of it exceeds one; then
:math:`\partial\varphi = \sigma^{-1} - \mathrm{id}`, and

.. math:: \operatorname{prox}_{\alpha\varphi}(v) = \sigma(x), \qquad
          \alpha x + (1 - \alpha)\,\sigma(x) = v .

The left-hand side of that equation has slopes between 1 and :math:`\alpha`.

References:
    Winston, Kolter: "Monotone operator equilibrium networks", 2020, section 3 and the table of
    proximal operators in its appendix; Combettes, Pesquet: "Deep neural network structures solving
    variational inequalities", 2020, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError

__all__ = [
    "ACTIVATIONS",
    "ProximalActivation",
    "hardtanh",
    "leaky_relu",
    "proximal_activation",
    "soft_threshold",
]

Function = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class ProximalActivation:
    r"""A non-decreasing activation with slopes at most one, and its proximal operator.

    Attributes:
        value: the activation :math:`\sigma`, elementwise.
        slope: its derivative, elementwise, in [0, 1].
        closed_form: ``(v, α) ↦ prox_{αφ}(v)`` where there is one; by default Newton's method
            solves ``αx + (1 − α)σ(x) = v``.

    Raises:
        InvalidOptionError: if ``value`` decreases or grows faster than its argument, or ``slope``
            leaves [0, 1], at points tried.
    """

    value: Function
    slope: Function
    closed_form: Callable[[Tensor, float], Tensor] | None = None

    def __post_init__(self) -> None:
        x = torch.linspace(-12, 12, 2401, dtype=torch.float64)
        slopes = torch.cat([self.slope(x), self.value(x).diff() / x.diff()])
        if not bool(((slopes >= -1e-9) & (slopes <= 1 + 1e-9)).all()):
            raise InvalidOptionError(
                f"an activation with slopes from {float(slopes.min()):.4g} to "
                f"{float(slopes.max()):.4g} is no proximal operator: it must not decrease, and "
                "its slopes must not exceed 1. Choose another activation, or scale it"
            )

    def __call__(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Evaluate the activation."""
        return self.value(x)

    def proximal(self, v: Float[Tensor, "..."], alpha: float) -> Float[Tensor, "..."]:
        """Evaluate ``prox_{αφ}(v)``, which is the activation itself at ``α = 1``.

        Args:
            v: where.
            alpha: the step ``α``, positive.
        """
        if alpha == 1:
            return self.value(v)
        if self.closed_form is not None:
            return self.closed_form(v, alpha)
        return self.value(self._preactivation(v, alpha))

    def _preactivation(self, v: Tensor, alpha: float) -> Tensor:
        """Solve ``αx + (1 − α)σ(x) = v`` by Newton's method within a shrinking bracket."""

        def error(x: Tensor) -> Tensor:
            return alpha * x + (1 - alpha) * self.value(x) - v

        def slope(x: Tensor) -> Tensor:
            return alpha + (1 - alpha) * self.slope(x)

        flat, steep = min(1.0, alpha), max(1.0, alpha)
        with torch.no_grad():
            x = torch.zeros_like(v)
            lower, upper = torch.full_like(v, -math.inf), torch.full_like(v, math.inf)
            # Measured to suffice for eight digits from 1e-3 to 1e3; the last step doubles them.
            for _ in range(4 + math.ceil(2 * abs(math.log10(alpha)))):
                e = error(x)
                # The slopes are known to within [flat, steep], and so is the distance to the root.
                ends = x - e / steep, x - e / flat
                lower = torch.maximum(lower, torch.minimum(*ends))
                upper = torch.minimum(upper, torch.maximum(*ends))
                newton = x - e / slope(x)
                inside = (newton >= lower) & (newton <= upper)
                x = torch.where(inside, newton, (lower + upper) / 2)
        # Each further step doubles the order to which derivatives in v are those of the root: the
        # first step makes the first right, the second the second, which unrolled solves may need.
        for _ in range(2):
            x = x - error(x) / slope(x)
        return x


# Functions of modules, not lambdas, so that a model can be sent to another process.


def _relu_proximal(v: Tensor, alpha: float) -> Tensor:
    return torch.relu(v)


def _relu_slope(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _leaky(x: Tensor, negative_slope: float) -> Tensor:
    return torch.where(x > 0, x, negative_slope * x)


def _leaky_slope(x: Tensor, negative_slope: float) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), negative_slope)


def _leaky_proximal(v: Tensor, alpha: float, negative_slope: float) -> Tensor:
    return _leaky(v, negative_slope / (negative_slope + alpha * (1 - negative_slope)))


def _shrink(x: Tensor, threshold: float) -> Tensor:
    return x - x.clamp(-threshold, threshold)


def _shrink_slope(x: Tensor, threshold: float) -> Tensor:
    return (x.abs() > threshold).to(x.dtype)


def _shrink_proximal(v: Tensor, alpha: float, threshold: float) -> Tensor:
    return _shrink(v, alpha * threshold)


def _clamp(x: Tensor, lower: float, upper: float) -> Tensor:
    return x.clamp(lower, upper)


def _clamp_slope(x: Tensor, lower: float, upper: float) -> Tensor:
    return ((x > lower) & (x < upper)).to(x.dtype)


def _clamp_proximal(v: Tensor, alpha: float, lower: float, upper: float) -> Tensor:
    return v.clamp(lower, upper)


def _elu_slope(x: Tensor) -> Tensor:
    return x.clamp(max=0).exp()


def _sigmoid_slope(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _softplus(x: Tensor) -> Tensor:
    # F.softplus is the identity beyond a threshold, where it jumps by 2e-9.
    return torch.logaddexp(x, torch.zeros_like(x))


def _tanh_slope(x: Tensor) -> Tensor:
    return 1 - torch.tanh(x).square()


def leaky_relu(negative_slope: float = 0.01) -> ProximalActivation:
    """Return the leaky ReLU.

    Args:
        negative_slope: slope for negative arguments, in (0, 1].

    Raises:
        InvalidOptionError: for a slope out of that range.
    """
    if not 0 < negative_slope <= 1:
        raise InvalidOptionError(f"negative_slope must be in (0, 1]; got {negative_slope}")
    functions = (_leaky, _leaky_slope, _leaky_proximal)
    return ProximalActivation(*(partial(f, negative_slope=negative_slope) for f in functions))


def soft_threshold(threshold: float = 1.0) -> ProximalActivation:
    """Return the proximal operator of ``threshold · |z|``, which shrinks towards zero.

    Args:
        threshold: by how much it shrinks, not negative.

    Raises:
        InvalidOptionError: for a negative or infinite threshold.
    """
    if not 0 <= threshold < math.inf:
        raise InvalidOptionError(f"threshold must be finite and not negative; got {threshold}")
    functions = (_shrink, _shrink_slope, _shrink_proximal)
    return ProximalActivation(*(partial(f, threshold=threshold) for f in functions))


def hardtanh(lower: float = -1.0, upper: float = 1.0) -> ProximalActivation:
    """Return the projection onto an interval, its own proximal operator at every step.

    Args:
        lower: lower end of the interval.
        upper: upper end.

    Raises:
        InvalidOptionError: for an empty interval.
    """
    if not lower < upper:
        raise InvalidOptionError(f"an interval needs lower < upper; got [{lower}, {upper}]")
    functions = (_clamp, _clamp_slope, _clamp_proximal)
    return ProximalActivation(*(partial(f, lower=lower, upper=upper) for f in functions))


ACTIVATIONS: Mapping[str, ProximalActivation] = MappingProxyType(
    {
        "elu": ProximalActivation(torch.nn.functional.elu, _elu_slope),
        "hardtanh": hardtanh(),
        "leaky_relu": leaky_relu(),
        "relu": ProximalActivation(torch.relu, _relu_slope, _relu_proximal),
        "sigmoid": ProximalActivation(torch.sigmoid, _sigmoid_slope),
        "soft_threshold": soft_threshold(),
        "softplus": ProximalActivation(_softplus, torch.sigmoid),
        "tanh": ProximalActivation(torch.tanh, _tanh_slope),
    }
)
"""Activations by name, with their default parameters."""


def proximal_activation(activation: str | ProximalActivation) -> ProximalActivation:
    """Return an activation by name, or the given one.

    Raises:
        InvalidOptionError: for a name or an object without a known proximal operator.
    """
    if isinstance(activation, ProximalActivation):
        return activation
    if isinstance(activation, str) and activation in ACTIVATIONS:
        return ACTIVATIONS[activation]
    raise InvalidOptionError(
        "a monotone cell needs an activation together with its proximal operator, because "
        "splitting with the activation in its place converges to a wrong point. Known are "
        f"{', '.join(ACTIVATIONS)}; got {activation!r}. Another one that does not decrease and "
        "whose slopes do not exceed 1 (not so gelu, silu, selu, sin) is given as "
        "ProximalActivation(value, slope)"
    )
