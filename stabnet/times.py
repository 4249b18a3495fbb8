"""The times that an integrator is asked for, and the steps between them."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import InvalidInputError

__all__ = ["checked_times", "time_steps"]

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
        raise InvalidInputError(
            f"times form a sequence, a tensor of one dimension; got shape {tuple(times.shape)}"
        )
    values = times.tolist() if isinstance(times, Tensor) else [float(t) for t in times]
    if len(values) < 2:
        raise InvalidInputError(
            f"an integration needs at least two times, its start and its end; got {values}"
        )
    # Comparisons, unlike math.isfinite, also compile for times that vary between calls.
    if not all(-math.inf < t < math.inf for t in values):
        raise InvalidInputError(f"times are finite; got {values}")
    if not (all(a < b for a, b in pairwise(values)) or all(a > b for a, b in pairwise(values))):
        raise InvalidInputError(
            f"times are strictly increasing, or strictly decreasing; got {values}"
        )
    return values


def time_steps(
    times: Sequence[float] | Float[Tensor, " times"], step_size: float
) -> list[list[tuple[float | Tensor, float | Tensor]]]:
    """Return the steps of a method with fixed steps, for each interval between two times.

    An interval is cut into the smallest number of equal steps that are not longer than
    ``step_size``. Its length is known up to the rounding of its ends, which is forgiven: from 0.3
    to 0.4 is one step of 0.1, although it computes as a little more.

    Args:
        times: at least two finite, strictly monotone times. Those of a tensor are read once, and
            gradients flow to them through the steps.
        step_size: the longest step, positive.

    Returns:
        For each interval the pairs ``(t, h)`` of where a step starts and how long it is; ``h`` is
        negative where times decrease.

    Raises:
        InvalidInputError: if the times are not as described.
    """
    values = checked_times(times)
    knots = times if isinstance(times, Tensor) else values
    eps = _EPSILON
    if isinstance(times, Tensor) and times.is_floating_point():
        eps = torch.finfo(times.dtype).eps
    intervals = []
    for i, (start, end) in enumerate(pairwise(values)):
        slack = 2 * eps * max(abs(start), abs(end))
        count = max(1, math.ceil((abs(end - start) - slack) / step_size))
        h = (knots[i + 1] - knots[i]) / count
        intervals.append([(knots[i] + k * h, h) for k in range(count)])
    return intervals
