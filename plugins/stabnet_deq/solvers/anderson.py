"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Features, FixedPointMap, Solver, SolverResult

from .progress import Progress, check_common_options

__all__ = ["Anderson"]

_SAFEGUARD = 4.0
"""Growth of the residual over the best since the last restart that makes a sample restart."""


@final
class Anderson(Solver):
    r"""Anderson acceleration of type II in difference form, with a safeguard.

    With residuals :math:`g_k = f(z_k) - z_k` and the last :math:`m` differences
    :math:`\Delta z_i, \Delta g_i`,

    .. math:: \gamma = \arg\min_\gamma \|g_k - \Delta G\,\gamma\|, \qquad
              z_{k+1} = z_k + \beta g_k - (\Delta Z + \beta\,\Delta G)\,\gamma .

    This is the update with weights :math:`\alpha_i` that sum to one, the differences of
    :math:`\gamma` being the weights. The Gram matrix of the differences is updated by one row per
    step, scaled to unit diagonal and regularized relative to it, so the iteration does not depend
    on the scale of the state. A sample whose residual grows to four times its best drops its
    memory and takes a plain step from its best iterate.

    Args:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged.
        max_evaluations: evaluations of the map at most.
        memory: number of differences kept, ``m``.
        mixing: the share ``β`` of the residual that is mixed in, in (0, 1].
        regularization: ridge on the scaled Gram matrix; never taken below the rounding error of
            its entries.
        fixed_iterations: spend all evaluations without ever looking at the residual, so that the
            loop compiles, exports and can be mapped with ``torch.vmap``.

    Raises:
        InvalidOptionError: for an option out of its range.

    References:
        Walker, Ni: "Anderson Acceleration for Fixed-Point Iterations", 2011, (2.1)–(2.2);
        [LyaDEQ] uses memory 5, at most 50 evaluations, mixing 1.
    """

    def __init__(
        self,
        tolerance: float = 1e-5,
        max_evaluations: int = 50,
        memory: int = 5,
        mixing: float = 1.0,
        regularization: float = 1e-10,
        fixed_iterations: bool = False,
    ) -> None:
        super().__init__()
        check_common_options(tolerance, max_evaluations)
        if memory < 1:
            raise InvalidOptionError(f"memory must be at least 1; got {memory}")
        if not 0 < mixing <= 1:
            raise InvalidOptionError(f"mixing must be in (0, 1]; got {mixing}")
        if not regularization >= 0:
            raise InvalidOptionError(f"regularization must not be negative; got {regularization}")
        self.tolerance = tolerance
        self.max_evaluations = max_evaluations
        self.memory = memory
        self.mixing = mixing
        self.regularization = regularization
        self.fixed_iterations = fixed_iterations

    def forward(
        self, f: FixedPointMap, z0: Float[Tensor, "batch n"], u: Features = None
    ) -> SolverResult:
        """Solve ``z = f(z, u)`` from ``z0``; see :class:`stabnet.interfaces.Solver`."""
        progress = Progress(z0, self.tolerance, self.fixed_iterations)
        window: _Window | None = None
        reference = torch.full_like(progress.residual, torch.inf)
        z = z0
        for _ in range(self.max_evaluations):
            image = f(z, u)
            residual = progress.update(z, image)
            if progress.finished():
                break
            restart = residual > _SAFEGUARD * reference
            # After a restart any residual is accepted once, or one bad step would recur for ever.
            reference = torch.where(restart, torch.inf, torch.minimum(reference, residual))
            # Autocast is for the map; the least-squares problem needs the state's precision.
            with torch.autocast(z0.device.type, enabled=False):
                g = image - z
                if window is None:
                    # Like the first residual, which is batched if anything that torch.vmap maps is.
                    window = _Window.empty(g, self.memory, self.regularization)
                window.push(z, g)
                window.drop(restart)
                step = window.step(z, g, self.mixing)
            step = torch.where(restart[:, None], progress.best_image, step)
            z = torch.where(progress.settled[:, None], progress.best, step)
        return progress.result()

    def extra_repr(self) -> str:
        """Return the options."""
        return (
            f"tolerance={self.tolerance}, max_evaluations={self.max_evaluations}, "
            f"memory={self.memory}, mixing={self.mixing}"
        )


@dataclass
class _Window:
    """The last differences of iterates and residuals, scaled to residual differences of length one.

    The Gram matrix of the latter then has a unit diagonal. A slot that holds nothing holds zeros.
    """

    dz: Float[Tensor, "batch memory n"]
    dg: Float[Tensor, "batch memory n"]
    gram: Float[Tensor, "batch memory memory"]
    valid: Bool[Tensor, "batch memory"]
    ridge: float
    last: tuple[Tensor, Tensor] | None = None
    count: int = 0

    @classmethod
    def empty(cls, g: Tensor, memory: int, regularization: float) -> _Window:
        """Return an empty window for residuals like ``g``, in single precision at least."""
        batch, n = g.shape
        dtype = torch.promote_types(g.dtype, torch.float32)
        return cls(
            g.new_zeros(batch, memory, n, dtype=dtype),
            g.new_zeros(batch, memory, n, dtype=dtype),
            g.new_zeros(batch, memory, memory, dtype=dtype),
            g.new_zeros(batch, memory, dtype=torch.bool),
            max(regularization, 8 * torch.finfo(g.dtype).eps),
        )

    def push(self, z: Tensor, g: Tensor) -> None:
        """Take in an iterate and its residual."""
        if self.last is not None:
            slot = self.count % self.dz.shape[1]
            dz, dg = (z - self.last[0]).to(self.dz.dtype), (g - self.last[1]).to(self.dg.dtype)
            # Scaling by the largest entry first keeps the squares in range.
            largest = dg.abs().amax(-1, keepdim=True)
            length = largest * torch.linalg.vector_norm(dg / largest, dim=-1, keepdim=True)
            # A difference of zero (a settled sample) or beyond the float range carries nothing.
            valid = torch.isfinite(length) & (length > 0)
            self.dz[:, slot] = torch.where(valid, dz / length, 0)
            self.dg[:, slot] = torch.where(valid, dg / length, 0)
            self.valid[:, slot] = valid[:, 0]
            row = torch.einsum("bmn,bn->bm", self.dg, self.dg[:, slot])
            self.gram[:, slot, :] = row
            self.gram[:, :, slot] = row
            self.count += 1
        self.last = (z, g)

    def drop(self, rows: Bool[Tensor, " batch"]) -> None:
        """Forget the differences of some samples."""
        self.valid = self.valid & ~rows[:, None]

    def step(self, z: Tensor, g: Tensor, mixing: float) -> Float[Tensor, "batch n"]:
        """Return the next iterate; a plain step for samples without a usable window."""
        both = self.valid[:, :, None] & self.valid[:, None, :]
        gram = torch.where(both, self.gram, 0)
        gram = gram + torch.diag_embed(self.ridge + (~self.valid).to(gram.dtype))
        products = torch.einsum("bmn,bn->bm", self.dg, g.to(self.dg.dtype))
        right = torch.where(self.valid, products, 0)
        factor, info = torch.linalg.cholesky_ex(gram)
        gamma = torch.cholesky_solve(right[..., None], factor)[..., 0]
        usable = (info == 0) & torch.isfinite(gamma).all(-1)
        gamma = torch.where(usable[:, None], gamma, 0)
        correction = torch.einsum("bm,bmn->bn", gamma, self.dz + mixing * self.dg)
        return z + mixing * g - correction.to(z.dtype)
