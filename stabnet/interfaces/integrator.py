"""Integrators: how an ODE is carried from one time to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from .solution import Features

__all__ = ["Integrator", "RightHandSide", "Trajectory"]

RightHandSide = Callable[[float | Tensor, Tensor, Features], Tensor]
"""``F(t, z, u)``: a :class:`VectorField` or any function called like one."""


@dataclass(frozen=True)
class Trajectory:
    """States along a trajectory.

    Attributes:
        states: states at the requested times, ``(T, batch, *state_shape)``.
        nfe: evaluations of the right-hand side over the batch; of a separable field, a velocity
            and a force are one.
    """

    states: Float[Tensor, "times batch ..."]
    nfe: int


class Integrator(nn.Module, ABC):
    """A numerical method for ``dz/dt = F(t, z, u)``."""

    @abstractmethod
    def forward(
        self,
        vector_field: RightHandSide,
        z0: Float[Tensor, "batch ..."],
        times: Sequence[float] | Float[Tensor, " times"],
        u: Features = None,
    ) -> Trajectory:
        """Integrate from ``times[0]`` through all later times.

        Args:
            vector_field: the right-hand side ``F(t, z, u)``.
            z0: state at ``times[0]``.
            times: strictly monotone times, at least two. Plain numbers keep a fixed-step method
                free of host synchronization, and so compilable.
            u: features, handed to every evaluation.

        Returns:
            The states at all ``times``, the first being ``z0``, and the number of evaluations.

        Raises:
            InvalidInputError: if ``times`` are fewer than two or not strictly monotone.
        """
