"""The projection of a field onto the descent directions of a Lyapunov function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import InvalidOptionError
from stabnet.interfaces import Context, Features, Guarantee, Potential, VectorField

__all__ = ["ProjectedField", "check_alpha", "project"]

Part = str | Mapping[str, Any] | nn.Module

NO_CRITICAL_POINTS = "∇V vanishes only where V does, as it does for icnn"


def check_alpha(alpha: float) -> float:
    """Return the decay rate, or raise :class:`stabnet.InvalidOptionError` if it cannot be one."""
    if not 0 <= alpha < math.inf:
        raise InvalidOptionError(
            f"the decay rate alpha must be finite and not negative; got {alpha}"
        )
    return alpha


def project(
    field: Float[Tensor, "*batch n"],
    value: Float[Tensor, "*batch"],
    gradient: Float[Tensor, "*batch n"],
    alpha: float,
) -> Float[Tensor, "*batch n"]:
    r"""Project vectors onto the half-spaces :math:`\nabla V^\top \hat F \le -\alpha V`.

    .. math:: \hat F = F - n\,\mathrm{ReLU}(n^\top F + \alpha V / \|\nabla V\|), \qquad
              n = \nabla V / \|\nabla V\|

    the nearest vector that satisfies the condition; :math:`\hat F = F` where it holds already, and
    where :math:`\nabla V = 0`. Written with the unit normal, nothing underflows near the center.

    Args:
        field: the vectors ``F``, flattened.
        value: ``V``, not negative.
        gradient: ``∇V``.
        alpha: the decay rate ``α``.

    References:
        [MK] (10); [SNN] (29); [LyaDEQ] (8), which is printed with its cases swapped.
    """
    # Scaling by the largest entry (whose derivative cancels) keeps the squares in range.
    largest = gradient.detach().abs().amax(-1, keepdim=True)
    largest = torch.where(largest > 0, largest, 1)
    scaled = gradient / largest
    flat = (scaled == 0).all(-1, keepdim=True)
    length = torch.linalg.vector_norm(torch.where(flat, 1, scaled), dim=-1, keepdim=True)
    normal = scaled / length
    along = (normal * field).sum(-1, keepdim=True)
    bound = -alpha * (value[..., None] / largest) / length
    # Removing the normal part twice leaves a tangent whose rounding is its own, not the field's.
    tangent = field - along * normal
    tangent = tangent - (normal * tangent).sum(-1, keepdim=True) * normal
    return torch.where((along > bound) & ~flat, tangent + bound * normal, field)


@final
class ProjectedField(VectorField):
    r"""Any field, projected so that it descends a Lyapunov function at rate ``alpha``.

    Along its trajectories :math:`V(z(t)) \le V(z(0)) e^{-\alpha t}`. With the origin as center
    and a positive rate, nothing but the origin can be an equilibrium.

    Args:
        state_shape: shape of one state.
        feature_shape: shape of one input's features.
        vector_field: the field to project.
        potential: the Lyapunov function.
        alpha: decay rate, not negative.

    Raises:
        InvalidOptionError: for a negative ``alpha``.

    References:
        [MK] (10); [SNN] (29).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int],
        vector_field: Part = "mlp",
        potential: Part = "icnn",
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        self.state_shape, self.feature_shape = tuple(state_shape), tuple(feature_shape)
        self.alpha = check_alpha(alpha)
        self.vector_field = stabnet.build(
            vector_field,
            kind="vector_field",
            state_shape=self.state_shape,
            feature_shape=self.feature_shape,
        )
        self.potential: Potential = stabnet.build(
            potential, kind="potential", state_shape=self.state_shape
        )

    def forward(
        self, t: float | Tensor, z: Float[Tensor, "..."], u: Features = None
    ) -> Float[Tensor, "..."]:
        """Evaluate the projected field; see :class:`stabnet.interfaces.VectorField`."""
        ndim = len(self.state_shape)
        field = self.vector_field(t, z, u)
        context = Context(features=u) if isinstance(u, Tensor) else None
        value, gradient = self.potential.value_and_gradient(z, context)
        flat = project(field.flatten(-ndim), value, gradient.flatten(-ndim), self.alpha)
        return flat.reshape(field.shape)

    def guarantees(self) -> list[Guarantee]:
        """Return the decay of the potential along exact trajectories."""
        return [
            Guarantee(
                claim="the potential decays exponentially along trajectories of the field, in the "
                "state (this says nothing of perturbed inputs)",
                formula=f"∇V(z)ᵀF̂(t, z, u) ≤ −{self.alpha}·V(z), "
                f"hence V(z(t)) ≤ V(z(0)) e^(−{self.alpha} t)",
                source="Manek & Kolter 2019, (10) and Theorem 1",
                status="by construction",
                assumptions=(
                    "exact arithmetic, up to rounding",
                    NO_CRITICAL_POINTS,
                    "the flow is exact: a step of a general integrator may raise V",
                ),
            )
        ]
