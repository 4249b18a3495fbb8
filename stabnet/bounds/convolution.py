"""A certified upper bound of the operator norm of a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import InvalidInputError
from .boxes import NoBoundError
from .rounding import UNIT_ROUNDOFF, gamma
from .spectral import largest_norm, scaled_back, scaled_to_one

__all__ = ["conv2d_norm_bound"]

_ENTRIES = 2**23
"""Entries of the matrices that are bounded at once."""

_EXPLICIT = 1024
"""Smaller side up to which the explicit matrix of a convolution is bounded instead."""


@torch.no_grad()
def conv2d_norm_bound(
    weight: Float[Tensor, "out in_per_group kh kw"],
    image_size: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: Literal["zeros", "circular"] = "zeros",
) -> float:
    r"""Return an upper bound of the l2 operator norm of a convolution, sound in spite of rounding.

    A circular convolution with stride 1 is diagonalized by the Fourier transform: its norm is the
    largest of the matrices

    .. math:: \hat K(\omega) = \sum_t K_t\, e^{-i \omega \cdot t}

    over the frequencies of the grid. With zero padding the convolution of an image of ``n`` pixels
    is a part of the circular one on a grid of :math:`n + k - 1` pixels, on which nothing wraps
    around, so that the latter's norm bounds it (on ``n`` pixels it does not). A stride ``s`` is a
    convolution of stride 1 whose channels are the :math:`s^2` phases of the image; a dilated kernel
    one with zeros between; groups are convolutions side by side.

    Each norm is proven by a Cholesky factorization, as in :func:`spectral_norm_bound`; the rounding
    of the transform adds :math:`\delta \| \sum_t |K_t| \|_F` with :math:`\delta` of the order of
    1e-13. The bound is exact up to rounding for circular padding. With zero padding it exceeds the
    norm by what the border takes away, some percent where the image is four kernels wide; where it
    is narrower, and the matrix small, the explicit matrix is bounded instead.

    Args:
        weight: the kernel, as ``torch.nn.Conv2d`` has it.
        image_size: height and width of the images that it is applied to.
        stride: as in ``Conv2d``; one number, or two.
        padding: likewise.
        dilation: likewise.
        groups: likewise.
        padding_mode: ``"zeros"`` or ``"circular"``.

    Returns:
        The bound, of the weights as they stand; nothing is cached.

    Raises:
        NoBoundError: for another padding mode, or circular padding that wraps around further than
            the image.
        InvalidInputError: for a kernel that is not finite or not a kernel, or sizes that are not
            positive.

    References:
        Sedghi, Gupta, Long: "The singular values of convolutional layers", 2019, for circular
        padding. Delattre et al., 2023, 2024, for other bounds and zero padding.
    """
    if padding_mode not in ("zeros", "circular"):
        raise NoBoundError(
            f"no bound is known for padding_mode={padding_mode!r}: what it adds at the border "
            "is not a part of a convolution. Use 'zeros' or 'circular'"
        )
    size, steps = _pair("image_size", image_size, 1), _pair("stride", stride, 1)
    pads = _pair("padding", padding, 0)
    kernel = _dilated(weight, _pair("dilation", dilation, 1))
    k = tuple(kernel.shape[2:])
    if groups < 1 or kernel.shape[0] % groups:
        raise InvalidInputError(
            f"groups={groups} do not divide the {kernel.shape[0]} output channels of the kernel"
        )
    if any(n + 2 * p < w for n, p, w in zip(size, pads, k, strict=True)):
        raise InvalidInputError(f"images of {size}, padded by {pads}, are smaller than {k}")
    circular = padding_mode == "circular"
    if circular and any(2 * p >= w for p, w in zip(pads, k, strict=True)):
        raise NoBoundError(
            f"circular padding by {pads} with a kernel of {k} repeats rows or columns of the "
            "output; pad by less than half the kernel"
        )
    whole = circular and all(
        n % s == 0 and 2 * p == w - 1 for n, s, p, w in zip(size, steps, pads, k, strict=True)
    )
    wide = not circular and all(n >= 4 * w for n, w in zip(size, k, strict=True))
    wraps = circular and any(n < w for n, w in zip(size, k, strict=True))
    small = kernel.shape[1] * math.prod(size) <= _EXPLICIT
    if small and not (whole or wide or wraps):
        return largest_norm(_explicit(kernel, size, steps, pads, groups, circular))
    if circular and any(n % s for n, s in zip(size, steps, strict=True)):
        steps = (1, 1)  # a stride leaves out outputs of the convolution without one
    phases, exponent = scaled_to_one(_phases(kernel, steps, pads))
    if exponent is None:
        return 0.0
    rows, columns = (
        n // s if circular else -(-n // s) + w - 1
        for n, s, w in zip(size, steps, phases.shape[2:], strict=True)
    )
    return math.nextafter(
        scaled_back(_fourier_bound(phases, (rows, columns), groups), exponent), math.inf
    )


def _fourier_bound(
    kernel: Float[Tensor, "out in kh kw"], grid: tuple[int, int], groups: int
) -> float:
    """Return the bound of a circular convolution with stride 1 on a grid."""
    # The transform of a real kernel at −ω is the conjugate of that at ω: half of them will do.
    real, imaginary = _transform(kernel.unflatten(0, (groups, -1)), grid)
    largest = 0.0
    count = max(1, _ENTRIES // (4 * real[0].numel()))
    for re, im in zip(real.split(count), imaginary.split(count), strict=True):
        # As a real matrix, of the same norm.
        upper, lower = torch.cat([re, -im], -1), torch.cat([im, re], -1)
        largest = max(largest, largest_norm(torch.cat([upper, lower], -2)))
    # A sine is wrong by 32 u at most, its argument's rounding included, and a product of two of
    # them by 66 u; four such sums make up an entry.
    terms = kernel.shape[2] + kernel.shape[3]
    total = float(kernel.abs().sum((2, 3)).square().sum().sqrt())
    return (largest + gamma(8 * terms + 512) * total) * (1 + 8 * UNIT_ROUNDOFF)


def _transform(
    kernel: Float[Tensor, "groups out in kh kw"], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return real and imaginary part of the transform, one matrix per group and frequency.

    Angles are reduced as whole numbers, so that every sine and cosine is accurate to a few units
    in the last place, whatever the size of the grid.
    """
    (rows, columns), (height, width) = grid, kernel.shape[3:]
    cos_h, sin_h = _waves(rows, height, rows)
    cos_w, sin_w = _waves(columns, width, columns // 2 + 1)
    by_cos, by_sin = (torch.einsum("goikl,vl->gvoik", kernel, w) for w in (cos_w, sin_w))

    def down(part: Tensor, waves: Tensor) -> Tensor:
        moved: Tensor = torch.einsum("gvoik,uk->guvoi", part, waves).flatten(0, 2)
        return moved

    real = down(by_cos, cos_h) - down(by_sin, sin_h)
    imaginary = -(down(by_sin, cos_h) + down(by_cos, sin_h))
    return real, imaginary


def _waves(period: int, taps: int, frequencies: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of ``2π f t / period``, ``(frequencies, taps)``."""
    products = torch.arange(frequencies)[:, None] * torch.arange(taps) % period
    angle = products.double() * (2 * math.pi / period)
    return angle.cos(), angle.sin()


def _phases(
    kernel: Float[Tensor, "out in kh kw"], stride: tuple[int, int], padding: tuple[int, int]
) -> Float[Tensor, "out in_phases kh2 kw2"]:
    """Return the kernel of the convolution of stride 1 of the image's phases."""
    (kh, kw), (sh, sw) = kernel.shape[2:], stride
    # Output i reads input s·i + t − p: with zeros before the kernel, p is a multiple of s.
    before = [-p % s for p, s in zip(padding, stride, strict=True)]
    after = [-(k + b) % s for k, b, s in zip((kh, kw), before, stride, strict=True)]
    padded = F.pad(kernel, (before[1], after[1], before[0], after[0]))
    parts = padded.unflatten(3, (-1, sw)).unflatten(2, (-1, sh))
    phases: Tensor = parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    return phases


def _explicit(
    kernel: Float[Tensor, "out in kh kw"],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    circular: bool,
) -> Float[Tensor, "groups rows columns"]:
    """Return the matrices of a convolution; each entry is one weight, or zero."""
    channels = kernel.shape[1]
    pixels = torch.eye(channels * math.prod(size), dtype=kernel.dtype)
    images = pixels.unflatten(1, (channels, *size)).repeat(1, groups, 1, 1)
    if circular:
        images = F.pad(images, (padding[1], padding[1], padding[0], padding[0]), mode="circular")
        padding = (0, 0)
    columns = F.conv2d(images, kernel, None, stride, padding, groups=groups)
    matrices: Tensor = columns.unflatten(1, (groups, -1)).flatten(2).movedim(0, -1)
    return matrices


def _dilated(
    weight: Float[Tensor, "out in kh kw"], dilation: tuple[int, int]
) -> Float[Tensor, "out in kh2 kw2"]:
    """Return the kernel in float64 on the CPU, with zeros between its weights."""
    if weight.ndim != 4 or not weight.is_floating_point() or min(weight.shape) < 1:
        raise InvalidInputError(
            f"got {weight.dtype} of shape {tuple(weight.shape)}; a kernel is a floating-point "
            "tensor (out, in per group, height, width)"
        )
    if not bool(weight.isfinite().all()):
        raise InvalidInputError("the kernel holds NaN or infinite values; its norm has no bound")
    sizes = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    kernel = torch.zeros(*weight.shape[:2], *sizes, dtype=torch.float64)
    kernel[..., :: dilation[0], :: dilation[1]] = weight.detach().cpu().to(torch.float64)
    return kernel


def _pair(name: str, n: int | Sequence[int], least: int) -> tuple[int, int]:
    """Return height and width of an option that is one whole number, or two."""
    pair = (n, n) if isinstance(n, int) else tuple(n)
    if len(pair) != 2 or not all(isinstance(k, int) and k >= least for k in pair):
        raise InvalidInputError(
            f"{name}={n!r} must be one or two whole numbers of at least {least}"
        )
    return pair[0], pair[1]
