"""Images as vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import shape

__all__ = ["Flatten"]


@final
class Flatten(Block):
    """Writes a state of any shape as a vector: an isometry.

    Args:
        state_shape: shape of one state.

    Attributes:
        out_shape: ``(n,)``, with all entries of the state.

    Raises:
        InvalidOptionError: for a shape that is none.
    """

    def __init__(self, state_shape: Sequence[int]) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        self.out_shape = (math.prod(self.state_shape),)

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch n"]:
        """Return the state as a vector."""
        check_block_state(z, self.state_shape)
        return z.flatten(1)

    def inverse(
        self, z: Float[Tensor, "batch n"], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the vector in the shape of the state."""
        check_block_state(z, self.out_shape)
        return z.reshape(-1, *self.state_shape)

    def lipschitz_bound(self) -> float:
        """Return 1: no entry is changed."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """Return that the block keeps distances between states."""
        return [
            Guarantee(
                claim="the block keeps every distance between states, and can be inverted",
                formula="‖f(z) − f(z′)‖₂ = ‖z − z′‖₂",
                source="the same entries in another shape",
                status="by construction",
            )
        ]

    def extra_repr(self) -> str:
        """Return the shapes."""
        return f"{self.state_shape} -> {self.out_shape}"
