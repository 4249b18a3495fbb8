"""The vector field of continuous-in-depth networks: convolutions that change with time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import Features, VectorField
from stabnet.values import number, whole

__all__ = ["PiecewiseConvField"]

_ON_A_BOUNDARY = 1e-6
"""Times this close to the start of a piece, in pieces, are on it: 1/3 is no exact number."""


@final
class PiecewiseConvField(VectorField):
    r"""A residual block as a vector field, with weights that are piecewise constant in time.

    .. math:: F(t, z) = \varepsilon\, N_k\, \sigma\bigl(V_k *
              N'_k\, \sigma(W_k * z + a_k) + b_k\bigr)
              \quad\text{for}\quad \tfrac kn \le t < \tfrac{k+1}n

    with ReLU :math:`\sigma`, zero-padded 3 × 3 convolutions that keep the grid, and batch
    normalization; the last of the ``n`` pieces includes :math:`t = 1`. Before 0 and after 1 the
    first and the last piece hold.

    A piece normalizes what it is evaluated on: in training mode the samples of a batch depend on
    each other, and every evaluation records statistics. Times as plain numbers cost no host
    synchronization; a time as a tensor is read.

    Args:
        state_shape: ``(channels, height, width)`` of one state.
        feature_shape: ``None`` or ``()``; the field is autonomous in the input, which a flow
            starts at (``initial="features"``).
        pieces: number of equal intervals of [0, 1].
        scale: :math:`\varepsilon`.

    Raises:
        InvalidOptionError: for other shapes, or an option out of range.

    References:
        Queiruga, Erichson, Taylor, Mahoney: "Continuous-in-depth neural networks", 2020;
        [LyaNet] for ε = 3 and three pieces.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        pieces: int = 3,
        scale: float = 3.0,
    ) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), ()
        if len(self.state_shape) != 3 or min(self.state_shape) < 1:
            raise InvalidOptionError(
                "vector field 'piecewise_conv' takes state_shape=(channels, height, width); got "
                f"{self.state_shape}"
            )
        if feature_shape:
            raise InvalidOptionError(
                f"feature_shape={tuple(feature_shape)}: vector field 'piecewise_conv' is not "
                "driven by features. Leave it out, and start the flow at the features "
                "(initial='features')"
            )
        whole("pieces", pieces, 1)
        self.scale = number("scale", scale, above=0)
        self.pieces = nn.ModuleList(_piece(self.state_shape[0]) for _ in range(pieces))

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "*batch c h w"], u: Features = None
    ) -> Float[Tensor, "*batch c h w"]:
        """Evaluate ``F(t, z)``.

        Args:
            t: time, a number or a scalar tensor.
            z: states ``(batch, *state_shape)`` or ``(batch or 1, samples, *state_shape)``.
            u: ignored.

        Returns:
            ``dz/dt``, with the shape of ``z``.

        Raises:
            InvalidInputError: if the shape does not fit.
        """
        if z.ndim not in (4, 5) or z.shape[-3:] != self.state_shape:
            wanted = ", ".join(map(str, self.state_shape))
            raise InvalidInputError(
                f"the field takes states (batch, {wanted}) or (batch, samples, {wanted}); "
                f"got {tuple(z.shape)}"
            )
        last = len(self.pieces) - 1
        index = math.floor(float(t) * len(self.pieces) + _ON_A_BOUNDARY)
        out: Tensor = self.pieces[min(max(index, 0), last)](z.flatten(0, -4))
        return self.scale * out.reshape(z.shape)

    def extra_repr(self) -> str:
        """Return the scale."""
        return f"scale={self.scale}"


def _piece(channels: int) -> nn.Sequential:
    """Return what one piece does but for the scale."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(channels),
    )
