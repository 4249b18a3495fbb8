"""Plain fixed-point iteration."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult

from .progress import Progress, check_common_options

__all__ = ["Picard"]


@final
class Picard(Solver):
    r"""Plain fixed-point iteration :math:`z^{k+1} = f(z^k)`.

    Converges linearly where :math:`f` contracts, and not in general elsewhere.

    Args:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged.
        max_evaluations: evaluations of the map at most.
        fixed_iterations: spend all evaluations without ever looking at the residual, so that the
            loop compiles, exports and can be mapped with ``torch.vmap``.

    Raises:
        InvalidOptionError: for a tolerance or a number of evaluations that is not positive.
    """

    def __init__(
        self, tolerance: float = 1e-5, max_evaluations: int = 50, fixed_iterations: bool = False
    ) -> None:
        super().__init__()
        check_common_options(tolerance, max_evaluations)
        self.tolerance = tolerance
        self.max_evaluations = max_evaluations
        self.fixed_iterations = fixed_iterations

    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``; see :class:`stabnet.interfaces.Solver`."""
        progress = Progress(z0, self.tolerance, self.fixed_iterations)
        z = z0
        for _ in range(self.max_evaluations):
            image = f(z, u)
            progress.update(z, image)
            if progress.finished():
                break
            z = torch.where(progress.settled[:, None], progress.best, image)
        return progress.result()

    def extra_repr(self) -> str:
        """Return the options."""
        return f"tolerance={self.tolerance}, max_evaluations={self.max_evaluations}"
