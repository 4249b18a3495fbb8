"""A vector field that is a convolutional network of the state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Features, VectorField, lift_features
from stabnet.values import shape

from .._checks import positive_int, positive_ints
from .._layers import activation as activation_layer
from ._inputs import check_state, checked_features, feature_sizes, time_direction

__all__ = ["ConvField"]


@final
class ConvField(VectorField):
    r"""A data-controlled convolutional network on a state of channels over a grid.

    .. math:: F(t, z, u) = W_L * σ(\dots σ(W_1 * z + U u + t c + b_1) \dots) + b_L

    with zero-padded convolutions that keep the grid. The features enter the first layer
    additively, through a projection that is computed on the features alone and broadcast over
    samples of the state: a convolution for features on the same grid, a linear map to channels
    (equal over the grid) for a vector of features. There is no normalization: a batch's other
    samples have no say in ``F``.

    Args:
        state_shape: ``(channels, height, width)`` of one state.
        feature_shape: ``(channels, height, width)`` of the features, on the grid of the state, or
            ``(n,)``; ``None`` or ``()`` for an autonomous field, which has no ``U`` and ignores
            features.
        channels: channels of the hidden layers; none for an affine field.
        kernel_size: edge of the convolutions, odd.
        activation: name of σ. The default is smooth, as adaptive integrators and higher
            derivatives need.
        time_dependent: whether time enters, as ``t c``, equally over the grid.

    Raises:
        InvalidOptionError: for other shapes, or an even ``kernel_size``.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations".
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        channels: Sequence[int] = (64,),
        kernel_size: int = 3,
        activation: str = "tanh",
        time_dependent: bool = False,
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.feature_shape = feature_sizes(feature_shape)
        if len(self.state_shape) != 3:
            raise stabnet.InvalidOptionError(
                "vector field 'conv' takes state_shape=(channels, height, width); "
                f"got {self.state_shape}. For other states use 'mlp'"
            )
        if positive_int("kernel_size", kernel_size) % 2 == 0:
            raise stabnet.InvalidOptionError(
                f"kernel_size is odd, so that the grid is kept; got {kernel_size}"
            )
        padding = kernel_size // 2
        widths = (*positive_ints("channels", channels), self.state_shape[0])
        self.first = nn.Conv2d(self.state_shape[0], widths[0], kernel_size, padding=padding)
        self.drive = _projection(self.feature_shape, self.state_shape, widths[0], kernel_size)
        self.time = time_direction(widths[0], time_dependent)
        rest: list[nn.Module] = []
        for before, after in pairwise(widths):
            rest += [
                activation_layer(activation),
                nn.Conv2d(before, after, kernel_size, padding=padding),
            ]
        self.rest = nn.Sequential(*rest)

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Evaluate ``F(t, z, u)``.

        Args:
            t: time, a number or a scalar tensor.
            z: states ``(batch, *state_shape)`` or ``(batch or 1, samples, *state_shape)``.
            u: features ``(batch, *feature_shape)``; ignored by an autonomous field.

        Returns:
            ``dz/dt``, with the shape of ``z`` broadcast against the batch of ``u``.

        Raises:
            InvalidInputError: if a shape does not fit.
        """
        check_state(z, self.state_shape)
        first = _over_grids(self.first, z)
        if self.drive is not None:
            term = self.drive(checked_features(u, self.feature_shape))
            first = first + lift_features(term, z, len(self.state_shape))
        if self.time is not None:
            first = first + t * self.time[:, None, None]
        return _over_grids(self.rest, first)


def _over_grids(layer: nn.Module, z: Float[Tensor, "*lead c h w"]) -> Float[Tensor, "*lead c2 h w"]:
    """Apply a layer for ``(batch, channels, height, width)`` under any leading dimensions."""
    out: Tensor = layer(z.flatten(0, -4))
    return out.reshape(*z.shape[:-3], *out.shape[-3:])


def _projection(
    feature_shape: tuple[int, ...], state_shape: tuple[int, ...], width: int, kernel_size: int
) -> nn.Module | None:
    """Return the map from features to ``(batch, width, height or 1, width or 1)``."""
    if not feature_shape:
        return None
    if len(feature_shape) == 3 and feature_shape[1:] == state_shape[1:]:
        return nn.Conv2d(feature_shape[0], width, kernel_size, padding=kernel_size // 2, bias=False)
    if len(feature_shape) == 1:
        return nn.Sequential(
            nn.Linear(feature_shape[0], width, bias=False),
            nn.Unflatten(1, (width, 1, 1)),
        )
    raise stabnet.InvalidOptionError(
        f"vector field 'conv' on states {state_shape} takes features on the same grid, "
        f"(channels, {state_shape[1]}, {state_shape[2]}), or a vector (n,); got {feature_shape}"
    )
