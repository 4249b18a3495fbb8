"""Dynamics: what turns features into a state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .solution import Features, Solution

__all__ = ["Dynamics"]


class Dynamics(nn.Module, ABC):
    """A system driven by features: a flow, an equilibrium, or a stack of stages."""

    @abstractmethod
    def forward(
        self, u: Features, times: Sequence[float] | Float[Tensor, " times"] | None = None
    ) -> Solution:
        """Run the system.

        Args:
            u: features of the input, with a leading batch dimension.
            times: where the trajectory is wanted, for a flow; ``None`` for its default interval.

        Returns:
            The final state and what it took to get there.
        """
