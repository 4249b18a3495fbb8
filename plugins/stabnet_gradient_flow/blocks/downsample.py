"""Down-sampling that keeps distances: pixels become channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import whole

from ._states import image_shape
from .lift import Project

__all__ = ["Basis", "Downsample", "ProjectedDownsample", "downsample"]

Basis = Literal["pixels", "haar"]
"""What the four channels of a 2 × 2 patch are: its pixels, or their orthonormal Haar transform."""


def downsample(
    state_shape: Sequence[int], *, basis: Basis = "pixels", channels: int | None = None
) -> Block:
    """Build a block that halves height and width, and increases no distance.

    Args:
        state_shape: ``(channels, height, width)``, height and width even.
        basis: ``"pixels"``: the pixels of a patch; ``"haar"``: its orthonormal Haar transform, the
            low-pass channels of all incoming channels first.
        channels: how many of the four times as many channels are kept, the first ones; ``None``
            for all of them, which makes the block an isometry that can be inverted.

    Returns:
        A :class:`Downsample`, or a :class:`ProjectedDownsample` where channels are dropped.

    Raises:
        InvalidOptionError: for states that are no images of even height and width, an unknown
            basis, or more channels than there are.
    """
    block = Downsample(state_shape, basis)
    available = block.out_shape[0]
    if channels is None or channels == available:
        return block
    if whole("channels", channels, 1) > available:
        raise InvalidOptionError(
            f"channels={channels} exceeds the {available} channels that {tuple(state_shape)} is "
            "down-sampled to; put the block 'lift' behind, which appends zeros"
        )
    return ProjectedDownsample(block, channels)


@final
class Downsample(Block):
    r"""Turns every 2 × 2 patch of an image into four channels: an isometry.

    In the basis of pixels it is torch's ``pixel_unshuffle``, four neighboring channels for each
    incoming one. The Haar transform takes the pixels :math:`(a, b; c, d)` of a patch to

    .. math:: \tfrac12 (a + b + c + d), \quad \tfrac12 (a - b + c - d), \quad
              \tfrac12 (a + b - c - d), \quad \tfrac12 (a - b - c + d),

    first channels the first of these for all incoming channels, then the second, and so on. Its
    matrix has entries :math:`\pm \tfrac12`, exact in binary, is symmetric and is its own inverse.

    Args:
        state_shape: ``(channels, height, width)``, height and width even.
        basis: ``"pixels"`` or ``"haar"``.

    Attributes:
        out_shape: ``(4 channels, height / 2, width / 2)``.

    Raises:
        InvalidOptionError: for other states, or an unknown basis.
    """

    def __init__(self, state_shape: Sequence[int], basis: Basis = "pixels") -> None:
        super().__init__()
        channels, height, width = image_shape("downsample", state_shape)
        if height % 2 or width % 2:
            raise InvalidOptionError(
                f"downsample takes images of even height and width; got {height} × {width}. Pad "
                "the images, or down-sample less often"
            )
        if basis not in get_args(Basis):
            raise InvalidOptionError(f"basis={basis!r} must be 'pixels' or 'haar'")
        self.state_shape = (channels, height, width)
        self.out_shape = (4 * channels, height // 2, width // 2)
        self.basis = basis

    def forward(
        self, z: Float[Tensor, "batch c h w"], u: Features = None
    ) -> Float[Tensor, "batch c4 h2 w2"]:
        """Return the image at half its height and width."""
        check_block_state(z, self.state_shape)
        pixels = F.pixel_unshuffle(z, 2)
        if self.basis == "pixels":
            return pixels
        patches = pixels.unflatten(1, (-1, 4))
        return torch.stack(_haar(*patches.unbind(2)), 1).flatten(1, 2)

    def inverse(
        self, z: Float[Tensor, "batch c4 h2 w2"], u: Features = None
    ) -> Float[Tensor, "batch c h w"]:
        """Return the image that the block maps to ``z``."""
        check_block_state(z, self.out_shape)
        if self.basis == "haar":
            z = torch.stack(_haar(*z.unflatten(1, (4, -1)).unbind(1)), 2).flatten(1, 2)
        return F.pixel_shuffle(z, 2)

    def lipschitz_bound(self) -> float:
        """Return 1: the matrix is orthogonal, and no number in it is rounded."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """Return that the block keeps distances between states."""
        return [
            Guarantee(
                claim="the block keeps every distance between states, and can be inverted",
                formula="‖f(z) − f(z′)‖₂ = ‖z − z′‖₂",
                source="a permutation of the entries"
                if self.basis == "pixels"
                else "the Haar transform of 2 × 2 patches is orthogonal",
                status="by construction",
                assumptions=() if self.basis == "pixels" else ("exact arithmetic",),
            )
        ]

    def extra_repr(self) -> str:
        """Return shapes and basis."""
        return f"{self.state_shape} -> {self.out_shape}, basis={self.basis!r}"


@final
class ProjectedDownsample(Block):
    """Down-samples, and keeps the first of the outgoing channels.

    Args:
        downsample: what down-samples.
        channels: how many channels are kept, fewer than it returns.

    Attributes:
        out_shape: ``(channels, height / 2, width / 2)``.
    """

    def __init__(self, downsample: Downsample, channels: int) -> None:
        super().__init__()
        self.downsample = downsample
        self.project = Project(downsample.out_shape, channels)
        self.state_shape, self.out_shape = downsample.state_shape, self.project.out_shape

    def forward(
        self, z: Float[Tensor, "batch c h w"], u: Features = None
    ) -> Float[Tensor, "batch kept h2 w2"]:
        """Return the first channels of the image at half its height and width."""
        kept: Tensor = self.project(self.downsample(z))
        return kept

    def lipschitz_bound(self) -> float:
        """Return 1: an isometry, and a projection."""
        return 1.0


def _haar(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the orthonormal Haar transform of four numbers, which is its own inverse."""
    top, bottom, left, right = a + b, c + d, a - b, c - d
    return (top + bottom) / 2, (left + right) / 2, (top - bottom) / 2, (left - right) / 2
