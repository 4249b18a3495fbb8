"""ResNet-18 with the stem that small images need."""

from __future__ import annotations

from collections.abc import Sequence

import torchvision
from torch import nn

from .._checks import image_shape, positive_int
from .standard_backbone import StandardBackbone

__all__ = ["resnet18"]


def resnet18(
    in_shape: Sequence[int], width: int = 64, weights: str | None = None, frozen: bool = False
) -> StandardBackbone:
    """Return torchvision's ResNet-18 with a stem for small images and ``width`` features.

    The stem is a 3 × 3 convolution of stride 1 without max-pooling, in place of ImageNet's, which
    would shrink a 32 × 32 image to 8 × 8 before the first block. On 8 × 8 images the last stage is
    a single pixel, so that batch normalization in training mode needs at least two images.

    Args:
        in_shape: ``(channels, height, width)`` of one image, at least 8 × 8.
        width: number of features.
        weights: a safetensors file to load.
        frozen: keep the weights and the statistics of batch normalization as they are.

    Raises:
        InvalidOptionError: if ``in_shape`` is no such image.

    References:
        He, Zhang, Ren, Sun, "Deep residual learning for image recognition", table 1.
    """
    sizes = image_shape("backbone 'resnet18'", in_shape)
    net = torchvision.models.resnet18(weights=None, num_classes=positive_int("width", width))
    net.conv1 = nn.Conv2d(sizes[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return StandardBackbone(net, sizes, (width,), weights=weights, frozen=frozen)
