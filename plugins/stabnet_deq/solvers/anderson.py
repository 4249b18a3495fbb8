"""Anderson acceleration."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult

from .control import Control
from .fused import FusedExtrapolation
from .history import combine, put, residual_unit, squares_stay_in_range
from .iteration import Method, iterate

__all__ = ["Anderson"]

_WRITTEN_OUT = 6
"""Largest memory that is written out under compilation: the program grows as its cube."""


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
    memory and takes a plain step from its best iterate. One whose best residual does not halve in
    15 evaluations takes plain steps for a while: this ends nilpotent maps, which plain iteration
    solves in as many steps as their index, and a memory shorter than that index does not. Where it
    is shorter, up to about three times the evaluations of plain iteration were measured.

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
        method: Method
        if torch.compiler.is_compiling() and self.memory <= _WRITTEN_OUT:
            method = FusedExtrapolation(self.memory, self.mixing, self.regularization)
        else:
            method = _Extrapolation(self.memory, self.mixing, self.regularization)
        return iterate(f, z0, u, method, self.control)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"{self.control}, memory={self.memory}, mixing={self.mixing}"


@final
class _Extrapolation(Method):
    """The last differences of residuals and of mixed images, and the Gram matrix of the former.

    Residuals are in units of each sample's first, so that squares stay in range. The ridge is
    relative to the diagonal, as one on the matrix scaled to unit diagonal would be.
    """

    growth = 4.0
    patience = 15

    def __init__(self, memory: int, mixing: float, regularization: float) -> None:
        self._memory, self._mixing, self._regularization = memory, mixing, regularization
        self._count = 0
        self._last: tuple[Tensor, Tensor] | None = None
        self._dg = self._dy = self._gram = torch.empty(0)
        self._unit: Tensor | None = None
        self._fresh: Tensor | None = None  # rows without a last iterate, for they have restarted

    def step(self, z: Tensor, image: Tensor, g: Tensor) -> Tensor:
        y = image if self._mixing == 1 else z + self._mixing * g
        last, self._last = self._last, (g, y)
        if last is None:
            self._allocate(g)
            return y
        right = self._push(g - last[0], y - last[1], g)
        held = min(self._count, self._memory)
        gamma = self._coefficients(self._gram[:, :held, :held], right[:, :held])
        return y - combine(gamma, self._dy[:, :held]).to(y.dtype)

    def restart(self, rows: Tensor) -> None:
        self._fresh = rows
        if self._count:
            wide = rows[:, None, None]
            self._dg, self._dy = torch.where(wide, 0, self._dg), torch.where(wide, 0, self._dy)
            unit = torch.eye(self._memory, dtype=self._gram.dtype, device=self._gram.device)
            self._gram = torch.where(wide, unit, self._gram)

    def keep(self, rows: Tensor) -> None:
        if self._last is not None:
            self._last = self._last[0][rows], self._last[1][rows]
            self._unit = None if self._unit is None else self._unit[rows]
            self._dg, self._dy, self._gram = self._dg[rows], self._dy[rows], self._gram[rows]
        self._fresh = None if self._fresh is None else self._fresh[rows]

    def _allocate(self, g: Tensor) -> None:
        rows, n = g.shape
        m, dtype = self._memory, torch.promote_types(g.dtype, torch.float32)
        if not (self.looking and squares_stay_in_range(g)):
            self._unit = residual_unit(g)
        # Like g, which is batched if anything that torch.vmap maps over is.
        self._dg = g.new_zeros(rows, m, n, dtype=dtype)
        self._dy = torch.zeros_like(self._dg)
        self._gram = g.new_zeros(rows, m, m, dtype=dtype)

    def _push(self, dg: Tensor, dy: Tensor, g: Tensor) -> Float[Tensor, "rows memory"]:
        """Take in a pair of differences; return the products of all held with the residual."""
        slot = self._count % self._memory
        self._count += 1
        if self._fresh is not None:
            dg, dy = (torch.where(self._fresh[:, None], 0, d) for d in (dg, dy))
            self._fresh = None
        both = torch.stack([dg, g], 1).to(self._dg.dtype)
        if self._unit is not None:
            both = both * self._unit[:, :, None]
        self._dg = put(self._dg, both[:, 0], 1, slot)
        self._dy = put(self._dy, dy.to(self._dy.dtype), 1, slot)
        products = torch.bmm(both, self._dg.mT)
        own = products[:, 0, slot]
        ridge = max(self._regularization, 8 * torch.finfo(g.dtype).eps)
        # A difference of zero has products of zero with all others, and so gets no coefficient.
        own.copy_(torch.where(own > 0, own * (1 + ridge), 1))
        row, right = products.unbind(1)
        self._gram = put(put(self._gram, row, 1, slot), row, 2, slot)
        return right

    def _coefficients(
        self, gram: Float[Tensor, "rows m m"], right: Float[Tensor, "rows m"]
    ) -> Float[Tensor, "rows m"]:
        """Solve the normal equations; a singular matrix leaves its sample a plain step."""
        if gram.shape[1] == 1:
            return right / gram[:, 0]
        gamma: Tensor
        gamma, info = torch.linalg.solve_ex(gram, right)
        gamma = gamma.contiguous()  # sums of a row round alike only in one layout
        sound = torch.isfinite(gamma)
        if self.looking and bool(sound.all()):  # not so if a system was singular
            return gamma
        return gamma.masked_fill(~(sound.all(1) & (info == 0))[:, None], 0)
