"""Blocks: the discrete stages of a stack."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from .solution import Features, Solution

__all__ = ["Block"]


class Block(nn.Module, ABC):
    """A map from one state to the next, used as a stage of a :class:`stabnet.Stack`.

    Attributes:
        state_shape: shape of one incoming state, without the batch.

    A block whose outgoing states have another shape has an attribute ``out_shape``.
    """

    state_shape: tuple[int, ...]

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."] | Solution:
        """Map a state to the next.

        Args:
            z: state ``(batch, *state_shape)``.
            u: the features that the whole stack was given, for blocks that depend on the input.

        Returns:
            The next state; or a :class:`Solution`, for a block that has more to report.
        """
