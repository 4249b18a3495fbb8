"""Anderson acceleration."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult

from .control import Control
from .history import combine, put, residual_unit
from .iteration import Method, iterate

__all__ = ["Anderson"]


@final
class Anderson(Solver):
    r"""Anderson acceleration of type II in difference form, with a safeguard.

    With residuals :math:`g_k = f(z_k) - z_k`, mixed images :math:`y_k = z_k + \beta g_k` and the
    last :math:`m` differences of both,

    .. math:: \gamma = \arg\min_\gamma \|g_k - \Delta G\,\gamma\|, \qquad
              z_{k+1} = y_k - \Delta Y\,\gamma .

    This is the update with weights :math:`\alpha_i` that sum to one, the differences of
    :math:`\gamma` being the weights. The Gram matrix of the differences is updated by one row per
    step, scaled to unit diagonal and regularized relative to it, so the iteration does not depend
    on the scale of the state. A sample whose residual grows to four times its best drops its
    memory and takes a plain step from its best iterate.

    Args:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged; never
            taken below four units of rounding.
        max_evaluations: evaluations of the map at most.
        memory: number of differences kept, ``m``.
        mixing: the share ``β`` of the residual that is mixed in, in (0, 1].
        regularization: ridge on the scaled Gram matrix; never taken below the rounding error of
            its entries.
        fixed_iterations: spend all evaluations without ever looking at a value, so that the loop
            compiles, exports and can be mapped with ``torch.vmap``.
        check_every: evaluations between two looks at whether samples are finished; ``None`` for 1
            on the CPU and 4 on accelerators, which a look stalls.
        compaction: share of finished samples at which they leave the batch; 1 keeps them all.
        throw: raise :class:`stabnet.ConvergenceError` where a sample did not converge.

    Raises:
        InvalidOptionError: for an option out of its range.

    References:
        Walker, Ni: "Anderson Acceleration for Fixed-Point Iterations", 2011, (2.1)–(2.2);
        [LyaDEQ] uses memory 5, at most 50 evaluations, mixing 1.
    """

    unrollable = True

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_evaluations: int = 50,
        memory: int = 5,
        mixing: float = 1.0,
        regularization: float = 1e-10,
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
        if not 0 < mixing <= 1:
            raise InvalidOptionError(f"mixing must be in (0, 1]; got {mixing}")
        if not regularization >= 0:
            raise InvalidOptionError(f"regularization must not be negative; got {regularization}")
        self.memory = memory
        self.mixing = mixing
        self.regularization = regularization

    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``; see :class:`stabnet.interfaces.Solver`."""
        method = _Extrapolation(self.memory, self.mixing, self.regularization)
        return iterate(f, z0, u, method, self.control)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{self.control}, memory={self.memory}, mixing={self.mixing}"


@final
class _Extrapolation(Method):
    """The last differences of residuals and of mixed images, and the Gram matrix of the former.

    Both are measured in units of each sample's first residual, so that squares stay in range. The
    ridge is relative to the diagonal, as one on the matrix scaled to unit diagonal would be.
    """

    growth = 4.0
    patience = 15

    def __init__(self, memory: int, mixing: float, regularization: float) -> None:
        self._memory, self._mixing, self._regularization = memory, mixing, regularization
        self._count = 0
        self._unit = self._last = self._held = self._gram = self._ridge = torch.empty(0)
        self._valid: Tensor | None = None

    def step(self, z: Tensor, image: Tensor, g: Tensor) -> Tensor:
        y = image if self._mixing == 1 else z + self._mixing * g
        started = self._held.ndim == 3
        if not started:
            self._allocate(g)
        pair = torch.cat([g, y], 1).to(self._held.dtype) * self._unit
        last, self._last = self._last, pair
        if not started:
            return y
        right = self._push(pair - last, pair)
        count = min(self._count, self._memory)
        factor, info = torch.linalg.cholesky_ex(self._gram[:, :count, :count])
        gamma = torch.cholesky_solve(right[:, :count, None], factor)
        # A singular matrix leaves its sample a plain step.
        gamma = torch.where(info[:, None, None] == 0, gamma, 0)
        n = g.shape[1]
        correction = combine(gamma[..., 0], self._held[:, :count, n:])
        return torch.addcdiv(y, correction.to(y.dtype), self._unit.to(y.dtype), value=-1)

    def restart(self, rows: Tensor) -> None:
        if self._count:
            valid = torch.ones_like(self._gram[:, 0]) if self._valid is None else self._valid
            self._valid = valid = valid * (~rows)[:, None]
            gram = self._gram * valid[:, :, None] * valid[:, None, :]
            self._gram = gram + torch.diag_embed(1 - valid)

    def keep(self, rows: Tensor) -> None:
        if self._held.ndim == 3:
            self._unit, self._last = self._unit[rows], self._last[rows]
            self._held, self._gram = self._held[rows], self._gram[rows]
            self._valid = None if self._valid is None else self._valid[rows]

    def _allocate(self, g: Tensor) -> None:
        rows, n = g.shape
        m, self._unit = self._memory, residual_unit(g)
        dtype = self._unit.dtype
        ridge = max(self._regularization, 8 * torch.finfo(g.dtype).eps)
        self._ridge = 1 + ridge * torch.eye(m, dtype=dtype, device=g.device)
        # Like g, which is batched if anything that torch.vmap maps over is.
        self._held = g.new_zeros(rows, m, 2 * n, dtype=dtype)
        self._gram = g.new_zeros(rows, m, m, dtype=dtype)

    def _push(self, difference: Tensor, pair: Tensor) -> Float[Tensor, "rows memory"]:
        """Take in a pair of differences; return the products of all held with the residual."""
        slot = self._count % self._memory
        self._count += 1
        n = pair.shape[1] // 2
        self._held = put(self._held, difference, 1, slot)
        both = torch.stack([difference[:, :n], pair[:, :n]], 1)
        products = torch.bmm(both, self._held[:, :, :n].mT)
        if self._valid is not None:
            self._valid = put(self._valid, torch.ones_like(self._valid[:, 0]), 1, slot)
            products = products * self._valid[:, None]
        row, right = products.unbind(1)
        self._gram = put(self._gram, row, 1, slot)
        self._gram = put(self._gram, row * self._ridge[slot], 2, slot)
        return right
