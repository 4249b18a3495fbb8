"""Outward-rounded pieces: weighted sums, the potential of margins, the weights of a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet.bounds import gamma, round_down, round_up

__all__ = ["Box", "enclosed", "potential_interval", "softmax_interval", "weighted", "widened"]

Box: TypeAlias = tuple[Tensor, Tensor]
"""Lower and upper bounds, tensors of one shape, in float64."""

_TINY = 2.0**-1022
_EPS = 2.0**-52


def widened(lower: Tensor, upper: Tensor, ulps: float | Tensor) -> Box:
    """Return a box widened by a share of its bounds, in units of 2⁻⁵²."""
    return lower - ulps * _EPS * lower.abs() - _TINY, upper + ulps * _EPS * upper.abs() + _TINY


def enclosed(value: Fraction | float) -> tuple[float, float]:
    """Return floats around an exact number: twice the number itself, where it is a float."""
    if Fraction(float(value)) == value:
        return float(value), float(value)
    near = torch.tensor([float(value)], dtype=torch.float64)
    return float(round_down(near)), float(round_up(near))


def weighted(weights: Sequence[Fraction], boxes: Sequence[Box]) -> Box:
    r"""Return bounds of :math:`\sum_j w_j b_j` for :math:`b_j` in boxes of one shape.

    Args:
        weights: exact numbers, of either sign.
        boxes: as many boxes, finite.
    """
    lower = upper = size = torch.zeros_like(boxes[0][0])
    for weight, (least, most) in zip(map(float, weights), boxes, strict=True):
        ends = (least, most) if weight >= 0 else (most, least)
        lower, upper = lower + weight * ends[0], upper + weight * ends[1]
        size = size + abs(weight) * torch.maximum(least.abs(), most.abs())
    # Weights and products are rounded once, sums once per term; twice that covers `size` itself.
    error = 2 * gamma(len(boxes) + 2) * size + 4 * len(boxes) * _TINY
    return round_down(lower - error), round_up(upper + error)


def potential_interval(
    lower: Float[Tensor, "*batch margins"], upper: Float[Tensor, "*batch margins"]
) -> Box:
    r"""Return bounds of :math:`V = \log(1 + \sum_k e^{m_k})` over a box of margins.

    It increases in every margin :math:`m_k = z_k - z_y`. To be accurate where it is small it is
    computed as ``logaddexp(0, logsumexp(m))``, whose inner error counts relative to ``V``.
    """
    ends = []
    for m in (lower, upper):
        inner = m.logsumexp(-1)
        ends.append((torch.logaddexp(inner, torch.zeros_like(inner)), 64 + 4 * m.abs().amax(-1)))
    (least, down), (most, up) = ends
    return widened(least, most, torch.maximum(down, up))


def softmax_interval(
    lower: Float[Tensor, "*batch margins"], upper: Float[Tensor, "*batch margins"]
) -> Box:
    r"""Return bounds of :math:`q_k = e^{m_k} / (1 + \sum_j e^{m_j})` over a box of margins.

    It increases in its own margin, and decreases in all others.
    """
    count = lower.shape[-1]
    ends = []
    for own, other in ((lower, upper), (upper, lower)):
        weights = []
        for k in range(count):
            rest = torch.ones_like(own[..., k])
            for j in range(count):
                rest = rest + other[..., j].exp() if j != k else rest
            weights.append(1 / (1 + (-own[..., k]).exp() * rest))
        ends.append(torch.stack(weights, -1))
    return widened(ends[0], ends[1], 64 * count)
