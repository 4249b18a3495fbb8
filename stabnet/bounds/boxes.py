"""Boxes: pairs of lower and upper bounds."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InvalidInputError, InvalidOptionError, StabnetError
from .rounding import round_down, round_up

__all__ = [
    "Box",
    "NoBoundError",
    "add_interval",
    "ball",
    "check_box",
    "in_double",
    "known_where",
    "ordered",
]

Box: TypeAlias = tuple[Tensor, Tensor]
"""Lower and upper bounds, tensors of one shape."""


class NoBoundError(StabnetError, TypeError):
    """A module through which no bound is known, as it stands."""


def is_traced() -> bool:
    """Return whether tensors have no values to look at: under compile, export or ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def check_box(
    lower: Float[Tensor, "..."], upper: Float[Tensor, "..."], *, finite: bool = True
) -> None:
    """Raise unless two tensors are the bounds of a box.

    Their values are looked at once, at the cost of one host synchronization, and not where tensors
    are traced.

    Args:
        lower: lower bounds.
        upper: upper bounds, of the same shape and dtype.
        finite: refuse infinite bounds too.

    Raises:
        InvalidInputError: says what is wrong with them.
    """
    if lower.shape != upper.shape or lower.dtype != upper.dtype:
        raise InvalidInputError(
            f"lower is {lower.dtype} of shape {tuple(lower.shape)} and upper {upper.dtype} of "
            f"shape {tuple(upper.shape)}; the bounds of a box have one shape and dtype"
        )
    if not lower.is_floating_point():
        raise InvalidInputError(f"bounds have dtype {lower.dtype}; expected floating point")
    if is_traced():
        return
    with torch.no_grad():
        right = lower <= upper
        if finite:
            right = right & lower.isfinite() & upper.isfinite()
        if bool(right.all()):
            return
        nan, crossed = int((lower.isnan() | upper.isnan()).sum()), int((lower > upper).sum())
        infinite = int((lower.isinf() | upper.isinf()).sum()) if finite else 0
    raise InvalidInputError(
        f"of {lower.numel()} intervals, {nan} have a NaN bound, {infinite} an infinite one, and "
        f"{crossed} have lower > upper; expected {'finite ' if finite else ''}bounds with "
        "lower <= upper"
    )


def in_double(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors in float64, without gradients."""
    return tuple(t.detach().to(torch.float64) for t in tensors)


def ordered(a: Tensor, b: Tensor) -> Box:
    """Return the smaller and the larger of each pair."""
    return torch.minimum(a, b), torch.maximum(a, b)


def known_where(known: Tensor, lower: Tensor, upper: Tensor) -> Box:
    """Return the box, and the whole line for entries of which nothing is known."""
    return lower.where(known, -math.inf), upper.where(known, math.inf)


def add_interval(
    a: tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]],
    b: tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]],
    *,
    sound: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return bounds of the sums of what lies in two boxes.

    Args:
        a: lower and upper bounds.
        b: lower and upper bounds, of the same shape.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    if not sound:
        return a[0] + b[0], a[1] + b[1]
    a_lower, a_upper, b_lower, b_upper = in_double(*a, *b)
    return round_down(a_lower + b_lower), round_up(a_upper + b_upper)


def ball(
    x: Float[Tensor, "batch ..."],
    eps: float,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    sound: bool = False,
) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]:
    r"""Return the box of all inputs within ``eps`` of ``x`` in the :math:`\ell_\infty` norm.

    Args:
        x: centers, between ``minimum`` and ``maximum``.
        eps: radius, at least 0.
        minimum: least value that an input can have, such as 0 for images.
        maximum: greatest value that an input can have.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.

    Raises:
        InvalidOptionError: for a radius that is negative, NaN or infinite.
        InvalidInputError: for centers that are not finite or out of range.
    """
    if not 0 <= eps < math.inf:
        raise InvalidOptionError(f"eps={eps}; the radius of a ball is at least 0 and finite")
    check_box(x, x)
    if not is_traced() and x.numel() and not (minimum <= x.min() and x.max() <= maximum):
        raise InvalidInputError(
            f"inputs range from {float(x.min()):.4g} to {float(x.max()):.4g}; expected "
            f"[{minimum:g}, {maximum:g}]. Images are bounded unnormalized: the model normalizes"
        )
    if sound:
        (x,) = in_double(x)
    lower, upper = x - eps, x + eps
    if sound and eps > 0:
        lower, upper = round_down(lower), round_up(upper)
    return lower.clamp(minimum, maximum), upper.clamp(minimum, maximum)
