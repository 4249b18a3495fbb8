"""The equilibrium of a cell, and the vector field that vanishes there."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, cast, final, get_args

import torch
import torch.utils._pytree as pytree
from jaxtyping import Float
from torch import Tensor, nn

from .bounds import NoBoundError
from .checks import dropout_seed, frozen_batch_statistics, in_modes, is_differentiated, seeded
from .errors import InvalidInputError, InvalidOptionError
from .implicit import FixedPointProblem, attach_implicit_gradient
from .interfaces import (
    BackwardRecord,
    BoundsEquilibria,
    Cell,
    Dynamics,
    Features,
    Guarantee,
    Solution,
    Solver,
    SolverResult,
    SplitCell,
    Splitting,
    State,
    VectorField,
)
from .states import check_state, first_tensor, ravel, state_dtype, unraveler, zero_state
from .truncated import attach_phantom_gradient

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


Gradient = Literal["implicit", "phantom", "unrolled"]


@final
class Equilibrium(Dynamics):
    r"""The equilibrium :math:`z^* = f(z^*, u)` of a cell.

    Where the cell couples the samples of a batch (batch normalization in training mode), the
    batch is solved as one problem: ``converged`` is then the batch's. Batch-norm statistics are
    updated once per forward pass, at the equilibrium. Masks of dropout modules are drawn once per
    forward pass, so that all evaluations, those of the backward pass too, are of one map.

    Args:
        cell: the map whose fixed point is wanted.
        solver: finds it.
        backward_solver: solves the adjoint equation of the implicit gradient; by default
            ``solver``.
        gradient: ``"implicit"``, the gradient of the equilibrium by the implicit function theorem;
            ``"phantom"``, that of a few steps from the equilibrium; ``"unrolled"``, that of the
            solver's own iterations.
        phantom_steps: number of those steps; 1 undamped step is the Jacobian-free gradient.
        phantom_damping: share ``λ`` of the image in each of those steps, in (0, 1].

    Raises:
        InvalidOptionError: for an unknown gradient, phantom options out of range, or an unrolled
            gradient of a solver that cannot be differentiated through.
    """

    def __init__(
        self,
        cell: Cell,
        solver: Solver,
        backward_solver: Solver | None = None,
        gradient: Gradient = "implicit",
        phantom_steps: int = 1,
        phantom_damping: float = 1.0,
    ) -> None:
        super().__init__()
        if gradient not in get_args(Gradient):
            raise InvalidOptionError(f"gradient is one of {get_args(Gradient)}; got {gradient!r}")
        if phantom_steps < 1 or not 0 < phantom_damping <= 1:
            raise InvalidOptionError(
                "phantom_steps must be at least 1 and phantom_damping in (0, 1]; got "
                f"{phantom_steps} and {phantom_damping}"
            )
        if gradient == "unrolled" and not solver.unrollable:
            raise InvalidOptionError(
                f"the iterations of {type(solver).__name__} cannot be differentiated through; use "
                "gradient='implicit', or an unrollable solver such as 'anderson'"
            )
        self.cell = cell
        self.solver = solver
        self.backward_solver = backward_solver
        self.gradient = gradient
        self.phantom_steps = phantom_steps
        self.phantom_damping = phantom_damping

    def forward(
        self,
        u: Features,
        times: Sequence[float] | Float[Tensor, " times"] | None = None,
        initial: State | None = None,
    ) -> Solution:
        """Solve for the equilibrium; see :class:`stabnet.interfaces.Dynamics`.

        Args:
            u: features of the input, with a leading batch dimension.
            times: none: an equilibrium has no trajectory.
            initial: where the solver starts, a state such as an earlier ``Solution.state``; the
                origin by default. No gradient flows through it.

        Raises:
            InvalidInputError: if ``times`` are given; for an initial state of another shape; or for
                an empty batch whose samples would be coupled.
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
        dtype = state_dtype(like)
        if initial is None:
            initial = zero_state(like, batch, self.cell.state_shape, dtype)
        else:
            check_state(initial, batch, self.cell.state_shape)
        # A copy: an exact start is the solution, which must not share its memory with the start.
        z0 = ravel(initial, coupled).detach().to(dtype, copy=True)
        unravel, seed = unraveler(self.cell.state_shape), dropout_seed(self.cell)
        unrolled = self.gradient == "unrolled" and torch.is_grad_enabled()
        # Where no samples are coupled, no batch statistics are at work.
        frozen = frozen_batch_statistics(self.cell) if coupled else nullcontext()
        with nullcontext() if unrolled else torch.no_grad(), frozen:
            f = _CellMap(self.cell, unravel, coupled, seed, u)
            # A joint problem has one row, which rows of features cannot follow; and a mask of
            # dropout is drawn for all rows at once.
            divisible = not coupled and seed is None
            result = self.solver(f, z0, u if divisible else None)
        record = BackwardRecord()
        state = result.state
        if not unrolled:
            state = self._attach(state, u, coupled, unravel, record, seed)
        residual, converged, nfe = result.residual, result.converged, result.nfe
        if coupled:
            with seeded(seed, like.device):
                residual = self._per_sample(result, u, unravel)
            converged, nfe = converged.expand(batch), nfe + 1
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
        if not torch.is_grad_enabled():
            return z
        features, spec = pytree.tree_flatten(u)
        cell, count = self.cell, len(features)
        parameters, buffers = _tensors(cell)
        # Explicit buffers are checked for changes before the backward pass, as parameters are. But
        # where samples are coupled they are statistics that the cell keeps and does not use.
        used, kept = ((), buffers) if coupled else (buffers, ())
        arguments = (*features, *parameters, *used)
        if not any(map(is_differentiated, arguments)):
            return z

        modes = [m.training for m in cell.modules()]

        def call(name: str, arguments: tuple[Tensor, ...], *states: State) -> Any:
            """Call a method of the cell with explicit features and parameters, in today's modes."""
            explicit, own = (*arguments[count:], *kept), sum(_tensors(cell), ())
            u = pytree.tree_unflatten(list(arguments[:count]), spec)
            frozen = frozen_batch_statistics(cell) if coupled else nullcontext()
            with in_modes(cell, modes), seeded(seed, z.device), frozen:
                # Several times faster than the functional call, which otherwise takes care that
                # these tensors are meant, whatever the cell holds by now.
                if len(own) == len(explicit) and all(map(operator.is_, explicit, own)):
                    return _call_method(cell, name, *states, u)
                # No module is made where a compiler traces, which calls the cell itself only.
                plain = name == "forward"
                module, prefix = (cell, "") if plain else (_CellMethod(cell, name), "cell.")
                names = [n for n, _ in (*cell.named_parameters(), *cell.named_buffers())]
                tensors = {prefix + n: t for n, t in zip(names, explicit, strict=True)}
                return torch.func.functional_call(module, tensors, (*states, u))

        def f(z: Tensor, *arguments: Tensor) -> Tensor:
            return ravel(call("forward", arguments, unravel(z)), coupled).to(z.dtype)

        if self.gradient == "phantom":
            return attach_phantom_gradient(
                f, z, arguments, self.phantom_steps, self.phantom_damping
            )

        def pullback(z: Tensor, arguments: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor] | None:
            pull = call("pullback", arguments, unravel(z))
            return pull and (lambda w: ravel(pull(unravel(w)), coupled))

        def split_adjoint(z: Tensor, arguments: tuple[Tensor, ...], g: Tensor) -> Splitting:
            return _raveled(call("split_adjoint", arguments, unravel(z), unravel(g)), unravel)

        solver = self.solver if self.backward_solver is None else self.backward_solver
        problem = FixedPointProblem(
            f,
            solver,
            record,
            count if not coupled and seed is None else None,
            pullback,
            split_adjoint if isinstance(cell, SplitCell) and not coupled else None,
        )
        return attach_implicit_gradient(problem, z, arguments)

    @torch.no_grad()
    def _per_sample(
        self, result: SolverResult, u: Features, unravel: Callable[[Tensor], State]
    ) -> Tensor:
        """Return the residual per sample of a joint problem.

        By one more evaluation, the one that updates batch-norm statistics at the equilibrium.
        """
        z = unravel(result.state)
        flat, image = ravel(z, False), ravel(self.cell(z, u), False).to(result.state.dtype)
        difference = torch.linalg.vector_norm(image - flat, dim=-1)
        scale = torch.linalg.vector_norm(image, dim=-1)
        return torch.where(difference == 0, difference, difference / scale)

    def interval(
        self,
        lower: Float[Tensor, "batch ..."],
        upper: Float[Tensor, "batch ..."],
        *,
        sound: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of the equilibria for all features in the box ``[lower, upper]``.

        Args:
            lower: lower bounds of the features.
            upper: upper bounds of the features.
            sound: proven bounds in float64; else differentiable ones. See :mod:`stabnet.bounds`.

        Raises:
            NoBoundError: if the cell has no ``equilibrium_interval``.
        """
        if not isinstance(self.cell, BoundsEquilibria):
            raise NoBoundError(
                f"no interval bounds are known of the equilibria of {type(self.cell).__name__}; "
                "the cell 'ibp_monotone' has them"
            )
        return self.cell.equilibrium_interval(lower, upper, sound=sound)

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
                detail="existence and uniqueness of an equilibrium are for the cell to guarantee, "
                "and most cells do not; `Solution.converged` says for which samples the tolerance "
                "was met",
            )
        ]


@final
class _CellMap:
    """A cell as a map on raveled states, which computes once what does not depend on them."""

    def __init__(
        self,
        cell: Cell,
        unravel: Callable[[Tensor], State],
        coupled: bool,
        seed: int | None,
        u: Features,
    ) -> None:
        self._cell, self._unravel, self._coupled, self._seed = cell, unravel, coupled, seed
        self._u, self._at = u, cell.at(u)

    def __call__(self, z: Tensor, u: Features) -> Tensor:
        if u is not self._u and u is not None:
            self._u, self._at = u, self._cell.at(u)
        with seeded(self._seed, z.device):
            image = self._at(self._unravel(z))
        return ravel(image, self._coupled).to(z.dtype)

    def split(self, u: Features) -> Splitting | None:
        """Return the cell's splitting; ``None`` if it has none."""
        if not isinstance(self._cell, SplitCell) or self._coupled:
            return None
        return _raveled(self._cell.split(u), self._unravel)


class _CellMethod(nn.Module):
    """A method of a cell as a module, to be called with explicit parameters."""

    def __init__(self, cell: Cell, name: str) -> None:
        super().__init__()
        self.cell, self.name = cell, name

    def forward(self, z: State, *rest: Any) -> Any:
        return _call_method(self.cell, self.name, z, *rest)


def _call_method(cell: Cell, name: str, z: State, *rest: Any) -> Any:
    """Call a method of a cell, whose second argument is ``u``, which comes last here."""
    *others, u = rest
    return cell(z, u) if name == "forward" else getattr(cell, name)(z, u, *others)


def _tensors(module: nn.Module) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the parameters and the buffers of a module, each once."""
    modules = list(module.modules())
    kinds = ([m._parameters for m in modules], [m._buffers for m in modules])
    parameters, buffers = (
        tuple(dict.fromkeys(t for held in kind for t in held.values() if t is not None))
        for kind in kinds
    )
    return parameters, buffers


def _raveled(parts: Splitting, unravel: Callable[[Tensor], State]) -> Splitting:
    """Return a splitting that acts on raveled states."""

    def on_rows(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda y: act(cast("Tensor", unravel(y))).flatten(1)

    return Splitting(
        on_rows(parts.affine),
        lambda step: on_rows(parts.resolvent(step)),
        lambda v, step: parts.proximal(cast("Tensor", unravel(v)), step).flatten(1),
        parts.step_limit,
        None if parts.solution is None else on_rows(parts.solution),
    )
