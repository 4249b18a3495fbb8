"""ResNet-18 as a discrete-time system: its residual blocks are the stages of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import InvalidOptionError, StabilityModel, Stack
from stabnet.interfaces import Backbone, Block

from ..blocks import AveragePool, Residual

__all__ = ["resnet18"]

_STAGES = ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
"""Channels and stride of each residual block."""


def resnet18(
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    num_outputs: int = 10,
    stem: Literal["cifar", "imagenet"] = "cifar",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> StabilityModel:
    """Build ResNet-18, the discrete-time network that LyaNet is compared with.

    Function and parameters are those of torchvision's ``resnet18``, up to the stem for small
    images. The eight residual blocks are the stages of a :class:`stabnet.Stack`, so that a
    discrete Lyapunov loss can be asked of the states between them.

    Args:
        in_shape: shape of one image, channels first.
        num_outputs: number of classes.
        stem: ``"cifar"``, one 3 × 3 convolution that keeps the grid, for small images;
            ``"imagenet"``, a 7 × 7 convolution and max-pooling, each of stride 2. The released
            code of LyaNet used the latter on images of 32 × 32, where it is weak.
        mean: mean per channel, for normalization inside the model.
        std: standard deviation per channel.

    Returns:
        The model.

    Raises:
        InvalidOptionError: for an unknown stem, or an ``in_shape`` that is no image.

    References:
        He, Zhang, Ren, Sun: "Deep residual learning for image recognition", 2016, table 1;
        the baseline of [LyaNet], table 1.
    """
    backbone = _Stem(in_shape, stem)
    shape = backbone.out_shape
    stages: list[Block] = []
    for channels, stride in _STAGES:
        block = Residual(shape, channels, stride)
        shape = block.out_shape
        stages.append(block)
    pool = AveragePool(shape)
    head = stabnet.build(
        "linear", kind="head", in_features=pool.out_shape[0], num_outputs=num_outputs
    )
    return StabilityModel(in_shape, num_outputs, backbone, Stack([*stages, pool]), head, mean, std)


@final
class _Stem(Backbone):
    """The layers before the first residual block."""

    def __init__(self, in_shape: Sequence[int], stem: str) -> None:
        super().__init__()
        self.in_shape = tuple(in_shape)
        if stem not in ("cifar", "imagenet"):
            raise InvalidOptionError(f"stem={stem!r} is unknown; it is 'cifar' or 'imagenet'")
        if len(self.in_shape) != 3 or min(self.in_shape) < 1:
            raise InvalidOptionError(
                f"resnet18 takes images, in_shape=(channels, height, width); got {self.in_shape}"
            )
        width, shrink = _STAGES[0][0], 1 if stem == "cifar" else 4
        edge, stride = (3, 1) if stem == "cifar" else (7, 2)
        convolution = nn.Conv2d(
            self.in_shape[0], width, edge, stride=stride, padding=edge // 2, bias=False
        )
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        self.net = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
        if stem == "imagenet":
            self.net.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.out_shape = (width, *(-(-n // shrink) for n in self.in_shape[1:]))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c2 h2 w2"]:
        features: Tensor = self.net(x)
        return features
