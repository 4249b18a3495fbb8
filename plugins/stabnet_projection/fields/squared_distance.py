"""The squared distance from the center."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Context, Potential
from stabnet.values import shape

from ..center import center_of, offset_from, point

__all__ = ["SquaredDistance"]


@final
class SquaredDistance(Potential):
    r"""The potential :math:`V(z) = \|z - c\|^2`, without parameters.

    Args:
        state_shape: shape of one state.
        center: where ``V`` vanishes unless the context gives a center per sample; the origin if
            ``None``.

    Raises:
        InvalidOptionError: if ``center`` is no state.
    """

    convex = True
    center: Tensor

    def __init__(self, state_shape: Sequence[int], center: Sequence[Any] | None = None) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.register_buffer("center", point(center, self.state_shape))

    def forward(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> Float[Tensor, "*batch"]:
        """Evaluate ``V``; the center is ``context.center``, or the potential's own."""
        return self.value_and_gradient(z, context)[0]

    def value_and_gradient(
        self, z: Float[Tensor, "*batch n"], context: Context | None = None
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
        """Evaluate ``V`` and its gradient ``2(z − c)``."""
        offset, _ = offset_from(center_of(self, context), z, len(self.state_shape))
        return offset.square().sum(-1), 2 * offset.unflatten(-1, self.state_shape)

    def growth_bound(self) -> Float[Tensor, ""]:
        """Return 1; see :class:`stabnet.interfaces.BoundsGrowth`."""
        return torch.ones((), dtype=torch.float64, device=self.center.device)

    def smoothness_bound(self) -> Float[Tensor, ""]:
        """Return 2; see :class:`stabnet.interfaces.BoundsSmoothness`."""
        return torch.full((), 2.0, dtype=torch.float64, device=self.center.device)
