r"""What the splitting solvers share: the loop, and the confirmation by the map itself.

Both look for the zero of :math:`(I - W)y - c + \partial\varphi(y)`, and start each step with
the forward step :math:`v = (1 - \alpha) y + \alpha (Wy + c)` and its proximal point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Features, FixedPointMap, SolverResult, Splitting

from .control import Control
from .iteration import relative_residual, resolution

__all__ = ["Point", "check_options", "parts", "solve"]

_CONFIRMATION = 2
"""Evaluations that confirming takes: that of the solution, where it is not ``y``, and of ``f``."""


@dataclass(frozen=True)
class Point:
    """An iterate ``y`` and its affine value ``a = Wy + c``."""

    y: Float[Tensor, "batch n"]
    a: Float[Tensor, "batch n"]


Step: TypeAlias = Callable[[Point], Point]


def check_options(control: Control, splitting_step: float | None) -> None:
    """Raise :class:`stabnet.InvalidOptionError` for options that no splitting can work with."""
    if control.max_evaluations <= _CONFIRMATION:
        raise InvalidOptionError(
            f"max_evaluations must be at least {_CONFIRMATION + 1}, of which {_CONFIRMATION} "
            f"confirm the solution; got {control.max_evaluations}"
        )
    if splitting_step is not None and not 0 < splitting_step < math.inf:
        raise InvalidOptionError(
            f"splitting_step must be positive and finite; got {splitting_step}"
        )


def parts(f: FixedPointMap, u: Features, solver: str) -> Splitting:
    """Return the splitting of a map.

    Raises:
        InvalidOptionError: if the map does not come apart.
    """
    split = getattr(f, "split", None)
    splitting: Splitting | None = None if split is None else split(u)
    if splitting is None:
        raise InvalidOptionError(
            f"the solver {solver!r} needs a map that comes apart into an affine and a proximal "
            "part, which cells with `split` and `split_adjoint` do (such as 'monotone'); this one "
            "does not, nor does the adjoint equation where it is itself differentiated, for second "
            "derivatives. Use the solver, or for them the backward_solver, 'anderson'"
        )
    return splitting


def solve(
    f: FixedPointMap,
    z0: Float[Tensor, "batch n"],
    u: Features,
    splitting: Splitting,
    step: Step,
    control: Control,
) -> SolverResult:
    """Step from ``z0`` until all rows solve ``z = f(z, u)``, as ``f`` itself confirms.

    Steps stop on the residual of ``y ↦ prox(Wy + c)``. Rounding, or a solution other than ``y``,
    may let that differ from the residual of ``f``: where a row is not confirmed, steps go on to a
    smaller one. Evaluations are those of ``W`` or its resolvent, and of ``f``. All rows go on to
    the end, since dropping some would mean to factor the resolvent again.
    """
    finest = resolution(z0)
    wanted = tolerance = max(control.tolerance, finest)
    point, nfe = Point(z0, splitting.affine(z0)), 1
    state, residual = z0, _unknown(z0)
    while True:
        allowed = control.max_evaluations - _CONFIRMATION - nfe
        point, y, inner, steps = _descend(splitting, step, point, tolerance, allowed, control)
        z = y if splitting.solution is None else splitting.solution(y)
        found = relative_residual(z, f(z, u))
        nfe += steps + (1 if splitting.solution is None else 2)
        better = found < residual  # false for NaN
        state = torch.where(better[:, None], z, state)
        residual = torch.where(better, found, residual)
        spent = nfe + _CONFIRMATION >= control.max_evaluations
        if control.fixed_iterations or spent or tolerance == finest:
            break
        misjudged = (inner <= tolerance) & (residual > wanted) & torch.isfinite(found)
        if not bool(misjudged.any()):
            break
        ratio = float((inner / found)[misjudged].min())
        tolerance = max(min(wanted * ratio, tolerance) / 2, finest)
        point, nfe = step(point), nfe + 1
    unknown = torch.isinf(residual)
    if not control.fixed_iterations and bool(unknown.any()):  # no finite step: the start is best
        residual = torch.where(unknown, relative_residual(z0, f(z0, u)), residual)
        nfe += 1
    dtype = torch.promote_types(z0.dtype, torch.float32)
    result = SolverResult(state, residual.to(dtype), residual <= wanted, nfe)
    return control.finish(result)


def _descend(
    splitting: Splitting,
    step: Step,
    point: Point,
    tolerance: float,
    allowed: int,
    control: Control,
) -> tuple[Point, Tensor, Tensor, int]:
    """Step until ``y ↦ prox(Wy + c)`` moves no row by more than the tolerance.

    Returns:
        The last point; for each row its best iterate and the residual there; the steps taken.
    """
    every = control.interval(point.y.device)
    best, residual = point.y, _unknown(point.y)
    failed = residual < 0
    steps = 0
    while True:
        found = relative_residual(point.y, splitting.proximal(point.a, 1.0))
        better = found < residual  # false for NaN
        best = torch.where(better[:, None], point.y, best)
        residual = torch.where(better, found, residual)
        failed = failed | ~torch.isfinite(point.a).all(-1)
        if steps == allowed:
            break
        looking = not control.fixed_iterations and steps % every == 0
        if looking and bool((failed | (residual <= tolerance)).all()):
            break
        point, steps = step(point), steps + 1
    return point, best, residual, steps


def _unknown(z: Tensor) -> Float[Tensor, " batch"]:
    return torch.full_like(relative_residual(z, z), torch.inf)
