r"""Linear maps :math:`A` between states: apply, adjoint, and a certified bound of the norm.

An operator has a geometry and no weights: those are a parameter of the block that uses it, and
passed in, so that a block may apply rescaled weights as well. Blocks are written once for dense
and convolutional states by leaving this to the operator.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.bounds import conv2d_norm_bound, spectral_norm_bound
from stabnet.values import shape, whole

__all__ = ["ConvOperator", "DenseOperator", "Operator", "PaddingMode", "operator"]

PaddingMode = Literal["zeros", "circular"]
"""What a convolution sees beyond the border: zeros, or the opposite side."""


class Operator(ABC):
    """A linear map from states to hidden vectors, its weights given at every call.

    Attributes:
        state_shape: shape of one state.
        hidden_shape: shape of one image of it.
        weight_shape: shape of the weights, one row per hidden feature.
    """

    state_shape: tuple[int, ...]
    hidden_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]

    @abstractmethod
    def __call__(
        self, weight: Tensor, z: Float[Tensor, "batch ..."], bias: Tensor | None = None
    ) -> Float[Tensor, "batch ..."]:
        """Return ``Az + b``, with one number of ``b`` per hidden feature."""

    @abstractmethod
    def adjoint(self, weight: Tensor, y: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return ``Aᵀy``, exactly the adjoint of what a call applies, padding included."""

    @abstractmethod
    def norm_bound(self, weight: Tensor) -> float:
        """Return an upper bound of ``‖A‖₂``, sound in float64, of the weights as they are given.

        Raises:
            InvalidInputError: for weights that are not finite.
        """

    def rows(self, scale: Float[Tensor, " features"]) -> Float[Tensor, "features ..."]:
        """Return one number per hidden feature in a shape that multiplies the rows of a weight."""
        return scale.view(-1, *[1] * (len(self.weight_shape) - 1))

    def along(self, scale: Float[Tensor, " features"]) -> Float[Tensor, "features ..."]:
        """Return one number per hidden feature in a shape that multiplies hidden vectors."""
        return scale.view(-1, *[1] * (len(self.hidden_shape) - 1))

    def initial_weight(self) -> Tensor:
        """Return Gaussian weights whose operator norm is about one, from torch's random numbers."""
        rows, columns = self.weight_shape[0], math.prod(self.weight_shape[1:])
        return torch.randn(self.weight_shape) / (math.sqrt(rows) + math.sqrt(columns))


@final
class DenseOperator(Operator):
    """A matrix, from states ``(n,)`` to hidden vectors ``(hidden,)``.

    Args:
        size: ``n``.
        hidden: number of hidden features.
    """

    def __init__(self, size: int, hidden: int) -> None:
        self.state_shape, self.hidden_shape = (size,), (hidden,)
        self.weight_shape = (hidden, size)

    def __call__(
        self, weight: Tensor, z: Float[Tensor, "batch n"], bias: Tensor | None = None
    ) -> Float[Tensor, "batch hidden"]:
        """Return ``Az + b``."""
        return F.linear(z, weight, bias)

    def adjoint(self, weight: Tensor, y: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch n"]:
        """Return ``Aᵀy``."""
        return y @ weight

    def norm_bound(self, weight: Tensor) -> float:
        """Return an upper bound of ``‖A‖₂``; see :func:`stabnet.bounds.spectral_norm_bound`."""
        return spectral_norm_bound(weight)


@final
class ConvOperator(Operator):
    """A convolution with stride 1 that keeps the size of the image.

    Args:
        state_shape: ``(channels, height, width)``.
        hidden: number of hidden channels.
        kernel_size: odd, and for circular padding at most the size of the image.
        padding_mode: ``"zeros"`` or ``"circular"``.

    Raises:
        InvalidOptionError: for another kernel size or padding mode.
    """

    def __init__(
        self,
        state_shape: tuple[int, int, int],
        hidden: int,
        kernel_size: int = 3,
        padding_mode: PaddingMode = "zeros",
    ) -> None:
        channels, *image = state_shape
        if whole("kernel_size", kernel_size, 1) % 2 == 0:
            raise InvalidOptionError(
                f"kernel_size={kernel_size} must be odd, so that the image keeps its size"
            )
        if padding_mode not in get_args(PaddingMode):
            raise InvalidOptionError(
                f"padding_mode={padding_mode!r}: the bounds hold for 'zeros' and 'circular'; what "
                "others add at the border depends on the image"
            )
        if padding_mode == "circular" and kernel_size > min(image):
            raise InvalidOptionError(
                f"kernel_size={kernel_size} wraps around images of {tuple(image)} more than once; "
                "use a smaller kernel, or padding_mode='zeros'"
            )
        self.padding_mode = padding_mode
        self.padding = kernel_size // 2
        self.state_shape, self.hidden_shape = tuple(state_shape), (hidden, *image)
        self.weight_shape = (hidden, channels, kernel_size, kernel_size)

    def __call__(
        self, weight: Tensor, z: Float[Tensor, "batch c h w"], bias: Tensor | None = None
    ) -> Float[Tensor, "batch hidden h w"]:
        """Return ``Az + b``."""
        if self.padding_mode == "zeros":
            return F.conv2d(z, weight, bias, padding=self.padding)
        return F.conv2d(self._wrapped(z), weight, bias)

    def adjoint(
        self, weight: Tensor, y: Float[Tensor, "batch hidden h w"]
    ) -> Float[Tensor, "batch c h w"]:
        """Return ``Aᵀy``."""
        if self.padding_mode == "zeros":
            return F.conv_transpose2d(y, weight, padding=self.padding)
        return F.conv_transpose2d(self._wrapped(y), weight, padding=2 * self.padding)

    def norm_bound(self, weight: Tensor) -> float:
        """Return an upper bound of ``‖A‖₂``; see :func:`stabnet.bounds.conv2d_norm_bound`."""
        return conv2d_norm_bound(
            weight, self.state_shape[1:], padding=self.padding, padding_mode=self.padding_mode
        )

    def _wrapped(self, x: Tensor) -> Tensor:
        return F.pad(x, (self.padding,) * 4, mode="circular") if self.padding else x


def operator(
    state_shape: Sequence[int],
    hidden: int | None = None,
    kernel_size: int = 3,
    padding_mode: PaddingMode = "zeros",
) -> Operator:
    """Return a matrix for states ``(n,)``, a convolution for states ``(channels, height, width)``.

    Args:
        state_shape: shape of one state.
        hidden: number of hidden features or channels; those of the state if ``None``.
        kernel_size: of a convolution.
        padding_mode: of a convolution.

    Raises:
        InvalidOptionError: for a state of another shape, or an option out of range.
    """
    sizes = shape("state_shape", state_shape)
    features = sizes[0] if hidden is None else whole("hidden", hidden, 1)
    if len(sizes) == 1:
        return DenseOperator(sizes[0], features)
    if len(sizes) == 3:
        return ConvOperator((sizes[0], sizes[1], sizes[2]), features, kernel_size, padding_mode)
    raise InvalidOptionError(
        f"state_shape={sizes}: states are vectors (n,) or images (channels, height, width)"
    )
