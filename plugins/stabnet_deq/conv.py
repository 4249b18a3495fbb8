"""The convolutional cell: one residual block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import Cell, Features, State

__all__ = ["ConvCell", "ResidualBranch", "group_norm"]


@final
class ConvCell(Cell):
    r"""A residual block on a grid, driven by the features.

    .. math:: f(z, u) = \mathrm{GN}(\mathrm{ReLU}(z + b(z, u))), \qquad
              b(z, u) = \mathrm{GN}(u + W_2 * \mathrm{GN}(\mathrm{ReLU}(W_1 * z)))

    with zero-padded 3 × 3 convolutions without biases and group normalization, which treats each
    sample on its own: in training mode too every sample has its own equilibrium.

    Args:
        state_shape: ``(channels, height, width)``.
        feature_shape: the same, since features are added to the state.
        hidden: channels of the inner convolution; as many as the state's if ``None``.
        groups: groups of each normalization; divides ``channels`` and ``hidden``.
        weight_scale: factor on PyTorch's default initialization of both convolutions. The
            normalizations undo the scale of the state, so ``b`` varies little with ``z`` only
            where the features outweigh ``W₂ * …``. Measured on fresh cells with random features of
            unit size, the spectral radius of the Jacobian at the equilibrium is 0.65 to 0.8 at the
            default; at a factor of 1 it is 0.95 to 1, and above 1 where features are a tenth.

    Raises:
        InvalidOptionError: for shapes that are not equal or not of a grid, channels that ``groups``
            does not divide, or groups of a single number.

    References:
        Bai, Koltun, Kolter: "Multiscale Deep Equilibrium Models", 2020, section 3 (its residual
        block); Kolter, Duvenaud, Johnson: "Deep Implicit Layers", 2020, chapter 4 (this cell).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int],
        hidden: int | None = None,
        groups: int = 8,
        weight_scale: float = 0.03,
    ) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape)
        if len(self.state_shape) != 3 or self.state_shape != self.feature_shape:
            raise InvalidOptionError(
                "the conv cell adds features to a state: both need one shape (channels, height, "
                f"width); got states {self.state_shape} and features {self.feature_shape}. Choose "
                "a backbone whose features are on a grid, such as 'stem' or 'identity'"
            )
        channels, height, width = self.state_shape
        self.branch = ResidualBranch(channels, hidden, groups, height * width, weight_scale)
        self.norm = group_norm(groups, channels, height * width)

    def forward(self, z: State, u: Features = None) -> Float[Tensor, "batch c h w"]:
        """Evaluate ``f(z, u)`` for states and features ``(batch, channels, height, width)``."""
        image: Tensor = self.norm(torch.relu(z + self.branch(z, u)))
        return image


@final
class ResidualBranch(nn.Module):
    r"""The branch :math:`b(z, u) = \mathrm{GN}(u + W_2 * \mathrm{GN}(\mathrm{ReLU}(W_1 * z)))`.

    Args:
        channels: channels of states and features.
        hidden: channels of the inner convolution; ``channels`` if ``None``.
        groups: groups of each normalization.
        pixels: pixels of the grid.
        weight_scale: factor on the default initialization of both convolutions.
    """

    def __init__(
        self, channels: int, hidden: int | None, groups: int, pixels: int, weight_scale: float
    ) -> None:
        super().__init__()
        inner = channels if hidden is None else hidden
        self.inner_norm = group_norm(groups, inner, pixels)
        self.outer_norm = group_norm(groups, channels, pixels)
        self.inner = nn.Conv2d(channels, inner, 3, padding=1, bias=False)
        self.outer = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        for layer in (self.inner, self.outer):
            layer.weight.data.mul_(weight_scale)

    def forward(
        self, z: Float[Tensor, "batch c h w"], u: Float[Tensor, "batch c h w"]
    ) -> Float[Tensor, "batch c h w"]:
        """Evaluate ``b(z, u)``."""
        branch: Tensor = self.outer_norm(u + self.outer(self.inner_norm(self.inner(z).relu())))
        return branch


def group_norm(groups: int, channels: int, pixels: int) -> nn.GroupNorm:
    """Return a group normalization of so many channels on a grid of so many pixels.

    Raises:
        InvalidOptionError: if the groups do not divide the channels, or hold a single number,
            which normalization would turn into a constant.
    """
    if groups < 1 or channels < 1 or channels % groups:
        raise InvalidOptionError(
            f"groups={groups} must divide the number of channels, {channels}; choose a divisor "
            "(1 normalizes all channels together)"
        )
    if channels // groups * pixels < 2:
        raise InvalidOptionError(
            f"groups={groups} of {channels} channels on a grid of {pixels} pixel leaves one number "
            "to a group, which normalization turns into a constant; choose fewer groups"
        )
    return nn.GroupNorm(groups, channels)
