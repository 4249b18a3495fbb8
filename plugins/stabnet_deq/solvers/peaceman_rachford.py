"""Peaceman–Rachford splitting."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor

from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult

from .control import Control
from .splitting import Point, check_options, parts, solve

__all__ = ["PeacemanRachford"]


@final
class PeacemanRachford(Solver):
    r"""Peaceman–Rachford splitting: the affine part is solved for instead of stepped along.

    For cells that come apart as :math:`z = \operatorname{prox}_\varphi(Wz + c)`, with
    :math:`V = (I + \alpha(I - W))^{-1}`,

    .. math:: u_{k+1/2} = 2 z_k - u_k, \quad z_{k+1/2} = V(u_{k+1/2} + \alpha c), \quad
              u_{k+1} = 2 z_{k+1/2} - u_{k+1/2}, \quad
              z_{k+1} = \operatorname{prox}_{\alpha\varphi}(u_{k+1}) .

    Where :math:`I - W \succeq mI`, :math:`m > 0`, it converges linearly for every
    :math:`\alpha > 0`. The iterates are taken to be the :math:`z_{k+1/2}`, whose affine value
    :math:`((1 + \alpha) z_{k+1/2} - u_{k+1/2}) / \alpha` costs no product; in terms of it,
    :math:`u_{k+1}` is the forward step. The residual reported is that of the cell.

    Args:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged; never
            taken below four units of rounding.
        max_evaluations: applications of ``V`` and evaluations of the map at most, at least 3. Each
            step is one, and so is a product with ``W`` at the start; one or two at the end confirm
            the solution.
        splitting_step: the step ``α``; very small and very large ones converge slowly, and small
            ones magnify rounding by ``1/α``.
        fixed_iterations: spend all evaluations without ever looking at a value, so that the loop
            compiles, exports and can be mapped with ``torch.vmap``.
        check_every: evaluations between two looks at whether samples are finished; ``None`` for 1
            on the CPU and 4 on accelerators, which a look stalls.
        throw: raise :class:`stabnet.ConvergenceError` where a sample did not converge.

    Raises:
        InvalidOptionError: for an option out of its range; when called, for a map that does not
            come apart.

    References:
        Winston, Kolter: "Monotone operator equilibrium networks", 2020, section 3;
        Lions, Mercier: "Splitting algorithms for the sum of two nonlinear operators", 1979.
    """

    unrollable = True

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_evaluations: int = 200,
        splitting_step: float = 1.0,
        fixed_iterations: bool = False,
        check_every: int | None = None,
        throw: bool = False,
    ) -> None:
        super().__init__()
        self.control = Control(
            tolerance, max_evaluations, fixed_iterations, check_every, compaction=1, throw=throw
        )
        check_options(self.control, splitting_step)
        self.splitting_step = splitting_step

    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``; see :class:`stabnet.interfaces.Solver`."""
        splitting = parts(f, u, "peaceman_rachford")
        alpha = self.splitting_step
        resolvent = splitting.resolvent(alpha)

        def step(point: Point) -> Point:
            v = (1 - alpha) * point.y + alpha * point.a
            half = 2 * splitting.proximal(v, alpha) - v
            y = resolvent(half)
            return Point(y, ((1 + alpha) * y - half) / alpha)

        return solve(f, z0, u, splitting, step, self.control)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{self.control}, splitting_step={self.splitting_step}"
