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
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .interfaces import BackwardRecord, Solver, SolverResult

__all__ = ["attach_implicit_gradient"]

FunctionalMap = Callable[..., Tensor]
"""A map ``f(z, *arguments)`` without hidden differentiable inputs."""


@dataclass(frozen=True)
class _Problem:
    """What the backward pass needs besides tensors."""

    f: FunctionalMap
    solver: Solver
    record: BackwardRecord
    autocast: Callable[[], AbstractContextManager[Any]]


def attach_implicit_gradient(
    f: FunctionalMap,
    z: Float[Tensor, "batch n"],
    arguments: tuple[Tensor, ...],
    solver: Solver,
    record: BackwardRecord,
) -> Float[Tensor, "batch n"]:
    """Give a fixed point, found without gradients, its gradient in the map's arguments.

    Args:
        f: the map ``f(z, *arguments)``; every tensor to be differentiated is an argument.
        z: a fixed point of it, to the precision to which gradients are wanted.
        arguments: the arguments at which ``z`` is the fixed point.
        solver: solves the adjoint equation.
        record: takes the statistics of the adjoint solve once the backward pass has run.

    Returns:
        ``z``, differentiable any number of times.
    """
    device = z.device.type
    enabled, precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    # The backward pass runs outside the caller's autocast, whose precision it must repeat: the map
    # has to be the same one, and the solver has to know what that map can resolve.
    problem = _Problem(f, solver, record, partial(torch.autocast, device, precision, enabled))
    attached: Tensor = _FixedPoint.apply(problem, z, *arguments)
    return attached


class _FixedPoint(torch.autograd.Function):
    """The identity on a fixed point, with the implicit function theorem as its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(problem: _Problem, z: Tensor, *arguments: Tensor) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.problem, _, *arguments = inputs
        # The output, not the input: its history carries the dependence of z* on the arguments.
        ctx.save_for_backward(output, *arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (g,) = gradients
        z, *arguments = ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        f = ctx.problem.f

        def at_equilibrium(*chosen: Tensor) -> Tensor:
            replaced = list(arguments)
            for i, argument in zip(wanted, chosen, strict=True):
                replaced[i] = argument
            image: Tensor = f(z, *replaced)
            return image

        result: list[Tensor | None] = [None] * len(arguments)
        with ctx.problem.autocast():
            w = _adjoint(ctx.problem, z, tuple(arguments), g)
            if wanted:
                vjp = torch.func.vjp(at_equilibrium, *(arguments[i] for i in wanted))[1]
                for i, gradient in zip(wanted, vjp(w), strict=True):
                    result[i] = gradient
        return None, None, *result


def _adjoint(problem: _Problem, z: Tensor, arguments: tuple[Tensor, ...], g: Tensor) -> Tensor:
    """Solve ``w = J_zᵀ w + g``, differentiably where gradients of gradients are wanted."""
    f, solver, record = problem.f, problem.solver, problem.record
    with torch.no_grad():
        vjp = torch.func.vjp(lambda z: f(z, *arguments), z)[1]
        # g is what one step from zero gives, so starting there saves that step.
        result: SolverResult = solver(lambda w, _: vjp(w)[0] + g, g)
    if not torch.compiler.is_compiling():  # a compiled backward pass may not write to its outside
        record.nfe, record.residual = result.nfe, result.residual
        record.converged = result.converged
    w = result.state
    if not torch.is_grad_enabled():
        return w

    def adjoint(w: Tensor, z: Tensor, g: Tensor, *arguments: Tensor) -> Tensor:
        vjp = torch.func.vjp(lambda z: f(z, *arguments), z)[1]
        product: Tensor = vjp(w)[0]
        return product + g

    return attach_implicit_gradient(adjoint, w, (z, g, *arguments), solver, BackwardRecord())
