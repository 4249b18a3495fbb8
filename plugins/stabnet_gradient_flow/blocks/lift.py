"""More channels by zeros, and fewer by leaving out the last: maps that expand no distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import whole

from ._states import state_sizes

__all__ = ["Lift", "Project"]


@final
class Lift(Block):
    """Appends channels (of a vector: entries) that are zero: an isometry.

    Args:
        state_shape: ``(n,)`` or ``(channels, height, width)``.
        channels: how many there are then, at least as many as before.

    Attributes:
        out_shape: the shape with so many channels.

    Raises:
        InvalidOptionError: for fewer channels than there are, or states of another kind.
    """

    def __init__(self, state_shape: Sequence[int], channels: int) -> None:
        super().__init__()
        self.state_shape = state_sizes("lift", state_shape)
        own, *image = self.state_shape
        if whole("channels", channels, 1) < own:
            raise InvalidOptionError(
                f"lift appends channels; channels={channels} are fewer than the {own} of "
                f"state_shape={self.state_shape}. Use the block 'project' to leave some out"
            )
        self.out_shape = (int(channels), *image)

    def forward(
        self, z: Float[Tensor, "batch c ..."], u: Features = None
    ) -> Float[Tensor, "batch more ..."]:
        """Return the state with zeros behind it."""
        check_block_state(z, self.state_shape)
        appended = self.out_shape[0] - self.state_shape[0]
        return F.pad(z, (*[0, 0] * (len(self.state_shape) - 1), 0, appended))

    def lipschitz_bound(self) -> float:
        """Return 1: zeros add nothing to a distance."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """Return that the block keeps distances between states."""
        return [
            Guarantee(
                claim="the block keeps every distance between states",
                formula="‖f(z) − f(z′)‖₂ = ‖z − z′‖₂",
                source="f(z) = (z, 0)",
                status="by construction",
            )
        ]

    def extra_repr(self) -> str:
        """Return the shapes."""
        return f"{self.state_shape} -> {self.out_shape}"


@final
class Project(Block):
    """Keeps the first channels (of a vector: entries), and leaves out the others.

    Args:
        state_shape: ``(n,)`` or ``(channels, height, width)``.
        channels: how many are kept, at most as many as there are.

    Attributes:
        out_shape: the shape with so many channels.

    Raises:
        InvalidOptionError: for more channels than there are, or states of another kind.
    """

    def __init__(self, state_shape: Sequence[int], channels: int) -> None:
        super().__init__()
        self.state_shape = state_sizes("project", state_shape)
        own, *image = self.state_shape
        if whole("channels", channels, 1) > own:
            raise InvalidOptionError(
                f"project keeps channels; channels={channels} are more than the {own} of "
                f"state_shape={self.state_shape}. Use the block 'lift' to append zeros"
            )
        self.out_shape = (int(channels), *image)

    def forward(
        self, z: Float[Tensor, "batch c ..."], u: Features = None
    ) -> Float[Tensor, "batch fewer ..."]:
        """Return the first channels of the state."""
        check_block_state(z, self.state_shape)
        return z[:, : self.out_shape[0]]

    def lipschitz_bound(self) -> float:
        """Return 1: an orthogonal projection."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """Return that the block increases no distance between states."""
        return [
            Guarantee(
                claim="the block increases no distance between states",
                formula="‖f(z) − f(z′)‖₂ ≤ ‖z − z′‖₂",
                source="f is an orthogonal projection, f(z, w) = z",
                status="by construction",
            )
        ]

    def extra_repr(self) -> str:
        """Return the shapes."""
        return f"{self.state_shape} -> {self.out_shape}"
