r"""Implicit differentiation of fixed points, as one functional operation with explicit arguments.

At a fixed point :math:`z^* = f(z^*, a)` the implicit function theorem gives, for an incoming
gradient :math:`g`,

.. math:: w = J_z^\top w + g, \qquad \bar a = J_a^\top w,

with the Jacobians of :math:`f` at :math:`z^*`. The adjoint equation is itself a fixed-point
problem in :math:`w` with the arguments :math:`(z^*, g, a)`; where a second derivative is wanted it
is solved by this same operation, so that derivatives of any order are exact.

References:
    Bai, Kolter, Koltun: "Deep Equilibrium Models", 2019, Theorem 1.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import is_traced
from .interfaces import BackwardRecord, Features, Solver, SolverResult, Splitting

__all__ = ["FixedPointProblem", "attach_implicit_gradient"]

Product: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FixedPointProblem:
    """A map ``f(z, *arguments)`` on ``(batch, n)``, and what is known of its adjoint equation.

    Attributes:
        f: the map, without hidden differentiable inputs.
        solver: solves the adjoint equation.
        record: takes the statistics of that solve once the backward pass has run.
        row_arguments: number of leading arguments that have a row for each row of ``z``; ``None``
            where rows of ``z`` depend on each other or on arguments that solvers may not divide.
        pullback: gives ``w ↦ J_zᵀ w`` in closed form at ``(z, arguments)``, or ``None`` where there
            is no such form.
        split_adjoint: the adjoint equation taken apart, given ``(z, arguments, g)``.
    """

    f: Callable[..., Tensor]
    solver: Solver
    record: BackwardRecord
    row_arguments: int | None = None
    pullback: Callable[[Tensor, tuple[Tensor, ...]], Product | None] = lambda z, arguments: None
    split_adjoint: Callable[[Tensor, tuple[Tensor, ...], Tensor], Splitting] | None = None


def attach_implicit_gradient(
    problem: FixedPointProblem, z: Float[Tensor, "batch n"], arguments: tuple[Tensor, ...]
) -> Float[Tensor, "batch n"]:
    """Give a fixed point, found without gradients, its gradient in the map's arguments.

    Args:
        problem: the map, in which every tensor to be differentiated is an argument.
        z: a fixed point of it, to the precision to which gradients are wanted.
        arguments: the arguments at which ``z`` is the fixed point.

    Returns:
        ``z``, differentiable any number of times.
    """
    device = z.device.type
    enabled, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    # The backward pass runs outside the caller's autocast, whose precision it must repeat: the map
    # has to be the same one, and the solver has to know what that map can resolve.
    autocast = partial(torch.autocast, device, precision, enabled)
    attached: Tensor = _FixedPoint.apply(problem, autocast, z, *arguments)
    return attached


class _FixedPoint(torch.autograd.Function):
    """The identity on a fixed point, with the implicit function theorem as its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        problem: FixedPointProblem,
        autocast: Callable[[], AbstractContextManager[Any]],
        z: Tensor,
        *arguments: Tensor,
    ) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.problem, ctx.autocast, _, *arguments = inputs
        # The output, not the input: its history carries the dependence of z* on the arguments.
        ctx.save_for_backward(output, *arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        z, *arguments = saved
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
        # What torch traces, or differentiates again, has to be a function of its arguments; and
        # what a transform that is over has left behind records nothing.
        functional = (
            is_traced()
            or torch.is_grad_enabled()
            or any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in saved)
        )
        pull = _pull_functional if functional else _pull_recorded
        with ctx.autocast():
            found = pull(ctx.problem, z, tuple(arguments), wanted, gradients[0])
        result: list[Tensor | None] = [None] * len(arguments)
        for i, gradient in zip(wanted, found, strict=True):
            result[i] = gradient
        return None, None, None, *result


def _pull_recorded(
    problem: FixedPointProblem,
    z: Tensor,
    arguments: tuple[Tensor, ...],
    wanted: list[int],
    g: Tensor,
) -> tuple[Tensor, ...]:
    """Return ``J_aᵀ w`` for the wanted arguments, from one recorded evaluation of the map."""
    leaves = [_without_hooks(a) for a in arguments]
    with torch.enable_grad():
        state = z.detach().requires_grad_()
        image = problem.f(state, *leaves)
    pull = problem.pullback(z, arguments) or partial(_product, image, state)
    w = _solve(problem, z, arguments, g, pull)
    inputs = [leaves[i] for i in wanted]
    found = torch.autograd.grad(image, inputs, w, allow_unused=True) if inputs else ()
    return tuple(
        torch.zeros_like(a) if d is None else d for a, d in zip(inputs, found, strict=True)
    )


def _without_hooks(argument: Tensor) -> Tensor:
    """Return the argument, or its double where a gradient of it would run somebody's hooks.

    They will run when this gradient reaches the argument itself.
    """
    if not argument.requires_grad or (argument.is_leaf and not argument._backward_hooks):
        return argument
    return argument.detach().requires_grad_()


def _product(image: Tensor, state: Tensor, w: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(image, state, w, retain_graph=True, allow_unused=True)
    return torch.zeros_like(w) if found is None else found


def _pull_functional(
    problem: FixedPointProblem,
    z: Tensor,
    arguments: tuple[Tensor, ...],
    wanted: list[int],
    g: Tensor,
) -> tuple[Tensor, ...]:
    """Return ``J_aᵀ w`` for the wanted arguments, differentiable where gradients are enabled."""
    with torch.no_grad():
        vjp = torch.func.vjp(lambda z: problem.f(z, *arguments), z)[1]
        w = _solve(problem, z, arguments, g, lambda w: vjp(w)[0])

    def adjoint(w: Tensor, z: Tensor, g: Tensor, *arguments: Tensor) -> Tensor:
        vjp = torch.func.vjp(lambda z: problem.f(z, *arguments), z)[1]
        product: Tensor = vjp(w)[0]
        return product + g

    if torch.is_grad_enabled():
        again = FixedPointProblem(adjoint, problem.solver, BackwardRecord())
        w = attach_implicit_gradient(again, w, (z, g, *arguments))

    def at_equilibrium(*chosen: Tensor) -> Tensor:
        replaced = list(arguments)
        for i, argument in zip(wanted, chosen, strict=True):
            replaced[i] = argument
        return problem.f(z, *replaced)

    if not wanted:
        return ()
    vjp = torch.func.vjp(at_equilibrium, *(arguments[i] for i in wanted))[1]
    found: tuple[Tensor, ...] = vjp(w)
    return found


def _solve(
    problem: FixedPointProblem,
    z: Tensor,
    arguments: tuple[Tensor, ...],
    g: Tensor,
    pull: Product,
) -> Tensor:
    """Solve ``w = J_zᵀ w + g``."""
    adjoint = _Adjoint(problem, z, arguments, g, pull)
    # g is what one step from zero gives, so starting there saves that step.
    result: SolverResult = problem.solver(adjoint, g, adjoint.rows)
    if not torch.compiler.is_compiling():  # a compiled backward pass may not write to its outside
        problem.record.nfe = result.nfe
        if not is_traced():  # what a transform wraps is dead once it is over
            problem.record.residual, problem.record.converged = result.residual, result.converged
    return result.state


class _Adjoint:
    """The map ``w ↦ J_zᵀ w + g``, linearized again at the rows that are left when rows leave.

    The features that a solver passes along, and divides, are the indices of the rows.
    """

    def __init__(
        self,
        problem: FixedPointProblem,
        z: Tensor,
        arguments: tuple[Tensor, ...],
        g: Tensor,
        pull: Product,
    ) -> None:
        self._problem, self._z, self._arguments, self._g = problem, z, arguments, g
        divisible = problem.row_arguments is not None and not is_traced()
        self.rows = torch.arange(len(z), device=z.device) if divisible else None
        self._at = (self.rows, g, pull)

    def __call__(self, w: Tensor, rows: Features) -> Tensor:
        if rows is not self._at[0]:
            assert isinstance(rows, Tensor)
            z, arguments, g = self._of(rows)
            pull = self._problem.pullback(z, arguments)
            if pull is None:
                with torch.enable_grad():
                    state = z.detach().requires_grad_()
                    image = self._problem.f(state, *arguments)
                pull = partial(_product, image, state)
            self._at = (rows, g, pull)
        _, g, pull = self._at
        return pull(w) + g

    def split(self, rows: Features) -> Splitting | None:
        """Return the adjoint equation taken apart; ``None`` if it does not come apart."""
        if self._problem.split_adjoint is None:
            return None
        return self._problem.split_adjoint(*self._of(rows))

    def _of(self, rows: Features) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        if rows is self.rows:
            return self._z, self._arguments, self._g
        assert isinstance(rows, Tensor)
        count = self._problem.row_arguments
        arguments = (*(a[rows] for a in self._arguments[:count]), *self._arguments[count:])
        return self._z[rows], arguments, self._g[rows]
