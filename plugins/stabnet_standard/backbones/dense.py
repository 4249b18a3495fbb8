"""Backbones without convolutions: identity, one linear layer, a multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from stabnet.values import shape

from .._checks import positive_int, positive_ints
from .._layers import dense
from .standard_backbone import StandardBackbone

__all__ = ["identity", "linear", "mlp"]


def identity(
    in_shape: Sequence[int], weights: str | None = None, frozen: bool = False
) -> StandardBackbone:
    """Return the backbone whose features are the input itself.

    Args:
        in_shape: shape of one input, any.
        weights: accepted as by every backbone; there is nothing to load.
        frozen: accepted as by every backbone; there is nothing to train.
    """
    sizes = shape("in_shape", in_shape)
    return StandardBackbone(nn.Identity(), sizes, sizes, weights=weights, frozen=frozen)


def linear(
    in_shape: Sequence[int], width: int = 64, weights: str | None = None, frozen: bool = False
) -> StandardBackbone:
    """Return one fully connected layer on the flattened input.

    Args:
        in_shape: shape of one input, any.
        width: number of features.
        weights: a safetensors file to load.
        frozen: keep the weights as they are.
    """
    return mlp(in_shape, hidden=(), width=width, weights=weights, frozen=frozen)


def mlp(
    in_shape: Sequence[int],
    hidden: Sequence[int] = (128,),
    width: int = 64,
    activation: str = "relu",
    weights: str | None = None,
    frozen: bool = False,
) -> StandardBackbone:
    """Return a multi-layer perceptron on the flattened input.

    Args:
        in_shape: shape of one input, any.
        hidden: widths of the hidden layers.
        width: number of features.
        activation: name of the activation between layers; the features are not activated.
        weights: a safetensors file to load.
        frozen: keep the weights as they are.
    """
    sizes = shape("in_shape", in_shape)
    widths = (*positive_ints("hidden", hidden), positive_int("width", width))
    net = nn.Sequential(nn.Flatten(), *dense((math.prod(sizes), *widths), activation))
    return StandardBackbone(net, sizes, (width,), weights=weights, frozen=frozen)
