"""Checks of integrators, on harmonic oscillators, whose solution is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import InvalidInputError
from ...interfaces import Context, Descent, Features
from ...plugin import Entry
from .._outcome import ConformanceError, require
from .._specimen import TIMES, Specimen, specimen
from .._stand_ins import Oscillator

__all__ = ["check_integration", "check_integration_times"]

_COARSE = 0.25
"""Error over the size of the state that Euler's method with a few steps may make."""


def check_integration(entry: Entry) -> None:
    """The trajectory starts at ``z0``, follows the solution, and counts its evaluations."""
    s = specimen(entry, dtype=torch.float64)
    z0, u = s.inputs
    for times in (TIMES, TIMES[::-1], torch.tensor(TIMES, dtype=torch.float64)):
        calls = _Counted()
        try:
            trajectory = s.part(calls, z0, times, u)
        except InvalidInputError:
            if times[0] < times[-1]:
                raise
            continue  # a method may go forward only, and say so
        states = trajectory.states
        shape = (len(TIMES), *z0.shape)
        require(tuple(states.shape) == shape, entry, f"states {shape}", tuple(states.shape))
        same = torch.equal(states[0], z0)
        require(same, entry, "the first state to be z0", "another")
        found = trajectory.nfe
        require(found == calls.count, entry, f"nfe = {calls.count}, the calls made", found)
        for t, state in zip(times, states, strict=True):
            exact = calls.field.exact(float(t) - float(times[0]), z0, u)
            gap = float((state - exact).norm() / exact.norm())
            what = f"the oscillators' state at t = {float(t):g} from t = {float(times[0]):g}"
            require(gap <= _COARSE, entry, what, f"a relative error of {gap:.3g}")


def check_integration_times(entry: Entry) -> None:
    """Times that are too few, or not strictly monotone, are refused."""
    s = specimen(entry, dtype=torch.float64)
    for times in ((0.0,), (0.0, 0.0), (0.0, 1.0, 0.5), (0.0, math.nan)):
        _require_refused(s, times)


def _require_refused(s: Specimen, times: tuple[float, ...]) -> None:
    z0, u = s.inputs
    try:
        s.part(Oscillator(), z0, times, u)
    except InvalidInputError:
        return
    raise ConformanceError(
        f"{s.entry.kind}/{s.entry.name}: expected InvalidInputError for times = {times}; found none"
    )


class _Counted(torch.nn.Module):
    """Oscillators that count the evaluations of their field; a velocity and a force are one."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.whole, self.velocities, self.forces = Oscillator(), 0, 0, 0
        self.potential, self.alpha = self.field.potential, self.field.alpha

    @property
    def count(self) -> int:
        return self.whole + max(self.velocities, self.forces)

    def velocity(self, t: float | Tensor, p: Tensor, u: Features = None) -> Tensor:
        self.velocities += 1
        return self.field.velocity(t, p, u)

    def force(self, t: float | Tensor, q: Tensor, u: Features = None) -> Tensor:
        self.forces += 1
        return self.field.force(t, q, u)

    def context(self, u: Features = None) -> Context:
        return self.field.context(u)

    def descent(self, t: float | Tensor, z: Tensor, u: Features = None) -> Descent:
        self.whole += 1
        return self.field.descent(t, z, u)

    def forward(self, t: float | Tensor, z: Tensor, u: Features = None) -> Tensor:
        self.whole += 1
        value: Tensor = self.field(t, z, u)
        return value
