"""The projection as a block behind an equilibrium, in the three readings of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import InvalidOptionError
from stabnet.interfaces import Block, Features, Guarantee, Potential
from stabnet.values import number

from .center import center_of
from .fields.descent import NO_CRITICAL_POINTS
from .fields.projected import project
from .flow import ProjectionFlow, no_claim_on_inputs

__all__ = ["PointProjection", "Reading", "projection"]

Part = str | Mapping[str, Any] | nn.Module

Reading = Literal["output", "residual", "flow"]


def projection(
    *,
    state_shape: Sequence[int],
    reading: Reading = "output",
    potential: Part | None = None,
    vector_field: Part | None = None,
    alpha: float = 2.0,
    time: float = 1.0,
    step_size: float = 0.1,
) -> Block:
    """Build the block that applies the projection to an equilibrium ``z*``.

    Args:
        state_shape: shape of one state.
        reading: ``"output"``: the projected vector is ``z*`` itself; ``"residual"``: it is
            ``f(z*) − z* = 0``; ``"flow"``: the state is carried along the projected field to its
            own equilibrium, the one reading with a theorem.
        potential: the Lyapunov function; ``None`` for an ``icnn``, centered at the origin as in
            the paper, or for ``"flow"`` at ``z*`` with its tangent plane subtracted. One of your
            own needs ``convex = True`` and a growth bound for the guarantees to be unconditional.
        vector_field: the field that ``"flow"`` follows; the other readings have none.
        alpha: decay rate, not negative.
        time: how long ``"flow"`` carries the state.
        step_size: its largest step.

    Returns:
        A :class:`PointProjection` or a :class:`ProjectionFlow`.

    Raises:
        InvalidOptionError: for an unknown reading, a ``"flow"`` without a field, a field without
            a ``"flow"``, a potential that does not take its center from the context for
            ``"flow"``, or a constant out of range.
    """
    if reading not in ("output", "residual", "flow"):
        raise InvalidOptionError(
            f"the projection has no reading {reading!r}; it is 'output', 'residual' or 'flow'"
        )
    if (vector_field is None) == (reading == "flow"):
        raise InvalidOptionError(
            f"reading {reading!r} was given {'no' if vector_field is None else 'a'} vector_field; "
            "'flow' needs the field to follow, and the other readings have none"
        )
    shape = tuple(state_shape)
    default: Part = {"name": "icnn", "tangent": reading == "flow"}
    lyapunov = stabnet.build(
        default if potential is None else potential, kind="potential", state_shape=shape
    )
    if reading != "flow":
        return PointProjection(shape, lyapunov, reading, alpha)
    assert vector_field is not None
    field = stabnet.build(vector_field, kind="vector_field", state_shape=shape, feature_shape=shape)
    return ProjectionFlow(shape, field, lyapunov, alpha, time, step_size)


@final
class PointProjection(Block):
    r"""One evaluation of the projection, at the equilibrium that comes in.

    ``"output"`` returns the vector nearest to :math:`z^*` that descends the potential at
    :math:`z^*`. With a convex potential centered at the origin, as in the paper, the projection is
    active everywhere: the component of :math:`z^*` along :math:`\nabla V` is replaced by
    :math:`-\alpha V/\|\nabla V\|`. With another center it may leave :math:`z^*` as it is.
    ``"residual"`` projects the field :math:`f(z^*) - z^* = 0` there, which gives
    :math:`-\alpha V \nabla V/\|\nabla V\|^2`, whatever the center.

    Args:
        state_shape: shape of one state.
        potential: the Lyapunov function, with a center that is no sample's own.
        reading: which vector is projected.
        alpha: decay rate, not negative.

    Raises:
        InvalidOptionError: for a negative ``alpha``.

    References:
        [LyaDEQ] (8), with its cases unswapped.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        potential: Potential,
        reading: Literal["output", "residual"],
        alpha: float,
    ) -> None:
        super().__init__()
        self.state_shape = tuple(state_shape)
        self.potential = potential
        self.reading = reading
        self.alpha = number("alpha", alpha, least=0)

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the projected vector at ``z``."""
        ndim = len(self.state_shape)
        value, gradient = self.potential.value_and_gradient(z)
        vector = z if self.reading == "output" else torch.zeros_like(z)
        flat = project(vector.flatten(-ndim), value, gradient.flatten(-ndim), self.alpha)
        return flat.reshape(z.shape)

    def guarantees(self) -> list[Guarantee]:
        """Return what one evaluation satisfies, and what it does not mean."""
        convex, descends = self.potential.convex, "descends" if self.alpha > 0 else "does not raise"
        formula = f"∇V(z*)ᵀv ≤ −{self.alpha:g}·V(z*)"
        if self.reading == "residual":
            formula = f"v = −{self.alpha:g}·V(z*) ∇V(z*)/‖∇V(z*)‖²"
        elif convex and not bool(center_of(self.potential).any()):
            formula = f"∇V(z*)ᵀv = −{self.alpha:g}·V(z*)"
        return [
            Guarantee(
                claim=f"the block returns the vector nearest to "
                f"{'zero' if self.reading == 'residual' else 'z*'} that {descends} the potential "
                "at the equilibrium; no state is carried along it, so nothing converges by it",
                formula=formula,
                source="Manek & Kolter 2019, (10); Chu et al. 2023, (8)",
                status="by construction" if convex else "conditional",
                assumptions=(
                    "V is at least 0, and 0 at its center"
                    + (", and convex, as it says" if convex else ""),
                    "exact arithmetic, up to rounding",
                ),
                detail=""
                if convex
                else f"open: that {NO_CRITICAL_POINTS}; it is not known to be "
                "convex. Elsewhere the vector is returned as it is",
            ),
            no_claim_on_inputs(
                "the projection is applied once, to an equilibrium that moves with x"
            ),
        ]

    def extra_repr(self) -> str:
        """Return reading and rate."""
        return f"reading={self.reading!r}, alpha={self.alpha}"
