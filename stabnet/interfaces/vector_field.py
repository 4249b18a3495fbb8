"""Vector fields: the right-hand side of ``dz/dt = F(t, z, u)``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from .solution import Features

__all__ = ["VectorField", "lift_features"]


class VectorField(nn.Module, ABC):
    r"""The right-hand side of the ODE :math:`\dot z(t) = F(t, z(t), u)`.

    ``t`` comes first, as in torchdiffeq; ``u`` are the features of the input, computed once.

    Attributes:
        state_shape: shape of one state, without the batch.
        feature_shape: shape of one input's features.
    """

    state_shape: tuple[int, ...]
    feature_shape: tuple[int, ...]

    @abstractmethod
    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate ``F(t, z, u)``.

        Args:
            t: time, a number or a scalar tensor.
            z: state ``(batch, *state_shape)``; or ``(batch or 1, samples, *state_shape)``, many
                states against one set of features, which a field must not expand.
            u: features ``(batch, *feature_shape)``, or ``None`` for an autonomous field.

        Returns:
            ``dz/dt``, with the shape of ``z`` broadcast against the batch of ``u``.
        """


def lift_features(term: Tensor, z: Tensor, state_ndim: int) -> Tensor:
    """Align a term computed from ``u`` with a state that may carry a sample dimension.

    Args:
        term: ``(batch, *state_shape)``, or ``(batch, …)`` with as many dimensions.
        z: ``(batch, *state_shape)`` or ``(batch or 1, samples, *state_shape)``.
        state_ndim: number of dimensions of one state.

    Returns:
        ``term``, with a dimension of one for the samples where ``z`` has one.
    """
    return term.unsqueeze(1) if z.ndim == state_ndim + 2 else term
