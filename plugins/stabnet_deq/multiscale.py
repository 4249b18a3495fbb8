"""The multi-scale cell: one residual block per resolution, and fusion across them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.interfaces import Cell, Features, State

from .conv import ResidualBranch, group_norm

__all__ = ["MultiscaleCell"]


@final
class MultiscaleCell(Cell):
    r"""Residual blocks on several resolutions that exchange what they compute.

    The state is a tuple, one tensor per scale, the finest first; each next scale halves the grid,
    rounding up. With :math:`y_i = z_i + b_i(z_i, u_i)`, and :math:`b_i` as in the cell ``conv``,

    .. math:: f_i(z, u) = \mathrm{GN}(\mathrm{ReLU}(\textstyle\sum_j g_{ji}(y_j))),

    where :math:`g_{ii}` is the identity. From fine to coarse :math:`g_{ji}` is a chain of 3 × 3
    convolutions of stride 2 with ReLU between; from coarse to fine a 1 × 1 convolution and
    nearest-neighbor upsampling. The features enter at every scale: :math:`u_0 = u`, and
    :math:`u_{i+1}` is a convolution of stride 2 of :math:`u_i`. With a single scale this is the
    cell ``conv``.

    Unlike the paper's, the block is normalized once, after the fusion, and features do not enter
    at the finest scale alone: a coarse branch without features would normalize whatever small
    signal it got to unit size, and a fresh cell would not contract.

    Args:
        state_shape: the shapes of all scales, ``((c₀, h, w), (c₁, ⌈h/2⌉, ⌈w/2⌉), …)``; or that of
            the finest, ``(c₀, h, w)``, with as many ``scales``, the channels doubling with each.
        feature_shape: the shape of the finest scale.
        scales: number of scales where ``state_shape`` is that of the finest; 2 if ``None``.
        groups: groups of each normalization; divides the channels of every scale.
        weight_scale: factor on PyTorch's default initialization of the convolutions that act on
            the state, for the reason given at :class:`stabnet_deq.ConvCell`.

    Attributes:
        state_shape: the shapes of all scales.

    Raises:
        InvalidOptionError: for shapes that are not those of such scales, features of another shape
            than the finest, or channels that ``groups`` does not divide.

    References:
        Bai, Koltun, Kolter: "Multiscale Deep Equilibrium Models", 2020, section 3.
    """

    state_shape: tuple[tuple[int, int, int], ...]

    def __init__(
        self,
        state_shape: Sequence[int] | Sequence[Sequence[int]],
        feature_shape: Sequence[int],
        scales: int | None = None,
        groups: int = 8,
        weight_scale: float = 0.03,
    ) -> None:
        super().__init__()
        self.state_shape = shapes = _scales(state_shape, scales)
        self.feature_shape = tuple(feature_shape)
        if self.feature_shape != shapes[0]:
            raise InvalidOptionError(
                f"features enter the multiscale cell at its finest scale, {shapes[0]}; got "
                f"features {self.feature_shape}. Choose a backbone whose features are on that "
                "grid, such as 'stem' or 'identity'"
            )
        channels, pixels = [c for c, _, _ in shapes], [h * w for _, h, w in shapes]
        self.branches = nn.ModuleList(
            ResidualBranch(c, None, groups, p, weight_scale)
            for c, p in zip(channels, pixels, strict=True)
        )
        self.norms = nn.ModuleList(map(group_norm, [groups] * len(shapes), channels, pixels))
        self.injections = nn.ModuleList(_halving(c, d) for c, d in pairwise(channels))
        self.fusions = nn.ModuleList(
            nn.ModuleList(_fusion(channels, source, target) for source in range(len(shapes)))
            for target in range(len(shapes))
        )
        for layer in self.fusions.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data.mul_(weight_scale)

    def forward(self, z: State, u: Features = None) -> tuple[Float[Tensor, "batch c h w"], ...]:
        """Evaluate ``f(z, u)`` for a tuple of states, one per scale, and features of the finest."""
        return self._evaluate(z, self._pyramid(u))

    def at(self, u: Features) -> Callable[[State], State]:
        """Return the map ``z ↦ f(z, u)``, with the features brought to every scale once."""
        pyramid = self._pyramid(u)
        return lambda z: self._evaluate(z, pyramid)

    def _pyramid(self, u: Features) -> list[Tensor]:
        """Return the features at every scale."""
        assert isinstance(u, Tensor)
        pyramid = [u]
        for halving in self.injections:
            pyramid.append(halving(pyramid[-1]))
        return pyramid

    def _evaluate(self, z: State, pyramid: Sequence[Tensor]) -> tuple[Tensor, ...]:
        y = [p + b(p, u) for b, p, u in zip(self.branches, z, pyramid, strict=True)]
        image = []
        for norm, fusions, own in zip(self.norms, self.fusions, y, strict=True):
            assert isinstance(fusions, nn.ModuleList)
            parts = [
                _resized(fusion(other), own.shape[2:])
                for fusion, other in zip(fusions, y, strict=True)
            ]
            image.append(norm(torch.stack(parts).sum(0).relu()))
        return tuple(image)


def _halving(before: int, after: int) -> nn.Conv2d:
    """Return a convolution that halves the grid, rounding up."""
    return nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)


def _fusion(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """Return what brings one scale's channels to another's, and its grid where that is coarser."""
    before, after = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Conv2d(before, after, 1, bias=False)
    layers: list[nn.Module] = []
    for _ in range(target - source - 1):
        layers += [_halving(before, before), nn.ReLU()]
    return nn.Sequential(*layers, _halving(before, after))


def _resized(part: Tensor, size: Sequence[int]) -> Tensor:
    """Return an image on a finer grid, by nearest neighbors; as it is if that is its own."""
    return part if part.shape[2:] == size else F.interpolate(part, size)


def _scales(
    state_shape: Sequence[int] | Sequence[Sequence[int]], scales: int | None
) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes of all scales, given all of them or the finest.

    Raises:
        InvalidOptionError: if there are no such scales.
    """
    given: tuple[Any, ...] = tuple(state_shape)
    nested = bool(given) and all(isinstance(part, Sequence) for part in given)
    if nested and scales is not None:
        raise InvalidOptionError(
            f"state_shape={given} already says how many scales there are; leave scales={scales} out"
        )
    parts = tuple(tuple(int(n) for n in part) for part in given) if nested else (given,)
    if any(len(part) != 3 or min(part) < 1 for part in parts):
        raise InvalidOptionError(
            "state_shape is (channels, height, width) of the finest scale, or one such shape per "
            f"scale, the finest first; got {given}"
        )
    channels, *grid = parts[0]
    count = len(parts) if nested else 2 if scales is None else scales
    if count < 1:
        raise InvalidOptionError(f"scales must be at least 1; got {scales}")
    grids = [tuple(-(-n // 2**i) for n in grid) for i in range(count)]
    widths = [part[0] for part in parts] if nested else [channels * 2**i for i in range(count)]
    shapes = tuple((c, h, w) for c, (h, w) in zip(widths, grids, strict=True))
    if nested and shapes != parts:
        raise InvalidOptionError(
            f"each scale of the multiscale cell halves the grid, rounding up: expected {shapes}; "
            f"got {parts}"
        )
    return shapes
