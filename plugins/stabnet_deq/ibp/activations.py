"""Activations that interval bounds can follow: non-decreasing and 1-Lipschitz."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from stabnet import InvalidOptionError

__all__ = ["monotone_activation"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "tanh": torch.tanh,
}


def monotone_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return a non-decreasing activation whose slopes lie in [0, 1].

    Args:
        name: ``"relu"``, ``"leaky_relu"`` (slope 0.01 below zero) or ``"tanh"``.

    Raises:
        InvalidOptionError: for another name.
    """
    if name not in _ACTIVATIONS:
        raise InvalidOptionError(
            f"activation={name!r} is not one that interval bounds can follow; it is one of "
            f"{', '.join(_ACTIVATIONS)}, which are non-decreasing and 1-Lipschitz"
        )
    return _ACTIVATIONS[name]
