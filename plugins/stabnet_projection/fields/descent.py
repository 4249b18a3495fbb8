"""What all fields that descend a potential share: their center, and what is guaranteed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import BoundsGrowth, Context, Features, Guarantee, Potential

from ..center import center_of

__all__ = ["NO_CRITICAL_POINTS", "check_center", "descent_guarantees", "field_context"]

NO_CRITICAL_POINTS = "∇V vanishes only where V does"

Center = Literal["potential", "features"]


def check_center(
    center: Center, state_shape: Sequence[int], feature_shape: Sequence[int]
) -> Center:
    """Return what the center of a field is.

    Raises:
        InvalidOptionError: if it is neither, or features of another shape than a state's.
    """
    if center not in ("potential", "features"):
        raise InvalidOptionError(
            f"center={center!r} is unknown; it is 'potential' or 'features'. A point is an option "
            "of the potential, as in {'name': 'icnn', 'center': [...]}"
        )
    if center == "features" and tuple(feature_shape) != tuple(state_shape):
        raise InvalidOptionError(
            f"center='features' needs features that are states, of shape {tuple(state_shape)}; "
            f"got feature_shape={tuple(feature_shape)}"
        )
    return center


def field_context(potential: Potential, center: Center, u: Features) -> Context:
    """Return the context of a potential at features: its center, and the features.

    Raises:
        InvalidInputError: if the center is the features and there are none.
    """
    features = u if isinstance(u, Tensor) else None
    if center == "potential":
        return Context(features=features, center=center_of(potential))
    if features is None:
        raise InvalidInputError(
            f"the center is each sample's features, one tensor; got {type(u).__name__}. Pass u; "
            "a Flow with initial='features' passes none, and needs 'zeros' or 'learned'"
        )
    return Context(features=features, center=features)


def descent_guarantees(
    potential: Potential, alpha: float, source: str, assumptions: Sequence[str] = ()
) -> list[Guarantee]:
    """Return what holds along exact trajectories of a field with ``∇VᵀF ≤ −αV``.

    The status is by construction for a convex potential that grows, whose gradient vanishes at its
    center alone, and conditional for any other.

    Args:
        potential: ``V``.
        alpha: the rate.
        source: paper and equation of the field.
        assumptions: what the field needs besides.
    """
    formula = "∇V(z)ᵀF(t, z, u) ≤ 0, hence V(z(t)) ≤ V(z(0))"
    if alpha > 0:
        formula = f"∇V(z)ᵀF(t, z, u) ≤ −{alpha:g}·V(z), hence V(z(t)) ≤ V(z(0)) e^(−{alpha:g} t)"
    assumptions = (
        *assumptions,
        "exact arithmetic, up to rounding",
        "the flow is exact: a step of a general integrator may raise V; stable_step's do not",
    )
    grows = isinstance(potential, BoundsGrowth)
    if isinstance(potential, BoundsGrowth):
        eta = float(potential.growth_bound())
        formula += f", ‖z(t) − c‖ ≤ √(V(z(0))/{eta:.3g})"
        formula += f" e^(−{alpha:g} t/2)" if alpha > 0 else ""
    gap = ""
    if not potential.convex:
        gap = "that V is positive, and has no critical point, besides the center"
    elif not grows:
        gap = "that V grows, and vanishes at the center alone"
    return [
        Guarantee(
            claim="the potential decays exponentially along trajectories of the field, in the "
            "state (this says nothing of perturbed inputs)"
            if alpha > 0
            else "the potential never rises along trajectories of the field, in the state (this "
            "says nothing of perturbed inputs)",
            formula=formula,
            source=source,
            status="conditional" if gap else "by construction",
            assumptions=assumptions if potential.convex else (*assumptions, NO_CRITICAL_POINTS),
            detail=f"open: {gap}" if gap else "",
        )
    ]
