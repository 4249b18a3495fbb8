"""Plain fixed-point iteration."""

from __future__ import annotations

import math
from typing import final

from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult

from .control import Control
from .iteration import Method, iterate

__all__ = ["Picard"]


@final
class Picard(Solver):
    r"""Plain fixed-point iteration :math:`z_{k+1} = f(z_k)`.

    Converges linearly where :math:`f` contracts, and not in general elsewhere.

    Args:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged; never
            taken below four units of rounding.
        max_evaluations: evaluations of the map at most.
        fixed_iterations: spend all evaluations without ever looking at a value, so that the loop
            compiles, exports and can be mapped with ``torch.vmap``.
        check_every: evaluations between two looks at whether samples are finished; ``None`` for 1
            on the CPU and 4 on accelerators, which a look stalls.
        compaction: share of finished samples at which they leave the batch; 1 keeps them all.
        throw: raise :class:`stabnet.ConvergenceError` where a sample did not converge.

    Raises:
        InvalidOptionError: for an option out of its range.
    """

    unrollable = True

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_evaluations: int = 50,
        fixed_iterations: bool = False,
        check_every: int | None = None,
        compaction: float = 0.2,
        throw: bool = False,
    ) -> None:
        super().__init__()
        self.control = Control(
            tolerance, max_evaluations, fixed_iterations, check_every, compaction, throw
        )

    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``; see :class:`stabnet.interfaces.Solver`."""
        return iterate(f, z0, u, _PlainStep(), self.control)

    def extra_repr(self) -> str:
        """Return the options."""
        return str(self.control)


@final
class _PlainStep(Method):
    """Takes the image for the next iterate, however the residual goes."""

    growth = math.inf
    patience = 0

    def step(self, z: Tensor, image: Tensor, g: Tensor) -> Tensor:
        return image

    def restart(self, rows: Tensor) -> None:
        """Nothing was learned."""

    def keep(self, rows: Tensor) -> None:
        """Nothing is kept."""
