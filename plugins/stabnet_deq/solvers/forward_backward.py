"""Forward–backward splitting."""

from __future__ import annotations

from typing import final

from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult, Splitting

from .control import Control
from .splitting import Point, check_options, parts, solve

__all__ = ["ForwardBackward"]


@final
class ForwardBackward(Solver):
    r"""Forward–backward splitting: a step of the affine part, then of the proximal part.

    For cells that come apart as :math:`z = \operatorname{prox}_\varphi(Wz + c)`,

    .. math:: z_{k+1} = \operatorname{prox}_{\alpha\varphi}
              \bigl((1 - \alpha) z_k + \alpha (W z_k + c)\bigr) .

    Where :math:`I - W \succeq mI`, it contracts for :math:`0 < \alpha < 2m / \|I - W\|^2`, by
    :math:`\sqrt{1 - m^2 / \|I - W\|^2}` at half of that. The residual reported is that of the cell.

    Args:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged; never
            taken below four units of rounding.
        max_evaluations: products with ``W`` and evaluations of the map at most, at least 3. Each
            step is one, and one or two at the end confirm the solution.
        splitting_step: the step ``α``, below ``2m/‖I − W‖²`` for the weights as they stand; half of
            that if ``None``.
        fixed_iterations: spend all evaluations without ever looking at a value, so that the loop
            compiles, exports and can be mapped with ``torch.vmap``. It needs ``splitting_step``,
            which is then not compared with its limit.
        check_every: evaluations between two looks at whether samples are finished; ``None`` for 1
            on the CPU and 4 on accelerators, which a look stalls.
        throw: raise :class:`stabnet.ConvergenceError` where a sample did not converge.

    Raises:
        InvalidOptionError: for an option out of its range; when called, for a map that does not
            come apart, or a step at which the weights as they stand may not contract.

    References:
        Winston, Kolter: "Monotone operator equilibrium networks", 2020, section 3;
        Lions, Mercier: "Splitting algorithms for the sum of two nonlinear operators", 1979.
    """

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_evaluations: int = 200,
        splitting_step: float | None = None,
        fixed_iterations: bool = False,
        check_every: int | None = None,
        throw: bool = False,
    ) -> None:
        super().__init__()
        self.control = Control(
            tolerance, max_evaluations, fixed_iterations, check_every, compaction=1, throw=throw
        )
        check_options(self.control, splitting_step)
        if fixed_iterations and splitting_step is None:
            raise InvalidOptionError(
                "forward_backward with fixed_iterations never looks at a value, and so cannot "
                "choose its step from the weights; give splitting_step"
            )
        self.splitting_step = splitting_step

    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``; see :class:`stabnet.interfaces.Solver`."""
        splitting = parts(f, u, "forward_backward")
        alpha = self._step(splitting)

        def step(point: Point) -> Point:
            v = (1 - alpha) * point.y + alpha * point.a
            y = splitting.proximal(v, alpha)
            return Point(y, splitting.affine(y))

        return solve(f, z0, u, splitting, step, self.control)

    def _step(self, splitting: Splitting) -> float:
        alpha = self.splitting_step
        if alpha is not None and self.control.fixed_iterations:
            return alpha
        limit = splitting.step_limit()
        if alpha is None:
            return limit / 2
        if alpha >= limit:
            raise InvalidOptionError(
                f"splitting_step={alpha} is not below {limit:.6g}, up to which forward_backward is "
                "known to converge for the weights as they stand. Leave splitting_step out, or use "
                "the solver 'peaceman_rachford', which takes any step"
            )
        return alpha

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{self.control}, splitting_step={self.splitting_step}"
