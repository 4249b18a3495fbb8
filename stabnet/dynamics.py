"""The dynamics: two leaves, :class:`Flow` and :class:`Equilibrium`, and one composite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, cast, final

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn

from .checks import dropout_seed, frozen_batch_statistics, is_differentiated, seeded
from .errors import InvalidInputError, InvalidOptionError
from .implicit import attach_implicit_gradient
from .interfaces import (
    BackwardRecord,
    Block,
    Cell,
    Dynamics,
    Features,
    Guarantee,
    Integrator,
    Solution,
    Solver,
    SolverResult,
    State,
    VectorField,
)

__all__ = ["CellField", "Equilibrium", "Flow", "Stack"]


def _first(u: Features) -> Tensor:
    """Return the first tensor of the features, whose batch, device and dtype a state takes on."""
    if u is None:
        raise InvalidInputError("a dynamics needs features to know its batch; got None")
    return u if isinstance(u, Tensor) else u[0]


def _state_dtype(u: Tensor) -> torch.dtype:
    """Return the dtype of a state driven by ``u``: autocast's half precision is not for states."""
    device = u.device.type
    half = torch.is_autocast_enabled(device) and u.dtype == torch.get_autocast_dtype(device)
    return torch.float32 if half else u.dtype


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
            batch = z.shape[0] if u is None else _first(u).shape[0]
            z = z.expand(batch, *z.shape[1:])
            flat, samples = z.flatten(0, 1), z.shape[1]
            u = pytree.tree_map(lambda p: p.repeat_interleave(samples, 0), u)
        with frozen_batch_statistics(self.cell):
            image: Tensor = self.cell(flat, u)
        return image.reshape(z.shape) - z


@final
class Flow(Dynamics):
    r"""The flow of a vector field, :math:`\dot z = F(t, z, u)`, from an initial state.

    Args:
        vector_field: the right-hand side.
        integrator: how it is integrated.
        initial: ``"zeros"``; ``"features"``, the flow starts at ``u`` and is autonomous in it; or
            ``"learned"``, one learned state for all inputs.
        times: default interval or grid of times, at least two.

    Raises:
        InvalidOptionError: for another ``initial``, or ``"features"`` whose shape is not the
            state's.
    """

    def __init__(
        self,
        vector_field: VectorField,
        integrator: Integrator,
        initial: Literal["zeros", "features", "learned"] = "zeros",
        times: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        if initial not in ("zeros", "features", "learned"):
            raise InvalidOptionError(
                f"initial={initial!r} is unknown; it is 'zeros', 'features' or 'learned'"
            )
        self.vector_field = vector_field
        self.integrator = integrator
        self.initial = initial
        self.times = tuple(float(t) for t in times)
        if initial == "learned":
            self.start = nn.Parameter(torch.zeros(vector_field.state_shape))

    def forward(
        self, u: Features, times: Sequence[float] | Float[Tensor, " times"] | None = None
    ) -> Solution:
        """Integrate from the initial state; see :class:`stabnet.interfaces.Dynamics`."""
        like = _first(u)
        shape = (like.shape[0], *self.vector_field.state_shape)
        dtype = _state_dtype(like)
        if self.initial == "features":
            if like.shape != shape:
                raise InvalidInputError(
                    f"a flow that starts at its features needs them of shape {shape}; "
                    f"got {tuple(like.shape)}"
                )
            z0, driving = like.to(dtype), None
        elif self.initial == "learned":
            z0, driving = self.start.to(dtype).expand(shape), u
        else:
            z0, driving = like.new_zeros(shape, dtype=dtype), u
        at: Sequence[float] | Tensor = self.times if times is None else times
        trajectory = self.integrator(self.vector_field, z0, at, driving)
        return Solution(
            state=trajectory.states[-1],
            nfe=trajectory.nfe,
            times=torch.as_tensor(at, dtype=dtype, device=like.device),
            states=trajectory.states,
        )


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
        like = _first(u)
        batch, coupled = like.shape[0], not self.cell.per_sample
        if coupled and batch == 0:
            raise InvalidInputError(
                "an empty batch has no equilibrium where samples are coupled (batch normalization "
                "in training mode); give at least one sample, or call model.eval()"
            )
        dtype, seed = _state_dtype(like), dropout_seed(self.cell)
        flat, unravel = _ravel(_zeros(like, batch, self.cell.state_shape, dtype), coupled)

        def f(z: Tensor, u: Features) -> Tensor:
            with seeded(seed, z.device):
                return _ravel(self.cell(unravel(z), u), coupled)[0].to(z.dtype)

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
            return _ravel(image, coupled)[0].to(z.dtype)

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
        flat, image = _ravel(z, False)[0], _ravel(self.cell(z, u), False)[0].to(result.state.dtype)
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


def _zeros(
    like: Tensor,
    batch: int,
    shape: tuple[int, ...] | tuple[tuple[int, ...], ...],
    dtype: torch.dtype,
) -> State:
    """Return the zero state: a tensor, or for a tuple of shapes a tuple of tensors."""
    if shape and isinstance(shape[0], tuple):
        return tuple(like.new_zeros((batch, *part), dtype=dtype) for part in shape)
    return like.new_zeros((batch, *cast("tuple[int, ...]", shape)), dtype=dtype)


def _ravel(state: State, joint: bool) -> tuple[Tensor, Callable[[Tensor], State]]:
    """Return a state as ``(batch, n)``, or ``(1, batch·n)`` for a joint problem, and the way back.

    The way back takes any number of rows, so that solvers may drop some.
    """
    parts = state if isinstance(state, tuple) else (state,)
    shapes = [p.shape[1:] for p in parts]
    sizes = [s.numel() for s in shapes]
    flat = torch.cat([p.flatten(1) for p in parts], 1) if len(parts) > 1 else parts[0].flatten(1)
    width = flat.shape[1]

    def unravel(z: Tensor) -> State:
        rows = z.reshape(-1, width)
        unraveled = tuple(
            part.unflatten(1, shape)
            for part, shape in zip(rows.split(sizes, 1), shapes, strict=True)
        )
        return unraveled if isinstance(state, tuple) else unraveled[0]

    return (flat.reshape(1, -1) if joint else flat), unravel


@final
class Stack(Dynamics):
    """Stages one after the other; a stage is a block or any dynamics.

    A dynamics is driven by the state of the stage before it (by the features, if it is the first);
    a block maps that state and may look at the features that the stack was given.

    Args:
        stages: at least one stage.

    Raises:
        InvalidOptionError: if there is no stage.
    """

    def __init__(self, stages: Iterable[Block | Dynamics]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        if not self.stages:
            raise InvalidOptionError("a stack needs at least one stage; got none")

    def forward(
        self, u: Features, times: Sequence[float] | Float[Tensor, " times"] | None = None
    ) -> Solution:
        """Run all stages; see :class:`stabnet.interfaces.Dynamics`.

        Raises:
            InvalidInputError: if ``times`` are given; each stage has its own.
        """
        if times is not None:
            raise InvalidInputError(
                "a stack has no common time; look at `Solution.stages` of its flows instead"
            )
        return self.resume(u, 0, u)

    def resume(self, state: State | None, stage: int, u: Features) -> Solution:
        """Run the stages from index ``stage`` on.

        Args:
            state: the state before that stage.
            stage: index of the first stage to run.
            u: the features that the stack was given.
        """
        solutions: list[Solution] = []
        for module in self.stages[stage:]:
            out = module(state) if isinstance(module, Dynamics) else module(state, u)
            solution = out if isinstance(out, Solution) else Solution(state=out)
            solutions.append(solution)
            state = solution.state
        assert state is not None
        residuals = [s.residual for s in solutions if s.residual is not None]
        converged = [s.converged for s in solutions if s.converged is not None]
        return Solution(
            state=state,
            nfe=sum(s.nfe for s in solutions),
            residual=torch.stack(residuals).amax(0) if residuals else None,
            converged=torch.stack(converged).all(0) if converged else None,
            stages=tuple(solutions),
        )
