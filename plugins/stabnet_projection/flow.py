"""The reading of LyaDEQ with a theorem: a flow to the input's own equilibrium."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

import stabnet
from stabnet import InvalidOptionError
from stabnet.interfaces import (
    Block,
    BoundsGrowth,
    BoundsSmoothness,
    Context,
    Features,
    Guarantee,
    Potential,
    Solution,
    VectorField,
)
from stabnet.values import number

from .center import center_of
from .fields.projected import ProjectedField
from .stable_step import StableStep

__all__ = ["ProjectionFlow"]


@final
class ProjectionFlow(Block):
    r"""Carries the zero state towards a given equilibrium, along the projected field.

    The incoming state :math:`z^*` is the center of the potential. One step of size ``h`` is

    .. math:: y = z + h\,\hat F(z), \qquad z^+ = z^* + \gamma (y - z^*), \qquad
              \gamma = \min(1,\; e^{-\alpha h} V(z) / V(y)).

    Since ``V`` is convex and vanishes at the center, :math:`V(z^+) \le \gamma V(y) \le
    e^{-\alpha h} V(z)` for every step size: the decay that the projected field has in continuous
    time holds for the steps as they are taken. (A potential that is not convex is scaled by
    halving; see :class:`StableStep`.) All of it concerns the state: :math:`z^*` moves with the
    input, and nothing here bounds how far.

    Args:
        state_shape: shape of one state.
        vector_field: the field; at the center it should vanish.
        potential: a potential that takes its center from the context; :math:`z^*` replaces one
            that it has of its own.
        alpha: decay rate, not negative.
        time: how long the state is carried.
        step_size: the largest step; the time is cut into equal ones.

    Raises:
        InvalidOptionError: for a negative ``alpha``, a time or step size that is not positive, or a
            potential that does not vanish at the center of its context.

    References:
        [MK] (10) for the field; Lawrence et al. 2020 for the scaled step.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        vector_field: VectorField,
        potential: Potential,
        alpha: float,
        time: float,
        step_size: float,
    ) -> None:
        super().__init__()
        self.state_shape = tuple(state_shape)
        _check_center(potential)
        # The field vanishes at the equilibrium already, up to the residual of its solve.
        self.vector_field = ProjectedField(
            self.state_shape, self.state_shape, vector_field, potential, alpha, centered=False
        )
        self.time = number("time", time, above=0)
        self.integrator = StableStep(step_size)

    def forward(self, z: Float[Tensor, "batch ..."], u: Features = None) -> Solution:
        """Carry the zero state towards the equilibrium ``z``.

        Args:
            z: the equilibrium of each sample, ``(batch, *state_shape)``.
            u: the features that drive the field.

        Returns:
            The trajectory, from zero at time 0 to the final state.
        """
        steps = stabnet.time_steps((0.0, self.time), self.integrator.step_size)[0]
        times = [*(float(t) for t, _ in steps), self.time]
        trajectory = self.integrator(self.vector_field.towards(z), torch.zeros_like(z), times, u)
        return Solution(
            trajectory.states[-1],
            nfe=trajectory.nfe,
            times=torch.tensor(times, dtype=z.dtype, device=z.device),
            states=trajectory.states,
        )

    def guarantees(self) -> list[Guarantee]:
        """Return what holds of the equilibrium in the state, and that nothing does of the input."""
        potential, alpha = self.vector_field.potential, self.vector_field.alpha
        formula = f"V(z_k) ≤ V(z_0) e^(−{alpha:g} t_k)"
        gaps = [] if potential.convex else ["that V has no critical point besides z*"]
        if isinstance(potential, BoundsGrowth):
            eta = float(potential.growth_bound())
            formula += f", ‖z_k − z*‖ ≤ √(V(z_0)/{eta:.3g}) e^(−{alpha:g} t_k/2)"
        else:
            gaps.append("that V grows away from z*, and vanishes there alone")
        if isinstance(potential, BoundsSmoothness):
            smoothness = float(potential.smoothness_bound())
            if math.isfinite(smoothness):
                formula += f", V(z_0) ≤ ({smoothness:.3g}/2) ‖z_0 − z*‖²"
        claim = (
            "each input's own z* is the only state at which its projected field and its steps can "
            "rest, and is exponentially stable in the state z, from every start, along the steps "
            "as they are taken: inputs with distinct z* keep distinct equilibria"
            if alpha > 0
            else "each input's own z* is stable in the state z, along the steps as they are taken"
        )
        return [
            Guarantee(
                claim=claim,
                formula=formula,
                source="Manek & Kolter 2019, Theorem 1; step of Lawrence et al. 2020",
                status="conditional" if gaps else "by construction",
                assumptions=(
                    "z* is the state that the solver returned; its residual r = f(z*, u) − z* is "
                    "reported, and bounds no distance to an equilibrium of the cell",
                    "the steps map z* to itself; the field has the value r there, and not zero",
                    "V is at least 0, and 0 at the center that it is given",
                    "evaluation mode, or a cell without batch normalization: else z* is the "
                    "batch's, and not the input's alone",
                    "exact arithmetic, up to rounding",
                ),
                detail=f"open: {', and '.join(gaps)}" if gaps else "",
            ),
            no_claim_on_inputs(
                "z* itself moves with x, nothing bounds how far, and nothing keeps the z* of "
                "different inputs apart"
            ),
        ]


def _check_center(potential: Potential) -> None:
    """Raise :class:`InvalidOptionError` unless a potential vanishes at the center it is given."""
    own = center_of(potential)
    center = torch.linspace(-1, 1, own.numel()).reshape(1, *own.shape).to(own)
    with torch.no_grad():
        value = float(potential(center, Context(center=center)))
    if not abs(value) <= 1e-4:
        raise InvalidOptionError(
            f"the flow needs a potential that vanishes at the center of its context; "
            f"{type(potential).__name__} is {value:.3g} there. Let it use context.center, as "
            "'icnn' does"
        )


def no_claim_on_inputs(reason: str) -> Guarantee:
    """Return the statement that nothing is guaranteed about the input, with the reason."""
    return Guarantee(
        claim="NOT guaranteed: robustness to perturbations of the input x",
        formula="no bound of ‖h(x + δ) − h(x)‖ is claimed",
        source="Chu et al. 2023 state none; the Lyapunov condition concerns z alone",
        status="conditional",
        detail=f"open: {reason}",
    )
