"""A vector field that is a multi-layer perceptron of the state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from stabnet.interfaces import Features, VectorField, lift_features
from stabnet.values import shape

from .._checks import positive_ints
from .._layers import activation as activation_layer
from .._layers import dense
from ._inputs import check_state, checked_features, feature_sizes, time_direction

__all__ = ["MLPField"]


@final
class MLPField(VectorField):
    r"""A data-controlled multi-layer perceptron on the raveled state.

    .. math:: F(t, z, u) = W_L σ(\dots σ(W_1 z + U u + t c + b_1) \dots) + b_L

    The features enter the first layer additively, through a projection that is computed on the
    features alone and broadcast over samples of the state.

    Args:
        state_shape: shape of one state, any.
        feature_shape: shape of one input's features; ``None`` or ``()`` for an autonomous field,
            which has no ``U`` and ignores features.
        hidden: widths of the hidden layers; none for an affine field.
        activation: name of σ. The default is smooth, as adaptive integrators and higher
            derivatives need.
        time_dependent: whether time enters, as ``t c``.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations".
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        hidden: Sequence[int] = (64,),
        activation: str = "tanh",
        time_dependent: bool = False,
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.feature_shape = feature_sizes(feature_shape)
        n = math.prod(self.state_shape)
        widths = (*positive_ints("hidden", hidden), n)
        self.first = nn.Linear(n, widths[0])
        self.drive = (
            nn.Linear(math.prod(self.feature_shape), widths[0], bias=False)
            if self.feature_shape
            else None
        )
        self.time = time_direction(widths[0], time_dependent)
        after = dense(widths, activation)
        self.rest = nn.Sequential(*([activation_layer(activation), *after] if after else []))

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
        first = self.first(z.flatten(-len(self.state_shape)))
        if self.drive is not None:
            term = self.drive(checked_features(u, self.feature_shape).flatten(1))
            first = first + lift_features(term, z, len(self.state_shape))
        if self.time is not None:
            first = first + t * self.time
        out: Tensor = self.rest(first)
        return out.reshape(*out.shape[:-1], *self.state_shape)
