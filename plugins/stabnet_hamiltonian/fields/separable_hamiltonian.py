"""The field of a separable Hamiltonian."""

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

__all__ = ["SeparableHamiltonian"]


@final
class SeparableHamiltonian(VectorField):
    r"""The field of a Hamiltonian that is a sum of functions of the momentum and of the position.

    .. math:: H(q, p) = K(p) + U(q), \qquad \dot q = \nabla K(p), \qquad \dot p = -\nabla U(q)

    for states ``z = (q, p)``, two halves along the first dimension (features, or channels). Each
    energy is that of one layer unless a potential is given for it,

    .. math:: K(p) = \mathbf{1}^\top \gamma(Bp + b), \quad
              U(q) = \mathbf{1}^\top \gamma(Cq + c), \qquad
              \dot q = B^\top \sigma(Bp + b), \quad \dot p = -C^\top \sigma(Cq + c)

    with matrices or, for images, zero-padded convolutions.

    Args:
        state_shape: ``(2n,)`` or ``(2 channels, height, width)``; any other with an even first
            size where both potentials are given.
        feature_shape: shape of one input's features, for potentials that depend on them; ``None``
            or ``()`` for an autonomous field.
        kinetic_potential: ``K``, built for half a state; the energy of one layer if ``None``.
        potential: ``U``, built for half a state; the energy of one layer if ``None``.
        hidden: of energies of one layer, rows of the matrix or channels of the convolution's image;
            those of half a state if ``None``.
        kernel_size: of energies of one layer, of the convolution; odd.
        activation: of energies of one layer, ``σ``: tanh, sigmoid, relu, sin or identity.

    Attributes:
        kinetic_potential: ``K``.
        potential: ``U``.

    Raises:
        InvalidOptionError: for a state without halves, or an option out of range.

    References:
        [SNN] (24)–(28).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        kinetic_potential: Part | None = None,
        potential: Part | None = None,
        hidden: int | None = None,
        kernel_size: int = 3,
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.state_shape, half = phase_shape(state_shape)
        chosen = kinetic_potential is not None or potential is not None
        self.feature_shape = feature_sizes(feature_shape, takes_features=chosen)
        check_used(hidden, kinetic_potential, potential)
        self.kinetic_potential = energy(kinetic_potential, half, hidden, kernel_size, activation)
        self.potential = energy(potential, half, hidden, kernel_size, activation)

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate ``(∇K(p), −∇U(q))``; see :class:`stabnet.interfaces.VectorField`."""
        check_field_state(z, self.state_shape)
        q, p, axis = halves(z, self)
        moves = torch.broadcast_tensors(self.velocity(t, p, u), self.force(t, q, u))
        return torch.cat(moves, axis)

    def velocity(
        self, t: float | Tensor, p: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Return ``dq/dt = ∇K(p)``; see :class:`stabnet.interfaces.Separable`."""
        features = driving_features(u, self.feature_shape)
        return gradient(self.kinetic_potential, p, features, len(self.state_shape))

    def force(
        self, t: float | Tensor, q: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Return ``dp/dt = −∇U(q)``; see :class:`stabnet.interfaces.Separable`."""
        features = driving_features(u, self.feature_shape)
        return -gradient(self.potential, q, features, len(self.state_shape))

    def energy(self, z: Float[Tensor, "..."], u: Features = None) -> Float[Tensor, "..."]:
        """Return ``H(z)``, one value per state."""
        check_field_state(z, self.state_shape)
        q, p, _ = halves(z, self)
        features, ndim = driving_features(u, self.feature_shape), len(self.state_shape)
        kinetic = value(self.kinetic_potential, p, features, ndim)
        return kinetic + value(self.potential, q, features, ndim)

    def guarantees(self) -> list[Guarantee]:
        """Return what holds of the exact flow."""
        return flow_guarantees("[SNN] (22)–(24)", self.kinetic_potential, self.potential)
