"""What one step does to the potential, bounded over boxes of states and of inputs at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stabnet.bounds import (
    bilinear_interval,
    interval,
    product_interval,
    round_down,
    round_up,
)

from .arithmetic import Box, enclosed, potential_interval, softmax_interval, weighted, widened
from .scheme import Scheme
from .system import System

__all__ = ["CellBounds", "bound_cells", "choice_gaps", "hidden_interval", "within_cube"]


@dataclass(frozen=True)
class CellBounds:
    r"""Bounds over one box of states each, for all inputs in a box.

    Attributes:
        least: lower bound of the potential :math:`V(z)` there.
        most: upper bound of it.
        after: upper bound of :math:`V(z^+)` one step later.
        level: upper bound of the least :math:`\ell` such that the step takes :math:`V` to at most
            :math:`e^{-\kappa h} V + (1 - e^{-\kappa h}) \ell`; for the flow, of
            :math:`(\dot V + \kappa V)/\kappa`.
    """

    least: Float[Tensor, "rows cells"]
    most: Float[Tensor, "rows cells"]
    after: Float[Tensor, "rows cells"]
    level: Float[Tensor, "rows cells"]


def bound_cells(
    system: System,
    scheme: Scheme,
    kappa: float,
    features: tuple[Float[Tensor, "rows h h"], Float[Tensor, "rows h h"]],
    y: Int[Tensor, " rows"],
    cells: tuple[Float[Tensor, "rows cells n"], Float[Tensor, "rows cells n"]],
) -> CellBounds:
    r"""Bound one step from every cell.

    Margins move like states: :math:`\dot m_k = a(\tau_k - m_k)` with the targets
    :math:`\tau_k = 2\,\mathrm{corner}\,(p_k - p_y)`. The step ends at margins :math:`m^+`, and
    :math:`\varphi = (m^+ - m)/h` is its mean slope (of the flow, its velocity). Since :math:`V` is
    a convex function of the margins with the gradient :math:`q`, the weights of their softmax,

    .. math:: V(m^+) \le V(m) + h\, q(m^+)^\top \varphi,
              \qquad \ell \le \frac{q(m^+)^\top \varphi}{\kappa_h} + V(m),
              \qquad \kappa_h = \frac{1 - e^{-\kappa h}}{h},

    an equality for the flow. For long steps, :math:`V(m^+) - e^{-\kappa h} V(m)` bounded as it is
    written can be the smaller one; the least of both is taken.

    Args:
        system: the system.
        scheme: the step.
        kappa: the rate of decay, positive.
        features: bounds of the matrices that the inputs are mapped to.
        y: labels.
        cells: bounds of margins and sum.
    """
    margins = (cells[0][..., :-1], cells[1][..., :-1])
    least, most = potential_interval(*margins)
    targets = [target_interval(system, features, y, cells)]
    for row in scheme.stages:
        stage = _stage(system, row, cells, targets)
        targets.append(target_interval(system, features, y, stage))
    total = sum(scheme.slope, Fraction(0))
    slopes = weighted([*scheme.slope, -total], [*targets, margins])
    end = margins
    if scheme.step:
        end = weighted([*scheme.weights, scheme.kept], [*targets, margins])
    q = softmax_interval(*end)
    change = round_up(torch.maximum(q[0] * slopes[1], q[1] * slopes[1]))
    rise = change[..., 0]
    for k in range(1, change.shape[-1]):
        rise = round_up(rise + change[..., k])
    level = _level(scheme, kappa, rise, most)
    after = most
    if scheme.step:
        after = potential_interval(*end)[1]
        level = torch.minimum(level, _direct_level(scheme, kappa, least, after))
    return CellBounds(least, most, after, level)


def _level(scheme: Scheme, kappa: float, rise: Tensor, most: Tensor) -> Tensor:
    """Return the bound of the level from ``q·φ / a`` and ``V``."""
    shares = [a / k for a in enclosed(scheme.rate) for k in scheme.decay(kappa)]
    scaled = torch.maximum(rise * min(shares), rise * max(shares))
    return round_up(widened(scaled, scaled, 4)[1] + most)


def _direct_level(scheme: Scheme, kappa: float, least: Tensor, after: Tensor) -> Tensor:
    """Return ``(V⁺ − e^{−κh} V) / (1 − e^{−κh})``, rounded upwards."""
    h = float(scheme.step)
    lost = (
        scheme.decay(kappa)[0] * h * (1 - 2.0**-50),
        scheme.decay(kappa)[1] * h * (1 + 2.0**-50),
    )
    gain = round_up(after - round_down(least * (1 - lost[1]) * (1 - 2.0**-50)))
    return round_up(torch.maximum(gain / lost[0], gain / lost[1]))


def _stage(
    system: System, row: Sequence[Fraction], cells: Box, targets: Sequence[Box]
) -> tuple[Tensor, Tensor]:
    """Return bounds of margins and sum at a stage."""
    kept = 1 - sum(row, Fraction(0))
    margins = weighted([*row, kept], [*targets, (cells[0][..., :-1], cells[1][..., :-1])])
    ends = enclosed(system.sums()[1])
    goal = [torch.full_like(cells[0][..., -1:], end) for end in ends]
    sums = weighted(
        [1 - kept, kept], [(goal[0], goal[1]), (cells[0][..., -1:], cells[1][..., -1:])]
    )
    return torch.cat([margins[0], sums[0]], -1), torch.cat([margins[1], sums[1]], -1)


def target_interval(
    system: System, features: Box, y: Int[Tensor, " rows"], cells: Box
) -> tuple[Float[Tensor, "rows cells margins"], Float[Tensor, "rows cells margins"]]:
    r"""Return bounds of the margins' targets :math:`\tau_k = 2\,\mathrm{corner}\,(p_k - p_y)`.

    They are computed from gaps between the entries of :math:`r`, by

    .. math:: p_k - p_y = s_k \tanh\tfrac{r_k - r_y}{2}, \qquad
              s_k = p_k + p_y = \Big(1 + \sum_{j \ne k, y}
              \frac{1}{e^{r_k - r_j} + e^{r_y - r_j}}\Big)^{-1},

    where :math:`s_k` is 1 for two classes, and increases in every gap.
    """
    lower, upper = choice_gaps(system, features, y, cells)
    n = system.classes
    least, most = [], []
    for k in range(n - 1):
        turn = widened((lower[..., k, -1] / 2).tanh(), (upper[..., k, -1] / 2).tanh(), 16)
        both = _shared(lower, k, n), _shared(upper, k, n)
        both = widened(*both, 64 * n) if n > 2 else both
        least.append(torch.minimum(both[0] * turn[0], both[1] * turn[0]))
        most.append(torch.maximum(both[0] * turn[1], both[1] * turn[1]))
    size = enclosed(2 * system.corner)
    # Targets of either sign: their absolute value is rounded up with the corner's.
    down, up = (torch.stack(t, -1) for t in (least, most))
    down = torch.minimum(down * size[0], down * size[1])
    up = torch.maximum(up * size[0], up * size[1])
    return widened(down, up, 4)


def _shared(gaps: Float[Tensor, "rows cells n n"], k: int, n: int) -> Float[Tensor, "rows cells"]:
    total = torch.ones_like(gaps[..., 0, 0])
    for j in range(n - 1):
        if j != k:
            total = total + 1 / (gaps[..., k, j].exp() + gaps[..., -1, j].exp())
    return 1 / total


def choice_gaps(
    system: System, features: Box, y: Int[Tensor, " rows"], cells: Box
) -> tuple[Float[Tensor, "rows cells n n"], Float[Tensor, "rows cells n n"]]:
    """Return bounds of ``r_i − r_j``, the label being last and the others in ascending order."""
    hidden = hidden_interval(system, y, cells)
    mixed = product_interval(_matmul, hidden, features, terms=len(system.first_bias), sound=True)
    mixed = interval(system.activation, *mixed, sound=True)
    weight, bias = system.gaps
    # One product for the bias is counted there; and every difference was rounded itself.
    lower, upper = bilinear_interval(
        F.linear, *mixed, weight, bias, terms=weight.shape[1] + 2, sound=True
    )
    n = system.classes
    full = [torch.zeros(*lower.shape[:-1], n, n, dtype=lower.dtype) for _ in range(2)]
    for p, (i, j) in enumerate(combinations(range(n), 2)):
        full[0][..., i, j], full[1][..., i, j] = lower[..., p], upper[..., p]
        full[0][..., j, i], full[1][..., j, i] = -upper[..., p], -lower[..., p]
    order = system.order[y]
    rows = torch.arange(len(y))[:, None, None]
    index = (rows, slice(None), order[:, :, None], order[:, None, :])
    return full[0][index].movedim(-1, 1), full[1][index].movedim(-1, 1)


def hidden_interval(
    system: System, y: Int[Tensor, " rows"], cells: Box
) -> tuple[Float[Tensor, "rows cells h"], Float[Tensor, "rows cells h"]]:
    """Return bounds of the activated first layer."""
    first = bilinear_interval(
        _matmul,
        *cells,
        system.first[y],
        system.first_bias,
        terms=cells[0].shape[-1] + 2,
        sound=True,
    )
    return interval(system.activation, *first, sound=True)


def _matmul(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = x @ weight.mT
    return out if bias is None else out + bias


def within_cube(
    cells: tuple[Float[Tensor, "rows cells n"], Float[Tensor, "rows cells n"]], half_width: float
) -> Bool[Tensor, "rows cells"]:
    """Return which cells may hold a state of the cube of that half width."""
    n = cells[0].shape[-1]
    parts = [(cells[0][..., k], cells[1][..., k]) for k in range(n)]
    mean = Fraction(1, n)
    inside = torch.ones_like(parts[0][0], dtype=torch.bool)
    for k in range(n):
        weights = [-mean] * (n - 1) + [mean]
        if k < n - 1:
            weights[k] += 1
        lower, upper = weighted(weights, parts)
        inside &= ~(lower > half_width) & ~(upper < -half_width)
    return inside
