"""The proof for a set of inputs: the hypothesis of the theorem, and how far it carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .arithmetic import Box
from .cover import Question, Region, decide, grid
from .evidence import bisect
from .inputs import balls, decide_balls, region_of
from .scheme import Scheme
from .system import System
from .theorem import SAFETY, Decay, sensitivity

__all__ = ["Effort", "Proof", "prove"]


@dataclass(frozen=True)
class Effort:
    """What is to be proven, and how hard to try; see :func:`lyapunov_certificate`."""

    eps_max: float
    clip: tuple[float, float] | None
    slack: float
    steps: int
    max_cells: int
    max_boxes: int


@dataclass(frozen=True)
class Proof:
    """What was proven, per input; see :class:`LyapunovCertificate`.

    Attributes:
        suspect: margins and sum of a state at which the hypothesis could not be proven.
        reason: why nothing was proven, where nothing was.
    """

    decrease: Float[Tensor, " rows"]
    radius: Float[Tensor, " rows"]
    end: Float[Tensor, " rows"]
    radius_flow: Float[Tensor, " rows"]
    end_flow: Float[Tensor, " rows"]
    radius_theorem: Float[Tensor, " rows"]
    lipschitz: Float[Tensor, " rows"]
    suspect: Float[Tensor, "rows n"] | None
    evaluation: str
    reason: str

    @property
    def verified(self) -> Bool[Tensor, " rows"]:
        """Whether a radius was proven."""
        return self.radius > 0

    @staticmethod
    def none(rows: int, reason: str) -> Proof:
        """Return that nothing was proven."""
        zeros, inf, nan = (
            torch.tensor([0.0, math.inf, math.nan], dtype=torch.float64).expand(rows, 3).unbind(1)
        )
        return Proof(inf, zeros, inf, zeros, inf, zeros, nan, None, "nothing was proven", reason)


def prove(
    system: System,
    x: Float[Tensor, "rows ..."],
    y: Int[Tensor, " rows"],
    right: Bool[Tensor, " rows"],
    decay: Decay,
    effort: Effort,
) -> Proof:
    """Prove the hypothesis and radii, for as many inputs as it can be.

    Args:
        system: the system.
        x: inputs in float64.
        y: labels.
        right: which inputs are classified rightly; nothing is tried for the others.
        decay: what is to decay.
        effort: what is to be proven, and how hard to try.
    """
    clean = system.features(x, x)
    region = region_of(system, [system.flow], decay.least, decay.start)
    assert region is not None
    nothing = torch.full_like(decay.start, math.inf)
    allowed = torch.full_like(nothing, effort.slack / decay.kappa * (1 - 2.0**-50))
    cells = grid(system, region, False)
    at_input = Question(system, system.flow, decay.kappa, clean, y, region, allowed, nothing, cells)
    hypothesis = decide(at_input, effort.max_cells)
    decrease = (hypothesis.level * decay.kappa).masked_fill(~hypothesis.proven, math.inf)
    going = right & hypothesis.proven & (decay.level() > 0)
    search = _Search(system, x, y, clean, decay, effort)
    radius_flow, end_flow = search.radius([system.flow], region, going)
    stepped = region_of(system, system.steps, decay.least, decay.start)
    radius, end = torch.zeros_like(radius_flow), nothing
    reason = (
        "the bounds decide nothing with the cells and boxes allowed: allow more, try a smaller "
        "eps_max, or ask for a smaller kappa"
    )
    evaluation = "of the model as it is evaluated, step by step"
    if not system.steps:
        radius, end = radius_flow, end_flow
        evaluation = "of the exact flow: the steps of its integrator are not fixed, and not bounded"
    elif stepped is None:
        reason = "the integrator's steps are so long that no cube of states is known to hold them"
    else:
        radius, end = search.radius(system.steps, stepped, radius_flow > 0)
    theorem, lipschitz = search.theorem(region, going, decrease.clamp(min=0) * SAFETY)
    return Proof(
        decrease,
        radius,
        end,
        radius_flow,
        end_flow,
        theorem,
        lipschitz,
        hypothesis.suspect,
        evaluation,
        reason,
    )


@dataclass(frozen=True)
class _Search:
    """The search for radii, of one set of inputs."""

    system: System
    x: Tensor
    y: Tensor
    clean: Box
    decay: Decay
    effort: Effort

    def radius(
        self, schemes: Sequence[Scheme], region: Region, candidates: Bool[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Return the largest radius proven for steps of all schemes, and the final potential."""
        decay, effort = self.decay, self.effort
        level, after = torch.full((2, len(self.x)), math.inf, dtype=torch.float64)
        asked = [self._question(scheme, region) for scheme in schemes]

        def holds(rows: Tensor, eps: Tensor) -> Tensor:
            good, found, leapt = decide_balls(
                [question.of(rows) for question in asked],
                *balls(self.x[rows], eps, effort.clip),
                max_cells=effort.max_cells,
                max_boxes=effort.max_boxes,
            )
            level[rows[good]], after[rows[good]] = found[good], leapt[good]
            return good

        radius = bisect(holds, candidates, effort.eps_max, effort.steps)
        return radius, decay.end(level, after)

    def _question(self, scheme: Scheme, region: Region) -> Question:
        decay = self.decay
        return Question(
            self.system,
            scheme,
            decay.kappa,
            self.clean,
            self.y,
            region,
            decay.level(),
            decay.after(),
            grid(self.system, region, bool(scheme.step)),
        )

    def theorem(
        self, region: Region, candidates: Bool[Tensor, " rows"], decrease: Float[Tensor, " rows"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Return the theorem's own radius, and the Lipschitz constant on its ball."""

        def change(rows: Tensor, eps: Tensor) -> Tensor:
            features = self.system.features(*balls(self.x[rows], eps, self.effort.clip))
            clean = self.clean[0][rows], self.clean[1][rows]
            part = Region(region.least[rows], region.most[rows], region.half_width, region.sums)
            return sensitivity(self.system, self.y[rows], clean, features, part)

        def holds(rows: Tensor, eps: Tensor) -> Tensor:
            level = (decrease[rows] + change(rows, eps)) * (SAFETY / self.decay.kappa)
            return level <= self.decay.level()[rows]

        radius = bisect(holds, candidates, self.effort.eps_max, self.effort.steps)
        largest = torch.full_like(radius, self.effort.eps_max)
        ball = radius.where(radius > 0, largest)
        return radius, change(torch.arange(len(radius)), ball) / ball * SAFETY
