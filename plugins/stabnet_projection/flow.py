"""The reading of LyaDEQ with a theorem: a flow to the input's own equilibrium."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import (
    Block,
    Context,
    Features,
    Guarantee,
    Potential,
    Solution,
    VectorField,
)

from .projected import check_alpha, project

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
        if not (0 < time < math.inf and 0 < step_size < math.inf):
            raise InvalidOptionError(
                f"time and step_size must be positive; got time={time}, step_size={step_size}"
            )
        self.state_shape = tuple(state_shape)
        self.vector_field = vector_field
        self.potential = potential
        self.alpha = check_alpha(alpha)
        self.time, self.steps = time, math.ceil(time / step_size - 1e-9)

    def forward(self, z: Float[Tensor, "batch ..."], u: Features = None) -> Solution:
        """Carry the zero state towards the equilibrium ``z``.

        Args:
            z: the equilibrium of each sample, ``(batch, *state_shape)``.
            u: the features that drive the field.

        Returns:
            The trajectory, from zero at time 0 to the final state.
        """
        h, context = self.time / self.steps, Context(center=z)
        states = [torch.zeros_like(z)]
        for k in range(self.steps):
            states.append(self.step(k * h, states[-1], h, u, context))
        times = torch.linspace(0, self.time, self.steps + 1, dtype=z.dtype, device=z.device)
        return Solution(states[-1], nfe=self.steps, times=times, states=torch.stack(states))

    def step(self, t: float, z: Tensor, h: float, u: Features, context: Context) -> Tensor:
        """Return the state one step of size ``h`` after ``z``."""
        ndim, center = len(self.state_shape), context.center
        assert center is not None
        value, gradient = self.potential.value_and_gradient(z, context)
        field = self.vector_field(t, z, u).flatten(-ndim)
        projected = project(field, value, gradient.flatten(-ndim), self.alpha)
        y = z + h * projected.unflatten(-1, self.state_shape)
        reached = self.potential(y, context)
        target = math.exp(-self.alpha * h) * value
        too_high = reached > target
        gamma = torch.where(too_high, target / torch.where(too_high, reached, 1), 1)
        gamma = gamma[(..., *[None] * ndim)]
        return torch.where(gamma < 1, center + gamma * (y - center), y)

    def guarantees(self) -> list[Guarantee]:
        """Return exponential stability of the equilibrium in the state, and what it is not."""
        rate, stable = f"{self.alpha}", "exponentially stable" if self.alpha > 0 else "stable"
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
