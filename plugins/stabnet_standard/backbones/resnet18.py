"""ResNet-18 with the stem that small images need, or with ImageNet's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torchvision
from torch import nn

import stabnet

from .._checks import image_shape, positive_int
from .standard_backbone import StandardBackbone

__all__ = ["resnet18"]


def resnet18(
    in_shape: Sequence[int],
    width: int = 64,
    stem: Literal["cifar", "imagenet"] = "cifar",
    weights: str | None = None,
    frozen: bool = False,
) -> StandardBackbone:
    """Return torchvision's ResNet-18 with ``width`` features.

    The stem ``"cifar"``, for small images, is a 3 × 3 convolution of stride 1 without max-pooling.
    ``"imagenet"`` is torchvision's own, a 7 × 7 convolution of stride 2 and max-pooling, which
    shrinks a 32 × 32 image to 8 × 8 before the first block and to a single pixel before the last
    layer. The released code of [LyaNet] has it on 32 × 32 images; it is a weak baseline there.

    Where the last stage is a single pixel (images up to 8 × 8 with the one stem, 32 × 32 with the
    other), batch normalization in training mode needs at least two images.

    Args:
        in_shape: ``(channels, height, width)`` of one image, at least 8 × 8.
        width: number of features.
        stem: the layers before the first block.
        weights: a safetensors file to load.
        frozen: keep the weights and the statistics of batch normalization as they are.

    Raises:
        InvalidOptionError: if ``in_shape`` is no such image, or for another ``stem``.

    References:
        He, Zhang, Ren, Sun, "Deep residual learning for image recognition", table 1.
    """
    sizes = image_shape("backbone 'resnet18'", in_shape)
    if stem not in ("cifar", "imagenet"):
        raise stabnet.InvalidOptionError(f"stem is 'cifar' or 'imagenet'; got {stem!r}")
    net = torchvision.models.resnet18(weights=None, num_classes=positive_int("width", width))
    if stem == "cifar":
        net.conv1 = nn.Conv2d(sizes[0], 64, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    else:
        net.conv1 = nn.Conv2d(sizes[0], 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    return StandardBackbone(net, sizes, (width,), weights=weights, frozen=frozen)
