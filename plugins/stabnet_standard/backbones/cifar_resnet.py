"""The residual networks of He et al. for small images: ResNet-20 and ResNet-56."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .._checks import image_shape, positive_int
from .standard_backbone import StandardBackbone

__all__ = ["resnet20", "resnet56"]


def resnet20(
    in_shape: Sequence[int], width: int = 64, weights: str | None = None, frozen: bool = False
) -> StandardBackbone:
    """Return the ResNet-20 for small images, 0.27 M parameters, with ``width`` features.

    Args:
        in_shape: ``(channels, height, width)`` of one image, at least 8 × 8.
        width: number of features, of a final linear layer on the 64 averaged channels.
        weights: a safetensors file to load.
        frozen: keep the weights and the statistics of batch normalization as they are.

    Raises:
        InvalidOptionError: if ``in_shape`` is no such image.

    References:
        He, Zhang, Ren, Sun, "Deep residual learning for image recognition", section 4.2.
    """
    return _resnet("resnet20", 3, in_shape, width, weights, frozen)


def resnet56(
    in_shape: Sequence[int], width: int = 64, weights: str | None = None, frozen: bool = False
) -> StandardBackbone:
    """Return the ResNet-56 for small images, 0.85 M parameters, with ``width`` features.

    Args:
        in_shape: ``(channels, height, width)`` of one image, at least 8 × 8.
        width: number of features, of a final linear layer on the 64 averaged channels.
        weights: a safetensors file to load.
        frozen: keep the weights and the statistics of batch normalization as they are.

    Raises:
        InvalidOptionError: if ``in_shape`` is no such image.

    References:
        He, Zhang, Ren, Sun, "Deep residual learning for image recognition", section 4.2.
    """
    return _resnet("resnet56", 9, in_shape, width, weights, frozen)


@final
class _Block(nn.Module):
    """Two convolutions beside a parameter-free shortcut, "option A" of the paper.

    Where the block halves the image, the shortcut takes every other pixel and fills the new
    channels with zeros.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride = 1 if before == after else 2
        self.new_channels = after - before
        self.conv1 = nn.Conv2d(before, after, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(residual + F.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels)))


def _resnet(
    name: str,
    blocks: int,
    in_shape: Sequence[int],
    width: int,
    weights: str | None,
    frozen: bool,
) -> StandardBackbone:
    """Return a network of ``6 · blocks + 2`` layers: three stages of 16, 32 and 64 channels."""
    sizes = image_shape(f"backbone {name!r}", in_shape)
    channels = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
    net = nn.Sequential(
        nn.Conv2d(sizes[0], 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        *(_Block(before, after) for before, after in pairwise(channels)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, positive_int("width", width)),
    )
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return StandardBackbone(net, sizes, (width,), weights=weights, frozen=frozen)
