"""Sound boxes of equilibria: iterate, widen, check the inclusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stabnet.bounds import add_interval, bilinear_interval, monotone_interval

__all__ = ["enclose_equilibrium", "interval_image"]

Box: TypeAlias = tuple[Tensor, Tensor]

_ATTEMPTS = 4
"""Times that a box is widened, doubling the width each time, before a row is given up."""


def interval_image(
    weight: Float[Tensor, "n n"],
    sigma: Callable[[Tensor], Tensor],
    features: tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]],
    box: tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]],
    *,
    sound: bool = False,
) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
    r"""Return ``T(box)``, bounds of :math:`\sigma(Wz + u)` for states and features in boxes.

    Args:
        weight: ``W``; for sound bounds in float64, each entry of it the result of ``2n + 10``
            roundings at most.
        sigma: non-decreasing, elementwise.
        features: bounds of ``u``.
        box: bounds of ``z``.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    terms = 3 * weight.shape[0] + 10
    affine = bilinear_interval(
        lambda z, W, _: torch.nn.functional.linear(z, W), *box, weight, terms=terms, sound=sound
    )
    return monotone_interval(sigma, *add_interval(affine, features, sound=sound), sound=sound)


@torch.no_grad()
def enclose_equilibrium(
    weight: Float[Tensor, "n n"],
    sigma: Callable[[Tensor], Tensor],
    lower: Float[Tensor, "batch n"],
    upper: Float[Tensor, "batch n"],
    tolerance: float,
    max_evaluations: int,
) -> tuple[Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
    r"""Return a box per row that contains the fixed point of :math:`\sigma(Wz + u)` for all ``u``.

    **What makes it sound** is one check alone. Let :math:`T(B)` contain :math:`\sigma(Wz + u)` for
    all :math:`z \in B` and all :math:`u` of the row. If :math:`T(B) \subseteq B`, then for each
    such :math:`u` the map sends the box into itself and by Brouwer's theorem has a fixed point
    there. Where the fixed point is unique, as for :math:`\rho(|W|) < 1`, it is the equilibrium. It
    is its own image, so it lies in :math:`T(B)` too, which is what is returned. The inclusion is
    checked in float64 with ``T`` rounded outwards, so neither rounding, nor how far the iteration
    got, nor how the widened box was found matters for it.

    **Why it succeeds.** An iterate :math:`B = [l, h]` fails by the outward residual
    :math:`\delta = \max(T_h - h, l - T_l, 0)`. Take :math:`v = (I - |W|)^{-1} 1`, which is at
    least 1 as :math:`(I - |W|)^{-1} = \sum_k |W|^k`. For :math:`B' = [l - \delta v, h + \delta v]`

    .. math:: T_h(B') \le T_h(B) + \delta |W| v \le h + \delta 1 + \delta (v - 1) = h + \delta v,

    and likewise below: :math:`T(B') \subseteq B'`.

    Args:
        weight: ``W`` in float64, as :func:`interval_image` takes it, with :math:`\rho(|W|) < 1`.
        sigma: non-decreasing and 1-Lipschitz, elementwise.
        lower: lower bounds of ``u`` in float64.
        upper: upper bounds of ``u``.
        tolerance: change of the bounds, relative to the largest of the row, that ends the
            iteration.
        max_evaluations: evaluations of ``T`` before widening, at most.

    Returns:
        Bounds of the fixed points; ``(-inf, inf)`` in rows for which the check failed.

    References:
        Rump: "Verification methods: rigorous results using floating-point arithmetic", 2010
        (inflation and inclusion); Berman, Plemmons: "Nonnegative matrices in the
        mathematical sciences", 1994, chapter 6 (M-matrices).
    """
    image = partial(interval_image, weight, sigma, (lower, upper))
    box = (torch.zeros_like(lower), torch.zeros_like(upper))
    for _ in range(max_evaluations):
        before, box = box, image(box)
        change = torch.maximum((box[0] - before[0]).abs(), (box[1] - before[1]).abs())
        # Rows that turned non-finite have no size to compare with, and are not waited for.
        if not bool((change.amax(-1) > tolerance * _size(box).amax(-1)).any()):
            break
    eye = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
    # Unlike solve, solve_ex does not raise where rounding has made the matrix singular.
    v = torch.linalg.solve_ex(eye - weight.abs(), weight.new_ones(len(weight))).result
    rounded = image(box, sound=True)
    outward = torch.maximum(rounded[1] - box[1], box[0] - rounded[0]).clamp(min=0)
    # A little more than δ, so that rounding in the check does not spoil it.
    delta = 1.001 * outward.amax(-1, keepdim=True) + torch.finfo(weight.dtype).tiny
    result = torch.full_like(lower, -torch.inf), torch.full_like(upper, torch.inf)
    proven = torch.zeros_like(lower[:, 0], dtype=torch.bool)
    for _ in range(_ATTEMPTS):
        wide = box[0] - delta * v, box[1] + delta * v
        rounded = image(wide, sound=True)
        holds = _inside(rounded, wide) & ~proven
        result = (
            torch.where(holds[:, None], rounded[0], result[0]),
            torch.where(holds[:, None], rounded[1], result[1]),
        )
        proven |= holds
        if bool(proven.all()):
            break
        delta = 2 * delta
    return result


def _size(box: Box) -> Tensor:
    return torch.maximum(box[0].abs(), box[1].abs())


def _inside(inner: Box, outer: Box) -> Bool[Tensor, " batch"]:
    """Return which rows lie inside; false for NaN, for infinite bounds and for what is no box."""
    box = outer[0].isfinite() & outer[1].isfinite() & (outer[0] <= outer[1])
    return (box & (outer[0] <= inner[0]) & (inner[1] <= outer[1])).all(-1)
