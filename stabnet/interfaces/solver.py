"""Solvers: how the fixed point of a map is found."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from .solution import Features, SolverResult

__all__ = ["FixedPointMap", "Solver"]

FixedPointMap = Callable[[Tensor, Features], Tensor]
"""A map ``f(z, u)`` on raveled states ``(batch, n)``, row by row."""


class Solver(nn.Module, ABC):
    """A method for ``z = f(z, u)``, each row of ``z`` being a problem of its own.

    A solver only iterates: it is called without gradients, and differentiation is the business of
    :class:`stabnet.Equilibrium`; only for an unrolled gradient is it called with gradients enabled.
    It never raises because of one sample: a row that diverges or turns non-finite ends at its best
    finite iterate with ``converged`` false.

    Attributes:
        unrollable: whether derivatives of the returned state through all iterations are exact.
    """

    unrollable: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``.

        Args:
            f: the map; row ``i`` of its value depends on row ``i`` of ``z`` and ``u`` alone.
            z0: the initial iterate.
            u: features with a leading batch dimension, so that a solver may drop finished rows
                and go on with ``f(z[rows], u[rows])``; none for a map that may close over rows.

        Returns:
            The best finite iterate per row with its own residual, and the evaluations spent.
        """
