"""One step of the system: of the flow itself, or of the Runge–Kutta method that computes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

__all__ = ["Scheme", "exact_flow", "runge_kutta"]


@dataclass(frozen=True)
class Scheme:
    r"""What one step does to a system :math:`\dot z = a (s(z) - z)`, in exact numbers.

    With :math:`x = ah`, an explicit Runge–Kutta method with tableau :math:`(A, b)` and step
    :math:`h` takes such a system to

    .. math:: z_i = \Big(1 - \sum_{j<i} G_{ij}\Big) z + \sum_{j<i} G_{ij}\, s(z_j), \qquad
              z^+ = z + x \sum_j \beta_j (s(z_j) - z),

    where :math:`G = (I + xA)^{-1} xA` and :math:`\beta^\top = b^\top (I + xA)^{-1}` are numbers:
    the method's own average of targets. This is how one step is bounded without counting its start
    twice, and where its invariant cube comes from. A step of length 0 stands for the flow itself,
    whose rate of change is :math:`a (s(z) - z)`: that is :math:`\beta = (1)` and no stages.

    Attributes:
        rate: :math:`a > 0`.
        step: :math:`h \ge 0`.
        stages: the rows :math:`G_{i\cdot}` of the stages after the first.
        slope: :math:`\beta`.
    """

    rate: Fraction
    step: Fraction
    stages: tuple[tuple[Fraction, ...], ...]
    slope: tuple[Fraction, ...]

    @property
    def weights(self) -> tuple[Fraction, ...]:
        r"""The weights :math:`c = x\beta` of the targets in :math:`z^+`."""
        return tuple(self.rate * self.step * beta for beta in self.slope)

    @property
    def kept(self) -> Fraction:
        r"""The weight :math:`R = 1 - \sum_j c_j` of the start in :math:`z^+`; 1 for the flow."""
        return 1 - sum(self.weights, Fraction(0))

    def half_width(self, start: Fraction, corner: Fraction) -> Fraction | None:
        r"""Return the half width of a cube that no step leaves; ``None`` if there is none.

        Targets lie in the cube of half width ``corner``, so a step from the cube of half width
        :math:`w` ends in the one of :math:`|R| w + \sum_j |c_j| \mathrm{corner}`. For the flow, and
        for every method whose weights are none of them negative, that is the cube of the corners.

        Args:
            start: the largest entry of the initial state, in absolute value.
            corner: half width of the cube of the targets.
        """
        if self.step == 0:
            return max(start, corner)
        if abs(self.kept) >= 1:
            return None
        total = sum(map(abs, self.weights), Fraction(0))
        return max(start, corner * total / (1 - abs(self.kept)))

    def decay(self, kappa: float) -> tuple[float, float]:
        r"""Return bounds of :math:`\kappa_h = (1 - e^{-\kappa h})/h`, which is κ for the flow."""
        if self.step == 0:
            return kappa, kappa
        h = float(self.step)
        value = -math.expm1(-kappa * h) / h
        # Two roundings and one elementary function; the rounding of κh counts at most once.
        return value * (1 - 2.0**-48), value * (1 + 2.0**-48)


def exact_flow(rate: Fraction) -> Scheme:
    """Return the flow itself."""
    return Scheme(rate, Fraction(0), (), (Fraction(1),))


def runge_kutta(
    a: Sequence[Sequence[float]], b: Sequence[float], rate: Fraction, step: Fraction
) -> Scheme:
    """Return one step of an explicit Runge–Kutta method.

    Args:
        a: the tableau's coefficients, one row per stage after the first.
        b: its weights, one per stage.
        rate: ``a`` of the system.
        step: ``h``.
    """
    x = rate * step
    rows: list[list[Fraction]] = [[Fraction(0)] * len(b)]
    for row in a:
        # z_i = z + x Σ A_ij (s_j − z_j): what each earlier stage z_j holds of the targets goes in.
        weights = [Fraction(0)] * len(b)
        for j, coefficient in enumerate(map(Fraction, row)):
            weights[j] += x * coefficient
            weights = [w - x * coefficient * g for w, g in zip(weights, rows[j], strict=True)]
        rows.append(weights)
    slope = [Fraction(0)] * len(b)
    for i, weight in enumerate(map(Fraction, b)):
        slope[i] += weight
        slope = [s - weight * g for s, g in zip(slope, rows[i], strict=True)]
    stages = tuple(tuple(row[:i]) for i, row in enumerate(rows) if i)
    return Scheme(rate, step, stages, tuple(slope))
