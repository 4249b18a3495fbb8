"""Explicit Runge–Kutta methods with steps of fixed size: euler, midpoint, rk4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

import stabnet
from stabnet.interfaces import Features, Integrator, RightHandSide, Trajectory

from .._checks import positive

__all__ = ["ButcherTableau", "RungeKutta", "euler", "midpoint", "rk4"]

_Terms = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class ButcherTableau:
    r"""An explicit Runge–Kutta method.

    .. math::
        k_i = F\Big(t + c_i h,\; z + h \sum_{j<i} a_{ij} k_j\Big), \qquad
        z^+ = z + h \sum_i b_i k_i, \qquad c_i = \sum_j a_{ij}

    Attributes:
        a: one row of coefficients per stage after the first.
        b: one weight per stage.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


EULER = ButcherTableau(a=(), b=(1.0,))
MIDPOINT = ButcherTableau(a=((1 / 2,),), b=(0.0, 1.0))
RK4 = ButcherTableau(a=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6))


def euler(step_size: float = 0.1) -> RungeKutta:
    """Return Euler's method, of order 1: one evaluation a step.

    Args:
        step_size: the longest step.
    """
    return RungeKutta(EULER, step_size)


def midpoint(step_size: float = 0.1) -> RungeKutta:
    """Return the explicit midpoint method, of order 2: two evaluations a step.

    Args:
        step_size: the longest step.

    References:
        Runge 1895.
    """
    return RungeKutta(MIDPOINT, step_size)


def rk4(step_size: float = 0.1) -> RungeKutta:
    """Return the classical Runge–Kutta method, of order 4: four evaluations a step.

    Args:
        step_size: the longest step.

    References:
        Kutta 1901.
    """
    return RungeKutta(RK4, step_size)


@final
class RungeKutta(Integrator):
    """An explicit Runge–Kutta method with steps of fixed size.

    Each interval between two times is cut into the smallest number of equal steps that are not
    longer than ``step_size``. With times given as numbers there is no host synchronization, and
    the method compiles and works under ``torch.func``. Times given as a tensor are read once, and
    gradients flow to them.

    Args:
        tableau: the method.
        step_size: the longest step, positive.

    Raises:
        InvalidOptionError: if ``step_size`` is not positive and finite.
    """

    def __init__(self, tableau: ButcherTableau, step_size: float) -> None:
        super().__init__()
        self.tableau = tableau
        self.step_size = positive("step_size", step_size)
        self._stages = tuple((sum(row), _terms(row)) for row in tableau.a)
        self._weights = _terms(tableau.b)

    def forward(
        self,
        vector_field: RightHandSide,
        z0: Float[Tensor, "batch ..."],
        times: Sequence[float] | Float[Tensor, " times"],
        u: Features = None,
    ) -> Trajectory:
        """Integrate from ``times[0]`` through all later times.

        Args:
            vector_field: the right-hand side ``F(t, z, u)``.
            z0: state at ``times[0]``.
            times: at least two finite, strictly monotone times; decreasing ones integrate
                backward.
            u: features, handed to every evaluation.

        Returns:
            The states at all ``times`` and the number of evaluations.

        Raises:
            InvalidInputError: if ``times`` are not as described.
        """
        z = z0
        states = [z0]
        steps = 0
        for interval in stabnet.time_steps(times, self.step_size):
            for t, h in interval:
                z = self._step(vector_field, t, z, h, u)
            states.append(z)
            steps += len(interval)
        return Trajectory(torch.stack(states), nfe=steps * len(self.tableau.b))

    def _step(
        self,
        vector_field: RightHandSide,
        t: float | Tensor,
        z: Float[Tensor, "batch ..."],
        h: float | Tensor,
        u: Features,
    ) -> Float[Tensor, "batch ..."]:
        """Take one step of size ``h`` from ``z`` at ``t``."""
        slopes = [vector_field(t, z, u)]
        for node, terms in self._stages:
            slopes.append(vector_field(t + node * h, _moved(z, h, terms, slopes), u))
        return _moved(z, h, self._weights, slopes)


def _terms(weights: tuple[float, ...]) -> _Terms:
    """Return the weights that are not zero, each with the number of its slope."""
    return tuple((i, weight) for i, weight in enumerate(weights) if weight)


def _moved(z: Tensor, h: float | Tensor, terms: _Terms, slopes: list[Tensor]) -> Tensor:
    """Return ``z + h Σ wᵢ kᵢ``."""
    if isinstance(h, Tensor):  # of times that may want a gradient
        for i, weight in terms:
            z = z + (h * weight) * slopes[i]
    else:  # one kernel per slope, and no scaled copy of it
        for i, weight in terms:
            z = torch.add(z, slopes[i], alpha=h * weight)
    return z
