"""What can be seen at single states, in float64: counterexamples, and evidence that is no proof."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stabnet import Flow, StabilityModel
from stabnet.interfaces import Context, Features

from ..potential import SupervisedPotential
from .theorem import Decay

__all__ = ["Observer", "Witnesses", "bisect", "directions", "seems_to_hold", "witnesses"]

_ROUNDING = 1e-9
"""Share of its terms by which a violation must exceed what is allowed to be none of rounding."""

_POINTS = 17
"""States that are looked at along one trajectory."""


@dataclass(frozen=True)
class Observer:
    """A flow that is only looked at.

    Attributes:
        model: a copy of the model, in float64 and eval mode.
        kappa: the rate of decay.
    """

    model: StabilityModel
    kappa: float

    @property
    def flow(self) -> Flow:
        """The model's dynamics."""
        assert isinstance(self.model.dynamics, Flow)
        return self.model.dynamics

    def features(self, x: Float[Tensor, "rows ..."]) -> Features:
        """Return what drives the field; nothing does where the flow starts at the features."""
        return None if self.flow.initial == "features" else self.model.features(x)

    def potential(
        self, z: Float[Tensor, "rows *points n"], y: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows *points"]:
        """Return the cross entropy of the predictions that states stand for."""
        v: Tensor = self._supervised()(z, Context(label=y, head=self.model.head))
        return v

    def change(
        self, t: float, z: Float[Tensor, "rows *points n"], u: Features, y: Int[Tensor, " rows"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return :math:`V`, :math:`\dot V + \kappa V`, and a bound of the latter's rounding."""
        velocity = self.flow.vector_field(t, z, u)
        context = Context(label=y, head=self.model.head)
        v, rate = self._supervised().value_and_rate(z, velocity, context)
        state = len(self.flow.vector_field.state_shape)
        size = velocity.flatten(-state).abs().amax(-1) + self.kappa * v
        return v, rate + self.kappa * v, _ROUNDING * size

    def trajectory(
        self, x: Float[Tensor, "rows ..."]
    ) -> tuple[list[float], Float[Tensor, "points rows n"]]:
        """Return times, and the states at them on each input's trajectory."""
        ends = self.flow.times[0], self.flow.times[-1]
        times = torch.linspace(*ends, _POINTS, dtype=torch.float64).tolist()
        states = self.model.solve(x, times).states
        assert isinstance(states, Tensor)
        return times, states

    def end(self, x: Float[Tensor, "rows ..."], y: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Return the final potential of the model as it is evaluated."""
        state = self.model.solve(x).state
        assert isinstance(state, Tensor)
        return self.potential(state, y)

    def _supervised(self) -> SupervisedPotential:
        return SupervisedPotential(self.flow.vector_field.state_shape, truncation=0.0)


def directions(
    observer: Observer, x: Float[Tensor, "rows ..."], y: Int[Tensor, " rows"], seed: int
) -> Float[Tensor, "ways rows ..."]:
    """Return perturbations of size one: the steepest ascent of the final loss, and random corners.

    Args:
        observer: the model.
        x: inputs in float64.
        y: labels.
        seed: seed of the random ones.
    """
    with torch.enable_grad():
        moved = x.clone().requires_grad_()
        # What no input moves has the gradient 0, and is no error.
        loss = observer.end(moved, y).sum() + 0 * moved.sum()
        (ascent,) = torch.autograd.grad(loss, moved)
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 2, (7, *x.shape), generator=generator).to(x) * 2 - 1
    return torch.cat([ascent.nan_to_num().sign()[None], corners])


def seems_to_hold(
    observer: Observer, x: Float[Tensor, "rows ..."], y: Int[Tensor, " rows"], decay: Decay
) -> Bool[Tensor, " rows"]:
    """Return for which inputs no visited state speaks against the bound on the final potential.

    Args:
        observer: the model.
        x: perturbed inputs.
        y: labels.
        decay: what is to decay.
    """
    u = observer.features(x)
    times, states = observer.trajectory(x)
    level = observer.kappa * decay.level()
    holds = observer.end(x, y) < math.log(2)
    for t, z in zip(times, states, strict=True):
        v, excess, _ = observer.change(t, z, u, y)
        holds &= (v < decay.least) | (excess <= level)
    return holds


def bisect(
    holds: Callable[[Int[Tensor, " some"], Float[Tensor, " some"]], Bool[Tensor, " some"]],
    candidates: Bool[Tensor, " rows"],
    largest: float,
    steps: int,
) -> Float[Tensor, " rows"]:
    """Return the largest radius that was tried and found to hold, per row; 0 if none was.

    Args:
        holds: takes rows and a radius for each, and says for which it holds.
        candidates: the rows that are tried at all.
        largest: the largest radius, which is tried first.
        steps: halvings of what is left between a radius that holds and one that does not.
    """
    least = torch.zeros(len(candidates), dtype=torch.float64)
    most = torch.full_like(least, largest)
    rows = candidates.nonzero().flatten()
    tried = most[rows]
    for _ in range(steps + 1):
        if not len(rows):
            break
        good = holds(rows, tried)
        least[rows[good]], most[rows[~good]] = tried[good], tried[~good]
        rows = rows[(most - least)[rows] > 0]
        tried = (least[rows] + most[rows]) / 2
    return least


@dataclass(frozen=True)
class Witnesses:
    r"""The worst states that were looked at, per row; NaN where none exceeds what is allowed.

    Attributes:
        state: a state of the region.
        violation: :math:`\dot V + \kappa V` there.
    """

    state: Float[Tensor, "rows n"]
    violation: Float[Tensor, " rows"]

    @staticmethod
    def none(rows: int, state_shape: tuple[int, ...]) -> Witnesses:
        """Return that no state was found."""
        missing = torch.full((rows, math.prod(state_shape) + 1), math.nan, dtype=torch.float64)
        return Witnesses(missing[:, 1:], missing[:, 0])

    def or_worse(self, other: Witnesses) -> Witnesses:
        """Return the worse of two witnesses, per row."""
        worse = self.violation.isnan() | (other.violation > self.violation)
        return Witnesses(
            other.state.where(worse[:, None], self.state),
            other.violation.where(worse, self.violation),
        )


def witnesses(
    observer: Observer,
    t: float,
    z: Float[Tensor, "rows points n"],
    x: Float[Tensor, "rows ..."],
    y: Int[Tensor, " rows"],
    decay: Decay,
    slack: float,
) -> Witnesses:
    r"""Return where the decrease at the input itself fails by more than rounding.

    Args:
        observer: the model.
        t: the time.
        z: states; those outside of :math:`v_{\min} \le V \le V_0`, and those that hold a NaN, are
            passed over.
        x: inputs.
        y: labels.
        decay: what is to decay.
        slack: how much the decrease may fail.
    """
    v, excess, rounding = observer.change(t, z, observer.features(x), y)
    counts = (v >= decay.least[:, None]) & (v <= decay.start[:, None])
    counts &= excess > slack + rounding
    worst, place = excess.masked_fill(~counts, -math.inf).max(1)
    state = z.flatten(2)[torch.arange(len(z)), place]
    found = counts.any(1)
    return Witnesses(
        state.masked_fill(~found[:, None], math.nan), worst.masked_fill(~found, math.nan)
    )
