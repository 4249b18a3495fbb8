"""The field of SODEF: the sine of an affine map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError
from stabnet.interfaces import Features, VectorField, lift_features
from stabnet.values import shape

__all__ = ["SineField"]


@final
class SineField(VectorField):
    r"""The sine of an affine map of the raveled state.

    .. math:: F(t, z, u) = \sin(-(W z + U u + b)), \qquad
              \partial_z F = -\operatorname{diag}(\cos(W z + U u + b))\, W

    It does not depend on time, and no entry of the state moves faster than 1. By itself it is not
    stable: the objective ``sodef`` asks for that, at the states where the flow starts.

    Args:
        state_shape: shape of one state, any.
        feature_shape: shape of one input's features; ``None`` or ``()`` for an autonomous field,
            which has no ``U`` and ignores features, as SODEF's.

    References:
        Kang, Song, Ding, Tay: "Stable neural ODE with Lyapunov-stable equilibrium points for
        defending against adversarial attacks", 2021; released code.
    """

    def __init__(
        self, state_shape: Sequence[int], feature_shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.feature_shape = tuple(feature_shape or ())
        size = math.prod(self.state_shape)
        self.linear = nn.Linear(size, size)
        self.drive = (
            nn.Linear(math.prod(self.feature_shape), size, bias=False)
            if self.feature_shape
            else None
        )

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate ``F(t, z, u)``; see :class:`stabnet.interfaces.VectorField`.

        Raises:
            InvalidInputError: if states or features have another shape.
        """
        if tuple(z.shape[-len(self.state_shape) :]) != self.state_shape:
            raise InvalidInputError(
                f"the field takes states of shape {self.state_shape}; got {tuple(z.shape)}"
            )
        flat = z.flatten(-len(self.state_shape))
        angle = self.linear(flat)
        if self.drive is not None:
            if not isinstance(u, Tensor) or tuple(u.shape[1:]) != self.feature_shape:
                given = tuple(u.shape) if isinstance(u, Tensor) else type(u).__name__
                raise InvalidInputError(
                    f"the field is driven by features (batch, *{self.feature_shape}); got {given}. "
                    "Pass u, or build the field with feature_shape=None for an autonomous one"
                )
            angle = angle + lift_features(self.drive(u.flatten(1)), flat, 1)
        velocity = torch.sin(-angle)
        return velocity.reshape(*velocity.shape[:-1], *self.state_shape)
