"""The reading of LyaDEQ with a theorem: a flow to the input's own equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

import stabnet
from stabnet.interfaces import (
    Block,
    Features,
    Guarantee,
    Potential,
    Solution,
    VectorField,
)
from stabnet.values import number

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
    time holds for the steps as they are taken.

    Args:
        state_shape: shape of one state.
        vector_field: the field; at the center it should vanish.
        potential: a **convex** potential with a per-sample center.
        alpha: decay rate, not negative.
        time: how long the state is carried.
        step_size: the largest step; the time is cut into equal ones.

    Raises:
        InvalidOptionError: for a negative ``alpha``, or a time or step size that is not positive.

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
        """Return exponential stability of the equilibrium in the state, and what it is not."""
        alpha = self.vector_field.alpha
        rate, stable = f"{alpha:g}", "exponentially stable" if alpha > 0 else "stable"
        return [
            Guarantee(
                claim=f"each input's equilibrium is {stable} in the state z, along the steps as "
                "they are taken",
                formula=f"V(z_k) ≤ V(z_0) e^(−{rate} t_k), "
                f"‖z_k − z*‖ ≤ √(V(z_0)/η) e^(−{rate} t_k/2)",
                source="Manek & Kolter 2019, Theorem 1; step of Lawrence et al. 2020; V convex",
                status="by construction",
                assumptions=(
                    "z* is the state that the solver returned, within its residual of the true "
                    "equilibrium",
                    "V is convex, zero at z* and at least η‖z − z*‖², as icnn is",
                    "exact arithmetic, up to rounding",
                ),
            ),
            no_claim_on_inputs("z* itself moves with x, and nothing bounds how far"),
        ]


def no_claim_on_inputs(reason: str) -> Guarantee:
    """Return the statement that nothing is guaranteed about the input, with the reason."""
    return Guarantee(
        claim="NOT guaranteed: robustness to perturbations of the input x",
        formula="no bound of ‖h(x + δ) − h(x)‖ is claimed",
        source="Chu et al. 2023 state none; the Lyapunov condition concerns z alone",
        status="conditional",
        detail=f"open: {reason}",
    )
