"""Broyden's method with limited memory."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult

from .control import Control
from .history import put, residual_unit
from .iteration import Method, iterate

__all__ = ["Broyden"]


@final
class Broyden(Solver):
    r"""Broyden's first ("good") method with limited memory, and a safeguard.

    A quasi-Newton method for :math:`g(z) = f(z) - z = 0`. With :math:`H \approx (I - J_f)^{-1}`,
    at first the identity, and the last differences :math:`\Delta z, \Delta g`,

    .. math:: H \leftarrow H + a\, b^\top, \quad b = H^\top \Delta z, \quad
              a = \frac{\Delta z + H \Delta g}{-\Delta z^\top H \Delta g}, \qquad
              z \leftarrow z + H g .

    The last ``memory`` pairs :math:`(a, b)` are kept. A pair whose denominator is rounding alone is
    left out. A sample whose residual grows to four times its best drops its memory and takes a
    plain step from its best iterate.

    Args:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged; never
            taken below four units of rounding.
        max_evaluations: evaluations of the map at most.
        memory: number of pairs kept.
        fixed_iterations: spend all evaluations without ever looking at a value, so that the loop
            compiles, exports and can be mapped with ``torch.vmap``.
        check_every: evaluations between two looks at whether samples are finished; ``None`` for 1
            on the CPU and 4 on accelerators, which a look stalls.
        compaction: share of finished samples at which they leave the batch; 1 keeps them all.
        throw: raise :class:`stabnet.ConvergenceError` where a sample did not converge.

    Raises:
        InvalidOptionError: for an option out of its range.

    References:
        Broyden: "A class of methods for solving nonlinear simultaneous equations", 1965, (4.5);
        Bai, Kolter, Koltun: "Deep Equilibrium Models", 2019, (9), with the signs of ``g``.
    """

    unrollable = True

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_evaluations: int = 50,
        memory: int = 10,
        fixed_iterations: bool = False,
        check_every: int | None = None,
        compaction: float = 0.2,
        throw: bool = False,
    ) -> None:
        super().__init__()
        self.control = Control(
            tolerance, max_evaluations, fixed_iterations, check_every, compaction, throw
        )
        if memory < 1:
            raise InvalidOptionError(f"memory must be at least 1; got {memory}")
        self.memory = memory

    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``; see :class:`stabnet.interfaces.Solver`."""
        return iterate(f, z0, u, _SecantUpdates(self.memory), self.control)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{self.control}, memory={self.memory}"


@final
class _SecantUpdates(Method):
    """The pairs of ``H = I + Σ a bᵀ``, in units of each sample's first residual."""

    growth = 1e3
    patience = 0

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._count = 0
        self._unit = self._last = self._a = self._b = torch.empty(0)

    def step(self, z: Tensor, image: Tensor, g: Tensor) -> Tensor:
        started = self._last.ndim == 3
        if not started:
            self._allocate(g)
        now = torch.stack([g, z], 1).to(self._a.dtype) * self._unit
        last, self._last = self._last, now
        if not started:
            return image
        scaled = now[:, 0]
        dg, dz = (now - last).unbind(1)
        ahead, behind = self._apply(torch.stack([scaled, dg], 1), self._a, self._b).unbind(1)
        b = self._apply(dz[:, None], self._b, self._a)[:, 0]
        denominator = -(dz * behind).sum(1, keepdim=True)
        lengths = torch.linalg.vector_norm(dz, dim=1) * torch.linalg.vector_norm(behind, dim=1)
        sound = denominator.abs() > 16 * torch.finfo(g.dtype).eps * lengths[:, None]
        a = torch.where(sound, (dz + behind) / torch.where(sound, denominator, 1), 0)
        slot = self._count % self._memory
        self._count += 1
        b = torch.where(sound, b, 0)  # which may be NaN after a step from where the map is
        self._a, self._b = put(self._a, a, 1, slot), put(self._b, b, 1, slot)
        step = ahead + a * (b * scaled).sum(1, keepdim=True)
        return torch.addcdiv(z, step.to(z.dtype), self._unit[:, 0].to(z.dtype))

    def restart(self, rows: Tensor) -> None:
        if self._count:
            self._a = torch.where(rows[:, None, None], 0, self._a)
            self._b = torch.where(rows[:, None, None], 0, self._b)

    def keep(self, rows: Tensor) -> None:
        if self._last.ndim == 3:
            self._unit, self._last = self._unit[rows], self._last[rows]
            self._a, self._b = self._a[rows], self._b[rows]

    def _allocate(self, g: Tensor) -> None:
        self._unit = residual_unit(g)[:, None]
        # Like g, which is batched if anything that torch.vmap maps over is.
        self._a = g.new_zeros(g.shape[0], self._memory, g.shape[1], dtype=self._unit.dtype)
        self._b = torch.zeros_like(self._a)

    def _apply(
        self, x: Float[Tensor, "rows k n"], left: Tensor, right: Tensor
    ) -> Float[Tensor, "rows k n"]:
        """Return ``(I + Σ left rightᵀ) x``."""
        held = min(self._count, self._memory)
        if not held:
            return x
        return x + torch.bmm(torch.bmm(x, right[:, :held].mT), left[:, :held])
