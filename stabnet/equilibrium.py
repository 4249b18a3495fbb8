"""The equilibrium of a cell, and the vector field that vanishes there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor

from .checks import dropout_seed, frozen_batch_statistics, is_differentiated, seeded
from .errors import InvalidInputError
from .implicit import attach_implicit_gradient
from .interfaces import (
    BackwardRecord,
    Cell,
    Dynamics,
    Features,
    Guarantee,
    Solution,
    Solver,
    SolverResult,
    State,
    VectorField,
)
from .states import first_tensor, ravel, state_dtype, zero_state

__all__ = ["CellField", "Equilibrium"]


@final
class CellField(VectorField):
    """The vector field ``f(z, u) − z`` of a cell, zero exactly at its equilibria.

    It shares the cell, and leaves the running statistics of its batch normalization alone.

    Args:
        cell: the cell, with tensor states.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        self.state_shape = cast("tuple[int, ...]", cell.state_shape)
        self.feature_shape = cell.feature_shape

    def forward(self, t: float | Tensor, z: Tensor, u: Features = None) -> Tensor:
        """Evaluate ``f(z, u) − z``; see :class:`stabnet.interfaces.VectorField`."""
        sampled = z.ndim == len(self.state_shape) + 2
        flat = z
        if sampled:  # a cell knows no sample dimension, so here features are repeated
            batch = z.shape[0] if u is None else first_tensor(u).shape[0]
            z = z.expand(batch, *z.shape[1:])
            flat, samples = z.flatten(0, 1), z.shape[1]
            u = pytree.tree_map(lambda p: p.repeat_interleave(samples, 0), u)
        with frozen_batch_statistics(self.cell):
            image: Tensor = self.cell(flat, u)
        return image.reshape(z.shape) - z


@final
class Equilibrium(Dynamics):
    r"""The equilibrium :math:`z^* = f(z^*, u)` of a cell, differentiated implicitly.

    Where the cell couples the samples of a batch (batch normalization in training mode), the
    batch is solved as one problem: ``converged`` is then the batch's. Batch-norm statistics are
    updated once per forward pass, at the equilibrium. Masks of dropout modules are drawn once per
    forward pass, so that all evaluations, those of the backward pass too, are of one map.

    Args:
        cell: the map whose fixed point is wanted.
        solver: finds it.
        backward_solver: solves the adjoint equation; by default ``solver``.
    """

    def __init__(self, cell: Cell, solver: Solver, backward_solver: Solver | None = None) -> None:
        super().__init__()
        self.cell = cell
        self.solver = solver
        self.backward_solver = backward_solver

    def forward(
        self, u: Features, times: Sequence[float] | Float[Tensor, " times"] | None = None
    ) -> Solution:
        """Solve for the equilibrium; see :class:`stabnet.interfaces.Dynamics`.

        Raises:
            InvalidInputError: if ``times`` are given, since an equilibrium has none; or for an
                empty batch whose samples would be coupled.
        """
        if times is not None:
            raise InvalidInputError("an equilibrium has no trajectory; leave `times` out")
        like = first_tensor(u)
        batch, coupled = like.shape[0], not self.cell.per_sample
        if coupled and batch == 0:
            raise InvalidInputError(
                "an empty batch has no equilibrium where samples are coupled (batch normalization "
                "in training mode); give at least one sample, or call model.eval()"
            )
        dtype, seed = state_dtype(like), dropout_seed(self.cell)
        flat, unravel = ravel(zero_state(like, batch, self.cell.state_shape, dtype), coupled)

        def f(z: Tensor, u: Features) -> Tensor:
            with seeded(seed, z.device):
                return ravel(self.cell(unravel(z), u), coupled)[0].to(z.dtype)

        with torch.no_grad(), frozen_batch_statistics(self.cell):
            # A joint problem has one row, which rows of features cannot follow: close over them.
            result = self.solver(f if not coupled else lambda z, _: f(z, u), flat, u)
        record = BackwardRecord()
        state = self._attach(result.state, u, coupled, unravel, record, seed)
        with seeded(seed, like.device):
            residual, converged, nfe = self._per_sample(result, u, coupled, unravel, batch)
        return Solution(
            state=unravel(state), nfe=nfe, residual=residual, converged=converged, backward=record
        )

    def _attach(
        self,
        z: Tensor,
        u: Features,
        coupled: bool,
        unravel: Callable[[Tensor], State],
        record: BackwardRecord,
        seed: int | None,
    ) -> Tensor:
        """Give the solution its gradient in the features and the cell's parameters."""
        features, spec = pytree.tree_flatten(u)
        parameters = dict(self.cell.named_parameters())
        arguments = (*features, *parameters.values())
        if not torch.is_grad_enabled() or not any(map(is_differentiated, arguments)):
            return z
        buffers = dict(self.cell.named_buffers())
        names, cell = tuple(parameters), self.cell

        def f(z: Tensor, *arguments: Tensor) -> Tensor:
            u = pytree.tree_unflatten(list(arguments[: len(features)]), spec)
            tensors = dict(zip(names, arguments[len(features) :], strict=True))
            with seeded(seed, z.device), frozen_batch_statistics(cell):
                image = torch.func.functional_call(cell, {**tensors, **buffers}, (unravel(z), u))
            return ravel(image, coupled)[0].to(z.dtype)

        solver = self.solver if self.backward_solver is None else self.backward_solver
        return attach_implicit_gradient(f, z, arguments, solver, record)

    @torch.no_grad()
    def _per_sample(
        self,
        result: SolverResult,
        u: Features,
        coupled: bool,
        unravel: Callable[[Tensor], State],
        batch: int,
    ) -> tuple[Tensor, Tensor, int]:
        """Return residual and convergence per sample, and the evaluations spent.

        For a joint problem this costs one more evaluation, the one that updates the batch-norm
        statistics at the equilibrium.
        """
        if not coupled:
            return result.residual, result.converged, result.nfe
        z = unravel(result.state)
        flat, image = ravel(z, False)[0], ravel(self.cell(z, u), False)[0].to(result.state.dtype)
        difference = torch.linalg.vector_norm(image - flat, dim=-1)
        scale = torch.linalg.vector_norm(image, dim=-1)
        residual = torch.where(difference == 0, difference, difference / scale)
        return residual, result.converged.expand(batch), result.nfe + 1

    def guarantees(self) -> list[Guarantee]:
        """Return what is known of the equilibrium: its residual, not its existence."""
        return [
            Guarantee(
                claim="the state solves the equilibrium equation to the residual reported for "
                "each sample",
                formula="‖f(z*, u) − z*‖ ≤ residual · ‖f(z*, u)‖",
                source="computed by the solver at the state that it returns",
                status="conditional",
                assumptions=("the cell is evaluated in the same mode and precision",),
                detail="neither existence nor uniqueness of an equilibrium is guaranteed for this "
                "cell; `Solution.converged` says for which samples the tolerance was met",
            )
        ]
