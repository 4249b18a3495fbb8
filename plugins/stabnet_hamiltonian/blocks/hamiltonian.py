"""One step of a symplectic scheme as a block, which is inverted exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import InvalidOptionError
from stabnet.interfaces import Block, Features, Guarantee, VectorField, check_block_state
from stabnet.values import number

from ..fields._guarantees import symplectic_status
from ..fields.separable_hamiltonian import SeparableHamiltonian
from ..scheme import inverse_step, is_separable, scheme_named, step
from .fused import Pull, inverse_step_with_vjp

__all__ = ["Hamiltonian", "hamiltonian"]

Part = str | Mapping[str, Any] | nn.Module


def hamiltonian(
    state_shape: Sequence[int],
    *,
    vector_field: Part = "separable_hamiltonian",
    scheme: str = "symplectic_euler",
    step_size: float = 0.1,
    time: float = 0.0,
    feature_shape: Sequence[int] | None = None,
) -> Hamiltonian:
    """Build one step of a separable field; see :class:`Hamiltonian`.

    Args:
        state_shape: shape of one state ``(q, p)``, with an even first size.
        vector_field: the field; separable.
        scheme: ``"symplectic_euler"``, ``"leapfrog"`` or ``"yoshida4"``.
        step_size: ``h``, not zero; negative backward in time.
        time: when the step starts, for fields that depend on time.
        feature_shape: shape of the features of one input, for fields that depend on them.

    Raises:
        InvalidOptionError: for a field that is not separable or takes other states, an unknown
            scheme, or a step of zero.
    """
    shape = tuple(state_shape)
    field = stabnet.build(
        vector_field, kind="vector_field", state_shape=shape, feature_shape=feature_shape
    )
    if tuple(field.state_shape) != shape:
        raise InvalidOptionError(
            f"the field takes states of shape {tuple(field.state_shape)}; the block was asked for "
            f"state_shape={shape}. Build the field for these"
        )
    return Hamiltonian(field, scheme=scheme, step_size=step_size, time=time)


@final
class Hamiltonian(Block):
    r"""One step of a symplectic scheme on a separable field.

    Of symplectic Euler, it is

    .. math:: \hat q = q + h \nabla K(p), \qquad \hat p = p - h \nabla U(\hat q).

    States are ``(q, p)``, two halves along their first dimension. The inverse is the opposite moves
    in opposite order. Where the field is that of a Hamiltonian, the Jacobian ``M`` is symplectic,
    :math:`M^\top J M = J`: then :math:`M^{-1} = J^{-1} M^\top J`, so that singular values come in
    pairs :math:`(s, 1/s)` and :math:`\|M\|_2 \ge 1`.

    Args:
        vector_field: the field, with ``velocity`` and ``force``.
        scheme: ``"symplectic_euler"``, ``"leapfrog"`` or ``"yoshida4"``.
        step_size: ``h``, not zero; negative backward in time.
        time: when the step starts.

    Attributes:
        vector_field: the field.

    Raises:
        InvalidOptionError: for a field that is not separable, an unknown scheme, or a step of zero.

    References:
        [SNN] (22)–(28).
    """

    covers_parts = True  # what a field guarantees is of its exact flow, and not of a step

    def __init__(
        self,
        vector_field: VectorField,
        *,
        scheme: str = "symplectic_euler",
        step_size: float = 0.1,
        time: float = 0.0,
    ) -> None:
        super().__init__()
        field = vector_field
        if not is_separable(vector_field):
            raise InvalidOptionError(
                f"a Hamiltonian block moves q and p in turn; {type(vector_field).__name__} has no "
                "velocity(t, p, u) and force(t, q, u). Use 'separable_hamiltonian' or, for other "
                "fields, a Flow with the integrator 'implicit_midpoint'"
            )
        if number("step_size", step_size) == 0:
            raise InvalidOptionError("step_size=0 makes the block the identity; choose another")
        self.vector_field: VectorField = field
        self.state_shape = tuple(field.state_shape)
        self.scheme, self.step_size = scheme, float(step_size)
        self._moves = scheme_named(scheme)  # older compilers can't look it up
        self.time = number("time", time)

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the states one step later.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        field = self.vector_field
        assert is_separable(field)
        return step(self._moves, field, self.time, z, self.step_size, self._features(u))

    def inverse(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the states that the block maps to ``z``, exactly up to rounding.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        field = self.vector_field
        assert is_separable(field)
        return inverse_step(self._moves, field, self.time, z, self.step_size, self._features(u))

    def inverse_with_vjp(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> tuple[Float[Tensor, "batch ..."], Pull]:
        """Return what the block maps to ``z``, and its vector–Jacobian product there.

        Both come from one evaluation of each velocity and force.

        Args:
            z: states that the block returned.
            u: features; leaves, where gradients of them are wanted.

        Returns:
            The preimage; and the map from a gradient at ``z`` to those of the preimage, of the
            tensors of ``u`` that require one, and of the block's parameters that do, ``None`` for
            any that the block does not depend on. Call it once at most.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        given = () if u is None else u if isinstance(u, tuple) else (u,)
        others = [t for t in (*given, *self.parameters()) if t.requires_grad]
        field = self.vector_field
        assert is_separable(field)
        return inverse_step_with_vjp(
            self._moves, field, self.time, z, self.step_size, self._features(u), others
        )

    def guarantees(self) -> list[Guarantee]:
        """Return that the block is invertible and, for a Hamiltonian field, symplectic."""
        field, exact = self.vector_field, "exact arithmetic, up to rounding"
        if isinstance(field, SeparableHamiltonian):
            status, assumptions, detail = symplectic_status(
                field.kinetic_potential, field.potential
            )
        else:
            needs = "velocity and force are gradients in the state, and differentiable"
            status, assumptions, detail = "conditional", (needs,), f"open to the block: {needs}"
        return [
            Guarantee(
                claim="the block is a bijection of its states, with an explicit inverse",
                formula="Φ⁻¹(Φ(z)) = z",
                source="[SNN] (27)–(28): moves of q given p, and of p given q",
                status="by construction",
                assumptions=("velocity and force are functions: nothing in them is random", exact),
            ),
            Guarantee(
                claim="the Jacobian of the block in the state is symplectic: its singular values "
                "come in pairs (s, 1/s), and its operator norm is at least 1 (gradients in an "
                "unlucky direction may still shrink)",
                formula="MᵀJM = J, ‖M‖₂ ≥ 1",
                source="[SNN] (22)–(23)",
                status=status,
                assumptions=(*assumptions, exact),
                detail=detail,
            ),
        ]

    def extra_repr(self) -> str:
        """Return the options that matter."""
        return f"scheme={self.scheme!r}, step_size={self.step_size:g}"

    def _features(self, u: Features) -> Features:
        """Return what the field is driven by: the features, unless it is autonomous."""
        return u if self.vector_field.feature_shape else None
