"""Boxes through affine maps: linear layers, convolutions and normalizations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .boxes import Box, in_double, known_where, ordered
from .rounding import TINY, gamma, round_down, round_up

__all__ = [
    "batch_norm_interval",
    "bilinear_interval",
    "conv2d_interval",
    "linear_interval",
    "normalize_interval",
    "product_interval",
]

Bilinear: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``apply(x, weight, bias)``: sums of products of entries of ``weight`` and ``x``, plus bias."""


def bilinear_interval(
    apply: Bilinear,
    lower: Float[Tensor, "..."],
    upper: Float[Tensor, "..."],
    weight: Float[Tensor, "..."],
    bias: Float[Tensor, "..."] | None = None,
    *,
    terms: int,
    sound: bool = False,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Return bounds of :math:`Wx + b` over a box, where every output is a sum of products.

    With the box's center :math:`\mu` and radius :math:`r` they are
    :math:`W\mu + b \pm |W| r`. The sound ones have the radius

    .. math:: R = |W| (r + \gamma_n |\mu|) + \gamma_n |b|

    rounded upwards, which covers the rounding of :math:`W\mu + b`.

    Args:
        apply: computes ``Wx + b`` from ``(x, W, b)`` with sums of products in the plain way, in
            any order; not by fast Fourier transforms or Winograd's algorithm, whose rounding is
            another.
        lower: lower bounds of ``x``.
        upper: upper bounds of ``x``.
        weight: ``W``.
        bias: ``b``, if any.
        terms: the most products that are summed for one output, plus one for the bias. Each
            entry of ``W`` and ``b`` that was itself rounded once adds one.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.

    References:
        Gowal et al.: "On the effectiveness of interval bound propagation for training verifiably
        robust models", 2018, (6). Higham 2002, (3.5).
    """
    if not sound:
        center, radius = (lower + upper) / 2, (upper - lower) / 2
        image, spread = apply(center, weight, bias), apply(radius, weight.abs(), None)
        return image - spread, image + spread
    error = gamma(terms)
    with torch.no_grad():
        lower, upper, weight = in_double(lower, upper, weight)
        bias = None if bias is None else in_double(bias)[0]
        center = (lower + upper) / 2
        radius = round_up(torch.maximum(upper - center, center - lower))
        reach = round_up(radius + round_up(error * center.abs()))
        spread = apply(reach, weight.abs(), None if bias is None else round_up(error * bias.abs()))
        # The sum just computed may be too small by the share γ, and products may underflow.
        spread = round_up(round_up(spread * (1 + 4 * error)) + 4 * terms * TINY)
        image = apply(center, weight, bias)
        # Partial sums that overflowed tell nothing of the sum.
        known = image.isfinite() & ~spread.isnan()
        return known_where(known, round_down(image - spread), round_up(image + spread))


def product_interval(
    apply: Bilinear,
    x: tuple[Float[Tensor, "..."], Float[Tensor, "..."]],
    weight: tuple[Float[Tensor, "..."], Float[Tensor, "..."]],
    *,
    terms: int,
    sound: bool = False,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Return bounds of :math:`Wx` where both lie in boxes.

    With the center :math:`M` and the radius :math:`R` of the box of :math:`W` they are those of
    :math:`Mx`, see :func:`bilinear_interval`, widened by :math:`R \max |x|`.

    Args:
        apply: computes ``Wx`` from ``(x, W, None)``, as of :func:`bilinear_interval`.
        x: lower and upper bounds of ``x``.
        weight: lower and upper bounds of ``W``.
        terms: the most products that are summed for one output.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    if not sound:
        center, radius = (weight[0] + weight[1]) / 2, (weight[1] - weight[0]) / 2
        lower, upper = bilinear_interval(apply, *x, center, terms=terms)
        spread = apply(torch.maximum(x[0].abs(), x[1].abs()), radius, None)
        return lower - spread, upper + spread
    with torch.no_grad():
        x, weight = in_double(*x), in_double(*weight)  # type: ignore[assignment]
        center = (weight[0] + weight[1]) / 2
        radius = round_up(torch.maximum(weight[1] - center, center - weight[0]))
        lower, upper = bilinear_interval(apply, *x, center, terms=terms, sound=True)
        spread = apply(torch.maximum(x[0].abs(), x[1].abs()), radius, None)
        spread = round_up(round_up(spread * (1 + 4 * gamma(terms))) + 4 * terms * TINY)
        return known_where(~spread.isnan(), round_down(lower - spread), round_up(upper + spread))


def linear_interval(
    lower: Float[Tensor, "*batch n"],
    upper: Float[Tensor, "*batch n"],
    weight: Float[Tensor, "m n"],
    bias: Float[Tensor, " m"] | None = None,
    *,
    sound: bool = False,
) -> tuple[Float[Tensor, "*batch m"], Float[Tensor, "*batch m"]]:
    """Return bounds of ``Wx + b`` over a box; see :func:`bilinear_interval`.

    Args:
        lower: lower bounds of ``x``.
        upper: upper bounds of ``x``.
        weight: ``W``.
        bias: ``b``, if any.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    terms = weight.shape[1] + 1
    return bilinear_interval(F.linear, lower, upper, weight, bias, terms=terms, sound=sound)


def conv2d_interval(
    lower: Float[Tensor, "batch c h w"],
    upper: Float[Tensor, "batch c h w"],
    weight: Float[Tensor, "c2 c_per_group kh kw"],
    bias: Float[Tensor, " c2"] | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    sound: bool = False,
) -> tuple[Float[Tensor, "batch c2 h2 w2"], Float[Tensor, "batch c2 h2 w2"]]:
    """Return bounds of a two-dimensional convolution over a box; see :func:`bilinear_interval`.

    Padding is with zeros. For another one pad both bounds first.

    Args:
        lower: lower bounds of the images.
        upper: upper bounds of the images.
        weight: the kernels.
        bias: one number per output channel, if any.
        stride: as of ``torch.nn.functional.conv2d``.
        padding: likewise, ``"same"`` and ``"valid"`` included.
        dilation: likewise.
        groups: likewise.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return out

    def plainly(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # cuDNN may convolve by a Fourier transform, whose rounding γ does not bound.
        with torch.backends.cudnn.flags(enabled=False):
            return convolve(x, weight, bias)

    apply, terms = plainly if sound else convolve, weight[0].numel() + 1
    return bilinear_interval(apply, lower, upper, weight, bias, terms=terms, sound=sound)


def normalize_interval(
    lower: Float[Tensor, "*shape"],
    upper: Float[Tensor, "*shape"],
    mean: Float[Tensor, "..."],
    std: Float[Tensor, "..."],
    *,
    sound: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Return bounds of ``(x − mean) / std`` over a box.

    Args:
        lower: lower bounds of ``x``.
        upper: upper bounds of ``x``.
        mean: broadcastable to ``x``.
        std: broadcastable to ``x``, positive.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    if not sound:
        return (lower - mean) / std, (upper - mean) / std
    with torch.no_grad():
        lower, upper, mean, std = in_double(lower, upper, mean, std)
        return _standardized(lower, upper, mean, (std, std))


def batch_norm_interval(
    lower: Float[Tensor, "batch c ..."],
    upper: Float[Tensor, "batch c ..."],
    mean: Float[Tensor, " c"],
    variance: Float[Tensor, " c"],
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    *,
    eps: float = 1e-5,
    sound: bool = False,
) -> tuple[Float[Tensor, "batch c ..."], Float[Tensor, "batch c ..."]]:
    r"""Return bounds of batch normalization by given statistics over a box.

    .. math:: y = w \frac{x - \mu}{\sqrt{v + \epsilon}} + b

    Args:
        lower: lower bounds of ``x``.
        upper: upper bounds of ``x``.
        mean: one per channel.
        variance: one per channel, at least 0.
        weight: one per channel, of either sign; 1 if ``None``.
        bias: one per channel; 0 if ``None``.
        eps: added to the variance, positive.
        sound: round outwards in float64; see :mod:`stabnet.bounds`.
    """
    if not sound:
        statistics = (mean, variance, weight, bias)
        images = [F.batch_norm(x, *statistics, training=False, eps=eps) for x in (lower, upper)]
        return ordered(*images)
    per_channel = (-1, *[1] * (lower.ndim - 2))
    with torch.no_grad():
        lower, upper = in_double(lower, upper)
        mean, variance = (t.view(per_channel) for t in in_double(mean, variance))
        total = variance + eps
        std = round_down(round_down(total).sqrt()), round_up(round_up(total).sqrt())
        lower, upper = _standardized(lower, upper, mean, std)
        if weight is not None:
            (weight,) = in_double(weight.view(per_channel))
            lower, upper = ordered(lower * weight, upper * weight)
            lower, upper = round_down(lower), round_up(upper)
        if bias is not None:
            (bias,) = in_double(bias.view(per_channel))
            lower, upper = round_down(lower + bias), round_up(upper + bias)
        return known_where(~(lower.isnan() | upper.isnan()), lower, upper)


def _standardized(lower: Tensor, upper: Tensor, mean: Tensor, std: Box) -> Box:
    """Return sound bounds of ``(x − mean) / s`` for ``s`` in a box of positive numbers."""
    lower, upper = round_down(lower - mean), round_up(upper - mean)
    lower = torch.minimum(lower / std[0], lower / std[1])
    upper = torch.maximum(upper / std[0], upper / std[1])
    return round_down(lower), round_up(upper)
