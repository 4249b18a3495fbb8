"""Layers that several parts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from torch import nn

import stabnet

__all__ = ["ACTIVATIONS", "activation", "dense"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "relu": nn.ReLU,
        "sigmoid": nn.Sigmoid,
        "silu": nn.SiLU,
        "softplus": nn.Softplus,
        "tanh": nn.Tanh,
    }
)
"""Activations by name."""


def activation(name: str) -> nn.Module:
    """Return a new activation layer.

    Args:
        name: one of :data:`ACTIVATIONS`.

    Raises:
        InvalidOptionError: for a name that is not among them.
    """
    if name not in ACTIVATIONS:
        raise stabnet.InvalidOptionError(
            f"activation is one of {', '.join(ACTIVATIONS)}; got {name!r}"
        )
    return ACTIVATIONS[name]()


def dense(sizes: Sequence[int], activation_name: str) -> list[nn.Module]:
    """Return linear layers from each size to the next, with an activation between every two.

    Args:
        sizes: number of features before the first layer, between layers and after the last.
        activation_name: one of :data:`ACTIVATIONS`.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        if layers:
            layers.append(activation(activation_name))
        layers.append(nn.Linear(fan_in, fan_out))
    return layers
