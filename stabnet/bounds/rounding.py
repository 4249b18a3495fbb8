"""Outward rounding in float64."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["TINY", "gamma", "round_down", "round_up"]

UNIT_ROUNDOFF = 2.0**-53
TINY = 2.0**-1022
"""The smallest normal number, more than a product can lose to underflow."""


def gamma(terms: int) -> float:
    r"""Return an upper bound of :math:`\gamma_n = nu/(1 - nu)`, with :math:`u = 2^{-53}`.

    A sum of ``n`` products computed in float64, in any order, with or without fused
    multiply–adds, is wrong by at most :math:`\gamma_n` times the sum of the absolute products,
    apart from underflow.

    Args:
        terms: ``n``, below :math:`2^{52}`.

    References:
        Higham: "Accuracy and stability of numerical algorithms", 2002, lemma 3.1 and (3.5).
    """
    share = terms * UNIT_ROUNDOFF
    return math.nextafter(share / (1 - share), math.inf) * (1 + 4 * UNIT_ROUNDOFF)


def round_down(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the next smaller numbers: at most the exact results that ``x`` was rounded from.

    For the result of one addition, subtraction, multiplication, division or square root.
    """
    return torch.nextafter(x, x.new_tensor(-math.inf))


def round_up(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the next larger numbers: at least the exact results that ``x`` was rounded from.

    For the result of one addition, subtraction, multiplication, division or square root.
    """
    return torch.nextafter(x, x.new_tensor(math.inf))
