"""The times that an integrator is asked for."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

import stabnet

__all__ = ["checked_times", "rounding"]

_EPSILON = sys.float_info.epsilon


def checked_times(times: Sequence[float] | Float[Tensor, " times"]) -> list[float]:
    """Return the times as numbers, after checking them.

    Reading a tensor costs one host synchronization if it is on an accelerator; plain numbers cost
    none.

    Args:
        times: at least two finite, strictly monotone times.

    Raises:
        InvalidInputError: if they are not.
    """
    if isinstance(times, Tensor) and times.ndim != 1:
        raise stabnet.InvalidInputError(
            f"times form a sequence, a tensor of one dimension; got shape {tuple(times.shape)}"
        )
    values = times.tolist() if isinstance(times, Tensor) else [float(t) for t in times]
    if len(values) < 2:
        raise stabnet.InvalidInputError(
            f"an integration needs at least two times, its start and its end; got {values}"
        )
    # Comparisons, unlike math.isfinite, also compile for times that vary between calls.
    if not all(-math.inf < t < math.inf for t in values):
        raise stabnet.InvalidInputError(f"times are finite; got {values}")
    if not (all(a < b for a, b in pairwise(values)) or all(a > b for a, b in pairwise(values))):
        raise stabnet.InvalidInputError(
            f"times are strictly increasing, or strictly decreasing; got {values}"
        )
    return values


def rounding(times: Sequence[float] | Float[Tensor, " times"]) -> float:
    """Return the unit of rounding of the numbers that the times are given in."""
    if isinstance(times, Tensor) and times.is_floating_point():
        return torch.finfo(times.dtype).eps
    return _EPSILON
