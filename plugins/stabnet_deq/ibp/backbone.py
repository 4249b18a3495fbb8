"""A convolutional backbone made to be bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.bounds import interval
from stabnet.interfaces import Backbone

__all__ = ["StridedConv"]


@final
class StridedConv(Backbone):
    """A few 4 × 4 convolutions of stride 2, each with ReLU, and one linear layer.

    There is neither normalization, whose statistics couple the samples in training, nor pooling,
    so that interval bounds are cheap and tight, in training mode too.

    Args:
        in_shape: ``(channels, height, width)`` of one image; each convolution halves it.
        channels: output channels of each convolution.
        width: number of features.

    Raises:
        InvalidOptionError: if the inputs are no images, or too small for the convolutions.

    References:
        Close to the network "small" of Gowal et al.: "On the effectiveness of interval bound
        propagation for training verifiably robust models", 2018.
    """

    def __init__(
        self, in_shape: Sequence[int], channels: Sequence[int] = (16, 32), width: int = 100
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), (width,)
        if len(self.in_shape) != 3 or min(self.in_shape[1:]) < 2 ** len(channels):
            raise InvalidOptionError(
                f"in_shape={self.in_shape}; {len(channels)} convolutions of stride 2 need images "
                f"(channels, height, width) of at least {2 ** len(channels)} pixels a side"
            )
        if width < 1 or any(c < 1 for c in channels):
            raise InvalidOptionError(f"channels={tuple(channels)} and width={width} are positive")
        before, height, width_left = self.in_shape
        layers: list[nn.Module] = []
        for after in channels:
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
            before, height, width_left = after, height // 2, width_left // 2
        layers += [nn.Flatten(), nn.Linear(before * height * width_left, width)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch width"]:
        """Map images to features.

        Raises:
            InvalidInputError: if the images have another shape.
        """
        if x.shape[1:] != self.in_shape:
            raise InvalidInputError(
                f"the backbone was built for images (batch, {', '.join(map(str, self.in_shape))}); "
                f"got {tuple(x.shape)}"
            )
        features: Tensor = self.net(x)
        return features

    def interval(
        self, lower: Tensor, upper: Tensor, *, sound: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of the features over a box of images; see :mod:`stabnet.bounds`."""
        return interval(self.net, lower, upper, sound=sound)
