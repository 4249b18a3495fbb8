"""Boxes through activations that do not decrease."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .boxes import Box, in_double, ordered
from .rounding import TINY

__all__ = ["LIBRARY_ULPS", "monotone_interval", "softplus_interval"]

LIBRARY_ULPS = 16
"""How far, in units in the last place, we let torch's elementary functions be off.

Those of the libraries that torch calls (SLEEF, Intel's VML, CUDA) document 1 to 2; an activation
is made of a few of them.
"""


def monotone_interval(
    function: Callable[[Tensor], Tensor],
    lower: Float[Tensor, "*shape"],
    upper: Float[Tensor, "*shape"],
    *,
    ulps: int = LIBRARY_ULPS,
    sound: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return bounds of an elementwise function over a box: its values at both ends.

    The *exact* function must not decrease. The computed one may, by some units in the last place;
    so the two values are ordered, and in sound mode widened by that much.

    Args:
        function: acts on each entry by itself, such as ``torch.tanh``.
        lower: lower bounds.
        upper: upper bounds.
        ulps: the most that a computed value is off in float64, relative to it, in units of
            2⁻⁵²; 0 for functions such as ``torch.relu``, which are exact.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    if not sound:
        ends = function(lower), function(upper)
        return ordered(*ends) if ulps else ends
    with torch.no_grad():
        lower, upper = ordered(*map(function, in_double(lower, upper)))
        return _widened(lower, upper, float(ulps)) if ulps else (lower, upper)


def softplus_interval(
    lower: Float[Tensor, "*shape"],
    upper: Float[Tensor, "*shape"],
    *,
    beta: float = 1.0,
    threshold: float = 20.0,
    sound: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""Return bounds of torch's softplus over a box.

    It is :math:`\log(1 + e^{\beta x})/\beta` up to :math:`t = \text{threshold}/\beta` and
    :math:`x` beyond, and so drops at :math:`t`, by :math:`\log(1 + e^{-\beta t})/\beta`.

    Args:
        lower: lower bounds.
        upper: upper bounds.
        beta: positive.
        threshold: as of ``torch.nn.functional.softplus``, at least 0.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    if sound:
        lower, upper = in_double(lower, upper)
    drop = threshold / beta
    peak = drop + math.log1p(math.exp(-threshold)) / beta
    images = (F.softplus(x, beta, threshold) for x in (lower, upper))
    least, most = ordered(*images)
    # Within rounding of the drop either branch may have been taken.
    near = 4 * torch.finfo(lower.dtype).eps * drop
    least = torch.where(lower <= drop + near, least.clamp(max=drop), least)
    most = torch.where(upper >= drop - near, most.clamp(min=peak), most)
    if not sound:
        return least, most
    # The rounding of βx enters the exponential: it counts |βx|-fold where that is small.
    furthest = torch.maximum(lower.abs(), upper.abs()) * beta
    return _widened(least, most, LIBRARY_ULPS + 2 * furthest.clamp(max=1e3))


def _widened(lower: Tensor, upper: Tensor, ulps: float | Tensor) -> Box:
    """Return the box widened by a share of its bounds."""
    share = ulps * torch.finfo(torch.float64).eps
    return lower - share * lower.abs() - TINY, upper + share * upper.abs() + TINY
