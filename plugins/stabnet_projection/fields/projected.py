"""The projection of a field onto the descent directions of a Lyapunov function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import (
    Context,
    Descent,
    Features,
    Guarantee,
    Potential,
    VectorField,
    lift_features,
)
from stabnet.values import flag, number, shape

from ..center import center_of
from .descent import check_center, descent_guarantees, field_context

__all__ = ["ProjectedField", "project"]

Part = str | Mapping[str, Any] | nn.Module


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
    Where anything is not finite, so is the result.

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
    rounding = 4 * torch.finfo(tangent.dtype).eps * tangent.detach().abs().sum(-1, keepdim=True)
    tangent = tangent - (normal * tangent).sum(-1, keepdim=True) * normal
    # Rounded towards descent: an ascending field along the gradient leaves nothing but rounding.
    projected = tangent + (bound - rounding) * normal
    # A comparison with NaN is false, and must not let the field through.
    return torch.where((along <= bound) | flat, field, projected)


@final
class ProjectedField(VectorField):
    r"""Any field, projected so that it descends a Lyapunov function at rate ``alpha``.

    .. math:: \hat F = \bar F - n\,\mathrm{ReLU}(n^\top \bar F + \alpha V / \|\nabla V\|), \qquad
              \bar F(t, z, u) = F(t, z, u) - F(t, c, u)

    Along its trajectories :math:`V(z(t)) \le V(z(0)) e^{-\alpha t}`, if :math:`\nabla V` vanishes
    at the center alone. With ``centered`` the center is an equilibrium, and the field is continuous
    there if ``F`` is and :math:`V/\|\nabla V\| \to 0`, as for every convex ``V``. Without,
    ``F(t, c, u)`` is left as it is; unless it vanishes the field jumps at the center, where
    trajectories are then those in the sense of Filippov, which rest there. With a positive rate
    nothing but the center can be an equilibrium.

    Args:
        state_shape: shape of one state.
        feature_shape: shape of one input's features; ``None`` or ``()`` for an autonomous field.
        vector_field: the field ``F`` to project.
        potential: the Lyapunov function.
        alpha: decay rate, not negative.
        centered: whether the field's value at the center is subtracted.
        center: whether the center is the ``"potential"``'s own, or each sample's ``"features"``,
            which are then states.

    Raises:
        InvalidOptionError: for a negative ``alpha``, or features as center that are no states.

    References:
        [MK] (10); [SNN] (29).
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        feature_shape: Sequence[int] | None = None,
        vector_field: Part = "mlp",
        potential: Part = "icnn",
        alpha: float = 1.0,
        centered: bool = True,
        center: Literal["potential", "features"] = "potential",
    ) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.feature_shape = tuple(feature_shape or ())
        self.alpha = number("alpha", alpha, least=0)
        self.centered = flag("centered", centered)
        self.center = check_center(center, self.state_shape, self.feature_shape)
        self.vector_field: VectorField = stabnet.build(
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
        return self.descent(t, z, u).velocity

    def context(self, u: Features = None) -> Context:
        """Return what the potential is evaluated with; see :class:`stabnet.interfaces.Descends`."""
        return field_context(self.potential, self.center, u)

    def descent(
        self, t: float | Tensor, z: Tensor, u: Features = None, context: Context | None = None
    ) -> Descent:
        """Evaluate the projected field, the potential and its rate of change.

        Args:
            t: time.
            z: states, as in :meth:`forward`; also a single state without a batch.
            u: features.
            context: with another center than :meth:`context` has.

        Returns:
            Field, potential and rate; see :class:`stabnet.interfaces.Descent`.
        """
        ndim = len(self.state_shape)
        if context is None:
            context = self.context(u)
        field = self._centered(t, z, u, context)
        value, gradient = self.potential.value_and_gradient(z, context)
        slope = gradient.flatten(-ndim)
        flat = project(field.flatten(-ndim), value, slope, self.alpha)
        return Descent(flat.reshape(field.shape), value, (slope * flat).sum(-1))

    def towards(self, center: Float[Tensor, "batch ..."]) -> _Towards:
        """Return the same field with another center for each sample, for an integrator.

        Args:
            center: one state per sample, ``(batch, *state_shape)``.
        """
        return _Towards(self, center)

    def _centered(self, t: float | Tensor, z: Tensor, u: Features, context: Context) -> Tensor:
        """Return the field, less its value at the center if that is wanted."""
        ndim = len(self.state_shape)
        if z.ndim == ndim:  # one state, as under vmap; fields take batches
            batched = pytree.tree_map_only(Tensor, lambda part: part[None], u)
            return self._centered(t, z[None], batched, context)[0]
        field: Tensor = self.vector_field(t, z, u)
        if not self.centered:
            return field
        c = center_of(self.potential, context).to(z.dtype)
        if c.ndim > ndim:
            of_sample: Tensor = self.vector_field(t, c, u)
            return field - lift_features(of_sample, z, ndim)
        if z.ndim > ndim + 1:
            c = c[None]
        first = u[0] if isinstance(u, tuple) else u
        c = c.expand(1 if first is None else first.shape[0], *c.shape)
        at_center: Tensor = self.vector_field(t, c, u)
        return field - at_center

    def guarantees(self) -> list[Guarantee]:
        """Return the decay of the potential along exact trajectories."""
        return descent_guarantees(
            self.potential,
            self.alpha,
            source="Manek & Kolter 2019, (10) and Theorem 1; [SNN] (29)",
            assumptions=()
            if self.centered
            else ("F vanishes at the center, or trajectories are those in the sense of Filippov",),
        )

    def extra_repr(self) -> str:
        """Return the rate, and what the center is."""
        return f"alpha={self.alpha}, centered={self.centered}, center={self.center!r}"


@final
class _Towards:
    """A projected field whose center is a given state of each sample."""

    def __init__(self, field: ProjectedField, center: Tensor) -> None:
        self.field, self.center = field, center
        self.potential, self.alpha = field.potential, field.alpha

    def __call__(self, t: float | Tensor, z: Tensor, u: Features = None) -> Tensor:
        return self.descent(t, z, u).velocity

    def context(self, u: Features = None) -> Context:
        return Context(center=self.center)

    def descent(self, t: float | Tensor, z: Tensor, u: Features = None) -> Descent:
        return self.field.descent(t, z, u, self.context(u))
