r"""Activations whose slopes are known, and what they may be used for.

The non-expansive step :math:`x - h A^\top \sigma(Ax + b)` needs slopes of :math:`\sigma` in
:math:`[0, 1]`: then :math:`\sigma(Ax + b) = \nabla_y \varphi(Ax + b)` with a convex
:math:`\varphi`. MaxMin permutes entries, so it keeps distances; but it is the derivative of no sum
of functions of one variable, and in such a step it expands. It goes with feed-forward layers of
norm one.

References:
    [SNN] (18)–(19) and the condition on :math:`\sigma` there. Anil, Lucas, Grosse: "Sorting out
    Lipschitz function approximation", 2019, for MaxMin (GroupSort of size two).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError

__all__ = [
    "Activation",
    "check_features",
    "feed_forward_activation",
    "max_min",
    "monotone_activation",
]


@final
@dataclass(frozen=True)
class Activation:
    """An activation and the range of its slopes.

    Attributes:
        name: as it is written in options.
        function: maps tensors to tensors of the same shape.
        least_slope: at most every difference quotient of it.
        largest_slope: at least the size of every difference quotient, at most 1.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    least_slope: float = 0.0
    largest_slope: float = 1.0

    def __call__(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return ``σ(x)``."""
        return self.function(x)


def max_min(x: Float[Tensor, "batch features ..."]) -> Float[Tensor, "batch features ..."]:
    r"""Return the larger, then the smaller, of each pair of neighboring features.

    It permutes entries, so that :math:`\|\sigma(x) - \sigma(y)\| \le \|x - y\|` and gradients keep
    their length.

    Args:
        x: states with an even number of features, in dimension 1.
    """
    first, second = x.unflatten(1, (-1, 2)).unbind(2)
    return torch.stack([torch.maximum(first, second), torch.minimum(first, second)], 2).flatten(
        1, 2
    )


def _softplus(x: Tensor) -> Tensor:
    """Return ``log(1 + exp x)``; torch's own jumps down by 2e-9 at its threshold."""
    return torch.logaddexp(x, torch.zeros_like(x))


def monotone_activation(name: str) -> Activation:
    """Return an activation with all slopes in [0, 1], by name.

    Raises:
        InvalidOptionError: for any other, with the reason where it is known.
    """
    return _chosen(name, MONOTONE, "in a non-expansive step, whose bound needs slopes in [0, 1]")


def feed_forward_activation(name: str) -> Activation:
    """Return an activation that expands no distance, by name: the monotone ones, MaxMin and abs.

    Raises:
        InvalidOptionError: for any other, with the reason where it is known.
    """
    return _chosen(
        name, FEED_FORWARD, "after a layer of norm one, where it must not expand distances"
    )


def _chosen(name: str, known: Mapping[str, Activation], where: str) -> Activation:
    if isinstance(name, str) and name in known:
        return known[name]
    why = _REFUSED.get(str(name), "it is not known here")
    raise InvalidOptionError(
        f"activation={name!r} cannot be used {where}: {why}. Use one of {', '.join(known)}"
    )


def check_features(activation: Activation | None, features: int) -> None:
    """Raise :class:`stabnet.InvalidOptionError` for MaxMin of an odd number of features."""
    if activation is not None and activation.name == "maxmin" and features % 2:
        raise InvalidOptionError(
            f"activation='maxmin' compares features in pairs, and there are {features}; use an "
            "even number of features, or another activation such as 'abs'"
        )


def _known(*activations: Activation) -> Mapping[str, Activation]:
    return MappingProxyType({activation.name: activation for activation in activations})


MONOTONE: Mapping[str, Activation] = _known(
    Activation("relu", F.relu),
    Activation("leaky_relu", F.leaky_relu, least_slope=0.01),
    Activation("tanh", torch.tanh),
    Activation("sigmoid", torch.sigmoid, largest_slope=0.25),
    Activation("softplus", _softplus),
    Activation("elu", F.elu),
    Activation("hardtanh", F.hardtanh),
    Activation("softsign", F.softsign),
)
"""Activations with slopes in [0, 1], by name."""

FEED_FORWARD: Mapping[str, Activation] = MappingProxyType(
    {
        "maxmin": Activation("maxmin", max_min, least_slope=-1.0),
        "abs": Activation("abs", torch.abs, least_slope=-1.0),
        **MONOTONE,
    }
)
"""Activations that expand no distance, by name."""

_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "maxmin": "it is not monotone, and such a block measured a Lipschitz constant of 3; it "
        "goes with the feed-forward blocks 'aol' and 'cayley'",
        "groupsort": "it is not monotone; 'maxmin' is its case of groups of two, and goes with the "
        "feed-forward blocks 'aol' and 'cayley'",
        "abs": "its slopes go down to -1",
        "gelu": "its slopes go from -0.13 to 1.13",
        "silu": "its slopes go from -0.10 to 1.10",
        "swish": "its slopes go from -0.10 to 1.10",
        "mish": "its slopes go from -0.12 to 1.09",
        "sin": "its slopes go down to -1",
        "selu": "its slopes go up to 1.76",
        "prelu": "its slope is learned and may leave [0, 1]; 'leaky_relu' has a fixed one",
    }
)
"""Why others are refused."""
