r"""Theorem 3 of LyaNet: what a decrease at the clean input is worth under perturbations.

Let a region :math:`R` of states hold every trajectory of every input :math:`x'` in a ball, let
:math:`0 < v_{\min} \le V_0 = V(z(0))`, and let the initial state depend on no input.

**Flow.** Suppose :math:`\dot V + \kappa V \le \kappa \ell` for all :math:`x'` in the ball and all
states of :math:`R` with :math:`v_{\min} \le V \le V_0`, and :math:`0 \le \ell < V_0`. Then

.. math:: V(T) \le \max\big(v_{\min},\; \delta + \ell (1 - e^{-\kappa T})\big),
          \qquad \delta = e^{-\kappa T} V_0 .

*Proof.* Where :math:`V = V_0`, :math:`\dot V \le \kappa(\ell - V_0) < 0`: no trajectory leaves
:math:`V \le V_0`. Let :math:`\tau` be the last time at which :math:`V \le v_{\min}`. If there is
none, Grönwall's inequality gives :math:`V(T) \le \delta + \ell(1 - e^{-\kappa T})`. If
:math:`\tau = T` then :math:`V(T) \le v_{\min}`. Else :math:`V(\tau) = v_{\min}`, and on
:math:`[\tau, T]` the inequality holds, so with :math:`\theta = e^{-\kappa(T - \tau)}` it gives
:math:`V(T) \le \theta v_{\min} + (1 - \theta)\ell`. If :math:`\ell \le v_{\min}` that is at most
:math:`v_{\min}`; else it increases in :math:`T - \tau \le T`, and is at most
:math:`e^{-\kappa T} v_{\min} + (1 - e^{-\kappa T}) \ell \le \delta + \ell (1 - e^{-\kappa T})`. ∎

**Steps.** Suppose every step from a state with :math:`v_{\min} \le V \le V_0` ends at
:math:`V^+ \le e^{-\kappa h} V + (1 - e^{-\kappa h})\ell`, and one from a state with
:math:`V < v_{\min}` at :math:`V^+ \le J \le V_0`. Then :math:`V_N \le \max(v_{\min}, J,
\delta + \ell(1 - e^{-\kappa T}))`: the same proof, with the last step that starts below
:math:`v_{\min}`, after which :math:`V \le J`. Steps of several lengths may take turns, for one
:math:`\ell`. Here nothing is said of how well the steps follow the flow: they are what is bounded.

If the bound is below :math:`\log 2`, then :math:`p_y = e^{-V} > 1/2`, and the class is :math:`y`.

**The theorem's own quantities.** With :math:`D(\epsilon) \ge \sup |\nabla V^\top (f(z, x') - f(z,
x))|` over the region and the ball, :math:`L = D(\epsilon)/\epsilon` is a Lipschitz constant as the
theorem needs it, on this ball, and a decrease :math:`\dot V + \kappa V \le s` at the clean input
gives :math:`\kappa\ell = s + D(\epsilon)`. Along the segment between two inputs' :math:`r`, the
derivative of :math:`\nabla V^\top p` is the covariance of :math:`\nabla V` and :math:`\Delta r`
under :math:`p`, so

.. math:: |\nabla V^\top (f' - f)| \le 2\,a\,\mathrm{corner} \cdot
          \min(\tfrac14, 1 - p_y) \cdot 2 (1 - q_y) \cdot (\max_k \Delta r_k - \min_k \Delta r_k),

since a variable of range :math:`\rho` has a variance of at most :math:`\rho^2/4`, and of at most
:math:`\rho^2 (1 - p_y)`, its mean square distance from its value at :math:`y`; and since
:math:`\nabla V = q - e_y` has entries in :math:`[q_y - 1, 1 - q_y]`. The region's
:math:`v_{\min} > 0` matters: the simplex field never reaches a corner, so that near it the decrease
fails.

References:
    [LyaNet] Theorem 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet.bounds import gamma, round_up

from .arithmetic import potential_interval, widened
from .cells import choice_gaps, hidden_interval, within_cube
from .cover import Region, grid
from .system import System

__all__ = ["SAFETY", "Decay", "sensitivity"]

_LOG2 = math.log(2.0) * (1 - 2.0**-50)
_LEAST = 2.0**-500
"""What has decayed below this counts as this, so that nothing underflows."""

SAFETY = 1 + 2.0**-40
"""More than a few operations on plain numbers can round away."""


@dataclass(frozen=True)
class Decay:
    r"""What a potential decays to at a rate :math:`\kappa` from a value at the start.

    Attributes:
        kappa: :math:`\kappa`.
        span: :math:`T`.
        start: upper bound of :math:`V_0`.
        least: :math:`v_{\min}`.
    """

    kappa: float
    span: float
    start: Float[Tensor, " rows"]
    least: Float[Tensor, " rows"]

    def of(self, rows: Tensor) -> Decay:
        """Return what is to decay in some of the rows."""
        return replace(self, start=self.start[rows], least=self.least[rows])

    @property
    def target(self) -> Float[Tensor, " rows"]:
        r"""Upper bound of :math:`\delta = e^{-\kappa T} V_0`."""
        return (math.exp(-self.kappa * self.span) * self.start * SAFETY).clamp(min=_LEAST)

    def level(self) -> Float[Tensor, " rows"]:
        r"""Return the largest :math:`\ell` that keeps the class, less a little; maybe negative."""
        lost = -math.expm1(-self.kappa * self.span)
        return torch.minimum((_LOG2 - self.target) / lost, self.start) * (1 - 2.0**-30)

    def after(self) -> Float[Tensor, " rows"]:
        r"""Return the largest :math:`J` that keeps the class, less a little."""
        return self.start.clamp(max=_LOG2) * (1 - 2.0**-30)

    def end(
        self, level: Float[Tensor, " rows"], after: Float[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        r"""Return the upper bound of :math:`V(T)`, rounded upwards."""
        lost = -math.expm1(-self.kappa * self.span) * SAFETY
        decayed = (self.target + level.clamp(min=0) * lost) * SAFETY
        return torch.maximum(torch.maximum(decayed, after), self.least)


def sensitivity(
    system: System,
    y: Int[Tensor, " rows"],
    clean: tuple[Float[Tensor, "rows h h"], Float[Tensor, "rows h h"]],
    features: tuple[Float[Tensor, "rows h h"], Float[Tensor, "rows h h"]],
    region: Region,
) -> Float[Tensor, " rows"]:
    r"""Return an upper bound of :math:`|\nabla V^\top (f(z, x') - f(z, x))|` over the region.

    Args:
        system: the system.
        y: labels.
        clean: bounds of the matrices of the inputs themselves.
        features: bounds of the matrices of all inputs in the balls.
        region: the region.
    """
    first = grid(system, region, False)
    cells = (first.lower, first.upper)
    hidden = hidden_interval(system, y, cells)
    size = torch.maximum(hidden[0].abs(), hidden[1].abs())
    moved = round_up(torch.maximum(features[1] - clean[0], clean[1] - features[0]))
    steepness, jump = _continuity(system.activation)
    weight = system.gaps[0].abs()
    error = 1 + 8 * gamma(weight.shape[1] + 4)
    mixed = (size @ moved.mT) * (error * steepness) + jump
    spread = (mixed @ weight.T).amax(-1) * (error * error)
    _, gaps = choice_gaps(system, features, y, cells)
    others = gaps[..., :-1, -1].exp().sum(-1)
    doubt = (others / (1 + others)).where(others < math.inf, 1.0)  # 1 − p_y
    least, most = potential_interval(cells[0][..., :-1], cells[1][..., :-1])
    wrong = -torch.expm1(-torch.minimum(most, region.most[:, None]))  # 1 − q_y
    factor = 4 * float(system.rate) * float(system.corner)
    change = widened(spread, factor * doubt.clamp(max=0.25) * wrong * spread, 256)[1]
    inside = within_cube(cells, region.half_width)
    inside &= (most >= region.least[:, None]) & (least <= region.most[:, None])
    # Nothing known of a matrix is nothing known of the change.
    return change.nan_to_num(math.inf).masked_fill(~inside, 0.0).amax(1)


def _continuity(activation: nn.Module) -> tuple[float, float]:
    """Return ``(λ, j)`` with ``|P(a) − P(b)| ≤ λ |a − b| + j``."""
    if isinstance(activation, nn.PReLU):
        return max(1.0, float(activation.weight.detach().abs().max())), 0.0
    if isinstance(activation, nn.Softplus):
        # It drops where torch makes it the identity.
        drop = math.log1p(math.exp(-activation.threshold)) / activation.beta
        return 1.0, drop * SAFETY
    return 1.0, 0.0
