r"""Weights :math:`W` that keep :math:`I - W` strongly monotone, whatever their parameters are.

.. math:: W = (1 - m) I - A^\top A + B - B^\top
          \quad\Longrightarrow\quad \tfrac12\bigl((I - W) + (I - W)^\top\bigr) = mI + A^\top A

References:
    Winston, Kolter: "Monotone operator equilibrium networks", 2020, section 3, also for
    convolutions.
"""

from __future__ import annotations

import math
from typing import final

import torch
from jaxtyping import Inexact
from torch import Tensor, nn

from stabnet import InvalidOptionError

from .operator import BlockOperator

__all__ = ["CircularWeight", "DenseWeight"]


def _single_at_least(t: Tensor) -> Tensor:
    """Return a tensor in a precision that inverses and Fourier transforms exist for."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _monotone(
    A: Inexact[Tensor, "*frequencies n n"], B: Inexact[Tensor, "*frequencies n n"], m: float
) -> Inexact[Tensor, "*frequencies n n"]:
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return (1 - m) * identity - A.mH @ A + B - B.mH


@final
class DenseWeight(nn.Module):
    """A monotone weight matrix.

    Args:
        size: number of rows and columns.
        monotonicity: the constant ``m``, positive.
    """

    def __init__(self, size: int, monotonicity: float) -> None:
        super().__init__()
        self.monotonicity = monotonicity
        bound = 1 / math.sqrt(size)
        self.A = nn.Parameter(torch.empty(size, size).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.empty(size, size).uniform_(-bound, bound))

    def forward(self) -> BlockOperator:
        """Return ``W`` for the parameters as they stand."""
        # In autocast's half precision the matrix would not be monotone.
        with torch.autocast(self.A.device.type, enabled=False):
            W = _monotone(_single_at_least(self.A), _single_at_least(self.B), self.monotonicity)
        return BlockOperator(W, _single_at_least, _as_it_is)


def _as_it_is(z: Tensor) -> Tensor:
    return z


@final
class CircularWeight(nn.Module):
    """A monotone map of images made of circular convolutions, one matrix per frequency.

    ``A`` and ``B`` are convolutions with circular padding; ``W`` mixes channels within a window of
    ``2 · kernel_size − 1`` pixels.

    Args:
        channels: number of channels ``C``.
        size: height and width of the images.
        kernel_size: edge of the kernels of ``A`` and ``B``, at most the shorter side of the images.
        monotonicity: the constant ``m``, positive.

    Raises:
        InvalidOptionError: for a kernel that does not fit the images.
    """

    def __init__(
        self, channels: int, size: tuple[int, int], kernel_size: int, monotonicity: float
    ) -> None:
        super().__init__()
        if not 1 <= kernel_size <= min(size):
            raise InvalidOptionError(
                f"kernel_size must be from 1 to the shorter side of the state, {min(size)}; "
                f"got {kernel_size}"
            )
        self.monotonicity, self.size = monotonicity, size
        shape, bound = (channels, channels, kernel_size, kernel_size), channels**-0.5 / kernel_size
        self.A = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

    def forward(self) -> BlockOperator:
        """Return ``W`` for the parameters as they stand."""
        with torch.autocast(self.A.device.type, enabled=False):
            blocks = _monotone(self._blocks(self.A), self._blocks(self.B), self.monotonicity)
        return BlockOperator(blocks, self._encode, self._decode)

    def _blocks(self, kernel: Tensor) -> Tensor:
        # Real images and kernels: the other half of the frequencies is conjugate to this one.
        spectrum: Tensor = torch.fft.rfft2(_single_at_least(kernel), s=self.size)
        return spectrum.permute(2, 3, 0, 1)

    def _encode(self, z: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.rfft2(_single_at_least(z))
        return spectrum.permute(2, 3, 0, 1)

    def _decode(self, spectrum: Tensor) -> Tensor:
        image: Tensor = torch.fft.irfft2(spectrum.permute(2, 3, 0, 1), s=self.size)
        return image
