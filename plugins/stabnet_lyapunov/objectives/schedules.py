"""Schedules of Lyapunov training: of the rate that is asked for, and of the field's gain."""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.values import number, whole

__all__ = ["GainSchedule", "RateSchedule", "paper_rate", "released_rate"]

_CORNER = 15.0
"""Half the side of the released cube."""


def paper_rate() -> float:
    """Return the paper's rate of convergence of flows, κ = 5."""
    return 5.0


def released_rate(classes: int) -> float:
    r"""Return the released rate of convergence, :math:`\kappa = \log\sqrt{225\,C}`."""
    return 0.5 * math.log(_CORNER**2 * classes)


@final
class RateSchedule(nn.Module):
    r"""A rate :math:`\kappa` that moves linearly over training steps, then stays.

    Steps are counted in a buffer, so that a resumed training goes on where it was, and without a
    host synchronization. In eval mode the rate is the final one.

    Args:
        start: the rate at the first step, positive.
        steps: steps until the final rate; 0 for the final rate from the start.

    Attributes:
        step: training steps so far.

    Raises:
        InvalidOptionError: for options out of range.
    """

    step: Tensor

    def __init__(self, start: float | None, steps: int) -> None:
        super().__init__()
        if start is not None:
            number("kappa_start", start, above=0)
        whole("kappa_steps", steps, 0)
        if (start is None) != (steps == 0):
            raise InvalidOptionError(
                f"kappa_start={start!r} and kappa_steps={steps} go together: give both for a "
                "schedule, or neither for a constant rate"
            )
        self.start, self.steps = start, steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, final_rate: float) -> float | Float[Tensor, ""]:
        """Return the rate of this step; in training mode, count it."""
        if self.start is None or not self.training:
            return final_rate
        share = (self.step / self.steps).clamp(max=1.0)
        self.step += 1
        return self.start + share * (final_rate - self.start)


@final
class GainSchedule(nn.Module):
    """The released schedule of the gain of a data-controlled field.

    In its first phase the gain shrinks, × 0.9999 a step, while fewer than 70 % of the samples
    violate the condition; afterwards it grows, × 1.0001 a step, while more than 10 % do.

    Args:
        switch: training steps of the first phase; 60 epochs in the release.

    Attributes:
        step: training steps so far.

    Raises:
        InvalidOptionError: if ``switch`` is not a whole number of at least 0.

    References:
        [LyaNet] released code.
    """

    step: Tensor

    def __init__(self, switch: int) -> None:
        super().__init__()
        self.switch = whole("gain_switch", switch, 0)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, gain: Float[Tensor, ""], violations: Float[Tensor, ""]) -> None:
        """Change a gain in place, without a host synchronization, and count the step.

        Args:
            gain: the buffer.
            violations: share of violating samples at this step.
        """
        shrinks = (self.step < self.switch) & (violations < 0.7)
        grows = (self.step >= self.switch) & (violations > 0.1)
        gain.mul_(torch.where(shrinks, 0.9999, torch.where(grows, 1.0001, 1.0)))
        self.step += 1
