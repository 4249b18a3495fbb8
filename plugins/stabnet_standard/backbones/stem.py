"""The stem: one convolution, whose features stay on the grid of the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .._checks import image_shape, positive_int
from .standard_backbone import StandardBackbone

__all__ = ["stem"]


def stem(
    in_shape: Sequence[int],
    channels: int = 32,
    stride: int = 1,
    weights: str | None = None,
    frozen: bool = False,
) -> StandardBackbone:
    """Return one 3 × 3 convolution with batch normalization and ReLU.

    Its features are on a grid, ``(channels, ⌈height/stride⌉, ⌈width/stride⌉)``, for states that
    are: convolutional cells and vector fields.

    Args:
        in_shape: ``(channels, height, width)`` of one image, at least 8 × 8.
        channels: channels of the features.
        stride: how many pixels of the image make one of the grid, in each direction.
        weights: a safetensors file to load.
        frozen: keep the weights and the statistics of batch normalization as they are.

    Raises:
        InvalidOptionError: if ``in_shape`` is no such image, or an option is not positive.
    """
    sizes = image_shape("backbone 'stem'", in_shape)
    step, after = positive_int("stride", stride), positive_int("channels", channels)
    net = nn.Sequential(
        nn.Conv2d(sizes[0], after, 3, stride=step, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )
    grid = tuple(-(-n // step) for n in sizes[1:])
    return StandardBackbone(net, sizes, (after, *grid), weights=weights, frozen=frozen)
