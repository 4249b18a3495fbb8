"""The field of a general Hamiltonian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Features, Guarantee, VectorField, check_field_state, driving_features

from ..scheme import halves
from ._guarantees import flow_guarantees
from ._states import feature_sizes, phase_shape
from .energy import Part, check_used, energy, gradient, value

__all__ = ["HamiltonianField"]


@final
class HamiltonianField(VectorField):
    r"""The field of a Hamiltonian of the whole state, which need not be separable.

    .. math:: \dot z = J \nabla H(z), \qquad J = \begin{pmatrix} 0 & I \\ -I & 0 \end{pmatrix},
              \qquad \dot q = \nabla_p H(q, p), \quad \dot p = -\nabla_q H(q, p)

    for states ``z = (q, p)``, two halves along the first dimension (features, or channels). ``H``
    is a potential, or the energy of one layer :math:`\mathbf{1}^\top \gamma(Az + b)`. A step of
    ``implicit_midpoint`` is symplectic for it; drifts and kicks are not to be had.

    Args:
        state_shape: ``(2n,)`` or ``(2 channels, height, width)``; any other with an even first
            size where the potential is given.
        feature_shape: shape of one input's features, for a potential that depends on them; ``None``
            or ``()`` for an autonomous field.
        potential: ``H``; the energy of one layer if ``None``.
        hidden: of an energy of one layer, rows of the matrix or channels of the convolution's
            image; those of a state if ``None``.
        kernel_size: of an energy of one layer, of the convolution; odd.
        activation: of an energy of one layer, ``σ``: tanh, sigmoid, relu, sin or identity.

    Attributes:
        potential: ``H``.

    Raises:
        InvalidOptionError: for a state without halves, or an option out of range.

    References:
        [SNN] (22)–(24).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        potential: Part | None = None,
        hidden: int | None = None,
        kernel_size: int = 3,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.state_shape, _ = phase_shape(state_shape)
        self.feature_shape = feature_sizes(feature_shape, takes_features=potential is not None)
        check_used(hidden, potential)
        self.potential = energy(potential, self.state_shape, hidden, kernel_size, activation)

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate ``J∇H(z)``; see :class:`stabnet.interfaces.VectorField`."""
        check_field_state(z, self.state_shape)
        features = driving_features(u, self.feature_shape)
        slopes = gradient(self.potential, z, features, len(self.state_shape))
        q_slope, p_slope, axis = halves(slopes, self)
        return torch.cat([p_slope, -q_slope], axis)

    def energy(self, z: Float[Tensor, "..."], u: Features = None) -> Float[Tensor, "..."]:
        """Return ``H(z)``, one value per state."""
        check_field_state(z, self.state_shape)
        features = driving_features(u, self.feature_shape)
        return value(self.potential, z, features, len(self.state_shape))

    def guarantees(self) -> list[Guarantee]:
        """Return what holds of the exact flow."""
        return flow_guarantees("[SNN] (22)–(24)", self.potential)
