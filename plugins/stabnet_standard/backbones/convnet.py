"""A small convolutional backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

import stabnet

from .._checks import image_shape, positive_int, positive_ints
from .standard_backbone import StandardBackbone

__all__ = ["convnet"]


def convnet(
    in_shape: Sequence[int],
    channels: Sequence[int] = (32, 64, 64),
    width: int = 64,
    weights: str | None = None,
    frozen: bool = False,
) -> StandardBackbone:
    """Return a few 3 × 3 convolutions, a global average and one linear layer.

    Each convolution is followed by batch normalization and ReLU; the first keeps the image size,
    each further one halves it.

    Args:
        in_shape: ``(channels, height, width)`` of one image, at least 8 × 8.
        channels: output channels of each convolution.
        width: number of features.
        weights: a safetensors file to load.
        frozen: keep the weights and the statistics of batch normalization as they are.

    Raises:
        InvalidOptionError: if ``in_shape`` is no such image, or there is no convolution.
    """
    sizes = image_shape("backbone 'convnet'", in_shape)
    stages = positive_ints("channels", channels)
    if not stages:
        raise stabnet.InvalidOptionError("channels names at least one convolution; got none")
    layers: list[nn.Module] = []
    before = sizes[0]
    for index, after in enumerate(stages):
        layers += [
            nn.Conv2d(before, after, 3, stride=1 if index == 0 else 2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
        before = after
    layers += [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(before, positive_int("width", width)),
    ]
    return StandardBackbone(nn.Sequential(*layers), sizes, (width,), weights=weights, frozen=frozen)
