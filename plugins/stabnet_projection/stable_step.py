"""Steps in discrete time that never raise the potential."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet import InvalidInputError, InvalidOptionError
from stabnet.interfaces import (
    BoundsSmoothness,
    Context,
    Descends,
    Features,
    Guarantee,
    Integrator,
    Potential,
    RightHandSide,
    Trajectory,
    is_descending,
)
from stabnet.values import number, whole

from .center import center_of, offset_from

__all__ = ["StableStep"]

Part = str | Mapping[str, Any] | nn.Module


@final
class StableStep(Integrator):
    r"""A step along a field that descends a potential, cut back so that it descends as well.

    ``scheme="scaled"``: any step :math:`y = T(z)` is scaled towards the center,

    .. math:: z^+ = c + \gamma (y - c), \qquad \gamma = \min(1, e^{-\alpha h} V(z) / V(y)),

    so that :math:`V(z^+) \le e^{-\alpha h} V(z)` for a convex potential, as the exact flow
    satisfies. Where ``T`` has order p, so has the step scaled by this γ. ``scheme="shortened"``: an
    Euler step :math:`z^+ = z + s F(z)`,

    .. math:: s = \min\left(h, \frac{2\theta\,(-\nabla V^\top F)}{L \|F\|^2}\right), \qquad
              V(z^+) \le V(z) + (1 - \theta)\,s\,\nabla V^\top F
              \le (1 - (1 - \theta) \alpha s) V(z)

    for an L-smooth potential. A shortened step covers the time ``s`` alone: states are then those
    of a slower discrete-time system, and not of the flow at the times asked for.

    For a potential that is not known to be convex, or whose ``L`` is not known, the inequality is
    evaluated. Where the :math:`\gamma` above fails, the largest of :math:`1 - 2^{-k}` and
    :math:`2^{-k}` is taken that satisfies it, or of :math:`s = 2^{-k} h`, all candidates at once;
    where none does the state goes to the center (scaled), or stays (shortened). So ``V`` never
    rises, whatever its shape; but a scaled step may then jump over a ridge of ``V``. There is no
    host synchronization. Gradients take α, ``L``, and which candidate was taken, as given. With
    α = 0 a shortened step stands still where the field runs along a level set, and with an infinite
    ``L`` everywhere. A state that is not finite, or whose field is not, never becomes finite.

    Args:
        step_size: the longest step ``h``, positive.
        scheme: which of the two.
        integrator: the method ``T`` of ``"scaled"``, called for one step at a time; one Euler step
            if ``None``.
        theta: ``θ`` of ``"shortened"``, in (0, 1): larger ones take longer steps that descend less.
        halvings: the largest ``k``, where the inequality is evaluated.

    Raises:
        InvalidOptionError: for options out of range, or a method for ``"shortened"``.

    References:
        Lawrence et al., "Almost surely stable deep dynamics", 2020, for the scaled step; the
        descent lemma for the shortened one.
    """

    def __init__(
        self,
        step_size: float = 0.1,
        scheme: Literal["scaled", "shortened"] = "scaled",
        integrator: Part | None = None,
        theta: float = 0.5,
        halvings: int = 20,
    ) -> None:
        super().__init__()
        if scheme not in ("scaled", "shortened"):
            raise InvalidOptionError(f"scheme={scheme!r} is unknown; it is 'scaled' or 'shortened'")
        if scheme == "shortened" and integrator is not None:
            raise InvalidOptionError(
                "scheme='shortened' takes Euler steps and no other integrator; leave it out, or "
                "choose 'scaled'"
            )
        self.step_size = number("step_size", step_size, above=0)
        self.scheme = scheme
        self.integrator: Integrator | None = (
            None if integrator is None else stabnet.build(integrator, kind="integrator")
        )
        self.theta = number("theta", theta, above=0, below=1)
        self.halvings = whole("halvings", halvings, 1)

    def forward(
        self,
        vector_field: RightHandSide,
        z0: Float[Tensor, "batch ..."],
        times: Sequence[float] | Float[Tensor, " times"],
        u: Features = None,
    ) -> Trajectory:
        """Carry states from ``times[0]`` through all later times.

        Args:
            vector_field: a field that descends a potential
                (:class:`stabnet.interfaces.Descends`), such as ``projected``.
            z0: state at ``times[0]``.
            times: at least two finite, strictly increasing times.
            u: features, handed to every evaluation.

        Returns:
            The states at all ``times``, and the evaluations of the field.

        Raises:
            InvalidInputError: for another field, or times that are not as described.
        """
        if not is_descending(vector_field):
            raise InvalidInputError(
                f"stable_step needs a field that descends a potential, such as 'projected'; "
                f"{type(vector_field).__name__} names none. For other fields take 'rk4'"
            )
        steps = stabnet.time_steps(times, self.step_size)
        if steps[0][0][1] < 0:
            raise InvalidInputError(
                f"stable_step goes forward in time, the only direction in which a potential "
                f"decays; got decreasing times {list(map(float, times))}"
            )
        context = vector_field.context(u)
        # What is constant along the way is computed once.
        smoothness = _smoothness(vector_field) if self.scheme == "shortened" else None
        alpha = vector_field.alpha
        z, states, nfe = z0, [z0], 0
        for interval in steps:
            for t, h in interval:
                if self.scheme == "scaled":
                    z, spent = self._scaled(vector_field, context, alpha, t, z, h, u)
                else:
                    z, spent = self._shortened(vector_field, context, smoothness, t, z, h, u), 1
                nfe += spent
            states.append(z)
        return Trajectory(torch.stack(states), nfe)

    def _scaled(
        self,
        field: Descends,
        context: Context,
        alpha: float | Tensor,
        t: float | Tensor,
        z: Tensor,
        h: float | Tensor,
        u: Features,
    ) -> tuple[Tensor, int]:
        """Return the state after one scaled step, and the evaluations spent."""
        potential, ndim = field.potential, len(field.potential.state_shape)
        if self.integrator is None:
            velocity, value, _ = field.descent(t, z, u)
            y, spent = z + h * velocity, 1
        else:
            value = potential(z, context)
            # Gradients flow to times of a tensor.
            span = torch.stack([torch.as_tensor(t), t + h]) if isinstance(h, Tensor) else (t, t + h)
            trajectory = self.integrator(field, z, span, u)
            y, spent = trajectory.states[-1], trajectory.nfe
        exponent = -alpha * h
        decay = exponent.exp() if isinstance(exponent, Tensor) else math.exp(exponent)
        target, reached = value * decay, potential(y, context)
        descends = reached <= target
        offset, center = offset_from(center_of(potential, context), y, ndim)
        # Scaled by V(y), which may be tiny, the derivatives of the quotient stay in range.
        size = torch.where(descends | reached.isinf(), 1, reached.detach())
        gamma = (target / size) / torch.where(descends, 1, reached / size)
        gamma = torch.where(descends, 1, gamma)
        if not potential.convex:
            halves = self._halves(target)[1:]
            grid = torch.cat([1 - halves, halves]).expand(*gamma.shape, -1)
            shares = torch.cat([gamma[..., None], grid], -1)
            points = _along(center, shares, offset, potential.state_shape)
            with torch.no_grad():
                fits = _evaluated(potential, points, context) <= target[..., None]
            pulled = torch.where(fits, shares, 0)[..., 1:].amax(-1)
            gamma = torch.where(descends | fits[..., 0] | gamma.isnan(), gamma, pulled)
        scaled = (center + gamma[..., None] * offset).unflatten(-1, potential.state_shape)
        return torch.where(_like_states(gamma == 1, ndim), y, scaled), spent

    def _shortened(
        self,
        field: Descends,
        context: Context,
        smoothness: Tensor | None,
        t: float | Tensor,
        z: Tensor,
        h: float | Tensor,
        u: Features,
    ) -> Tensor:
        """Return the state after one shortened Euler step."""
        potential, ndim = field.potential, len(field.potential.state_shape)
        velocity, value, rate = field.descent(t, z, u)
        rate = rate.clamp_max(0)  # by rounding, or at a critical point, it may be above
        step = torch.ones_like(value) * h
        flat = velocity.flatten(-ndim)
        if smoothness is not None:
            # Scaled by its largest entry, the speed and its derivatives stay in range.
            largest = flat.detach().abs().amax(-1)
            largest = torch.where(largest > 0, largest, 1)
            speed = (flat / largest[..., None]).square().sum(-1) * smoothness.to(z.dtype)
            moves = speed > 0
            descent = 2 * self.theta * -rate / largest / largest
            allowed = descent / torch.where(moves, speed, 1)
            step = torch.where(moves, torch.minimum(step, allowed), step)
        else:
            shares = step[..., None] * self._halves(step)
            points = _along(z.flatten(-ndim), shares, flat, potential.state_shape)
            with torch.no_grad():
                bound = value[..., None] + (1 - self.theta) * shares * rate[..., None]
                fits = _evaluated(potential, points, context) <= bound
            step = torch.where(fits, shares, 0).amax(-1)
        return z + _like_states(step, ndim) * velocity

    def _halves(self, like: Float[Tensor, "*batch"]) -> Float[Tensor, " halvings+1"]:
        """Return the powers of one half."""
        return 0.5 ** torch.arange(self.halvings + 1, dtype=like.dtype, device=like.device)

    def guarantees(self) -> list[Guarantee]:
        """Return the decay of the potential along the steps as they are taken."""
        if self.scheme == "scaled":
            formula = "V(z_{k+1}) ≤ e^(−α h) V(z_k)"
            source = "Lawrence et al. 2020, for convex V; evaluated for any other"
            assumption = "V is at least 0, and 0 at its center; if it says so, it is convex"
        else:
            formula = f"V(z_{{k+1}}) ≤ (1 − {1 - self.theta:g} α s_k) V(z_k), s_k as shortened"
            source = "descent lemma, for V with a known L; evaluated for any other"
            assumption = "the field satisfies ∇VᵀF ≤ −αV, as 'projected' does"
        return [
            Guarantee(
                claim="no step raises the potential of the field, whatever the step size, in the "
                "state (this says nothing of perturbed inputs)",
                formula=formula,
                source=source,
                status="by construction",
                assumptions=(assumption, "exact arithmetic, up to rounding"),
            )
        ]

    def extra_repr(self) -> str:
        """Return the options."""
        return f"step_size={self.step_size}, scheme={self.scheme!r}"


def _smoothness(field: Descends) -> Tensor | None:
    """Return the constant L of the field's potential, where one is known."""
    potential = field.potential
    return potential.smoothness_bound() if isinstance(potential, BoundsSmoothness) else None


def _along(
    base: Float[Tensor, "*batch n"],
    shares: Float[Tensor, "*batch candidates"],
    direction: Float[Tensor, "*batch n"],
    state_shape: tuple[int, ...],
) -> Float[Tensor, "*batch candidates ..."]:
    """Return the states that lie at shares of a direction from a base, both flattened."""
    points = base.unsqueeze(-2) + shares[..., None] * direction.unsqueeze(-2)
    states: Tensor = points.unflatten(-1, state_shape)
    return states


def _evaluated(
    potential: Potential, points: Float[Tensor, "*batch candidates ..."], context: Context
) -> Float[Tensor, "*batch candidates"]:
    """Return the potential of candidates, each of which it sees as one state of its sample."""
    axis = points.ndim - len(potential.state_shape) - 1
    values: Tensor = torch.func.vmap(lambda z: potential(z, context), axis, -1)(points)
    return values


def _like_states(per_state: Tensor, ndim: int) -> Tensor:
    """Return one value per state, aligned with the states."""
    return per_state[(..., *[None] * ndim)]
