"""Checks of solvers, on affine contractions, whose fixed point is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...interfaces import FixedPointMap, SolverResult
from ...plugin import Entry
from .._numbers import difference
from .._outcome import require
from .._specimen import Specimen, specimen
from .._stand_ins import AffineMap, contraction

__all__ = ["check_solver_failure", "check_solver_solution"]

_ACCURACY = 1e-6


def check_solver_solution(entry: Entry) -> None:
    """The fixed point of a contraction is found, and residual, flags and count are true."""
    s = specimen(entry, dtype=torch.float64)
    (u,) = s.inputs
    f = AffineMap(contraction(5, u))
    exact = torch.linalg.solve(torch.eye(5).to(u) - f.matrix, u.T).T
    result = s.part(f, torch.zeros_like(u), u)
    require(result.nfe == f.calls, entry, f"nfe = {f.calls}, the calls made", result.nfe)
    _require_true(s, result, f, u)
    done = bool(result.converged.all())
    what = "the example to solve a contraction by 1/2 for every sample; give it evaluations enough"
    require(done, entry, what, f"converged = {result.converged.tolist()}")
    gap = difference([result.state], [exact])
    what = f"(I − A)⁻¹u up to {_ACCURACY:g}; give the example a tolerance of 1e-9 or less"
    require(gap <= _ACCURACY, entry, what, f"a relative error of {gap:.3g}")
    again = s.part(f, exact, u)
    what = "a start at the fixed point to converge"
    require(bool(again.converged.all()), entry, what, again.converged.tolist())
    zero = s.part(AffineMap(0 * f.matrix), torch.zeros_like(u), torch.zeros_like(u))
    clean = bool((zero.residual == 0).all() and zero.converged.all())
    what = "the residual 0 of the fixed point 0 of the map 0"
    require(clean, entry, what, f"residual {zero.residual.tolist()}, 0/0 perhaps")


def check_solver_failure(entry: Entry) -> None:
    """Samples without a fixed point, or with NaN, are reported and harm no others."""
    s = specimen(entry, dtype=torch.float64)
    (u,) = s.inputs
    matrix = contraction(5, u)

    def solve(spoil: Callable[[Tensor], Tensor]) -> SolverResult:
        # The first feature marks the sample that is spoiled, however rows are dropped.
        marked = u.clone()
        marked[:, 0] = torch.tensor([1.0, 0.0, 0.0])

        def spoiled(z: Tensor, u: Tensor) -> Tensor:
            return torch.where(u[:, :1] == 1, spoil(z), z @ matrix.T + u)

        f = AffineMap(matrix, spoiled)
        result: SolverResult = s.part(f, torch.zeros_like(u), marked)
        _require_true(s, result, f, marked)
        return result

    spoiled: dict[str, Callable[[Tensor], Tensor]] = {
        "without a fixed point": lambda z: z + 1,
        "that is NaN away from the start": lambda z: torch.where(z == 0, 1.0, torch.nan),
        "that diverges": lambda z: 1e30 * z + 1,
    }
    for what, spoil in spoiled.items():
        result = solve(spoil)
        found = result.converged.tolist()
        expected = [False, True, True]
        require(
            found == expected, entry, f"converged = {expected} with a first sample {what}", found
        )


def _require_true(s: Specimen, result: SolverResult, f: FixedPointMap, u: Tensor) -> None:
    """Require finite states, and exactly their residuals."""
    z, residual = result.state, result.residual
    shapes = [tuple(t.shape) for t in (z, residual, result.converged)]
    wanted = [tuple(u.shape), (len(u),), (len(u),)]
    require(shapes == wanted, s.entry, f"state, residual, converged of shapes {wanted}", shapes)
    boolean = result.converged.dtype == torch.bool
    require(boolean, s.entry, "converged to be boolean", result.converged.dtype)
    require(bool(z.isfinite().all()), s.entry, "finite states", z)
    image = f(z, u)
    norm = torch.linalg.vector_norm
    true = norm(image - z, dim=1) / norm(image, dim=1)
    # A sample whose image is NaN or overflows even at the start has no residual to compare.
    known = true.isfinite()
    same = torch.allclose(residual[known], true[known], rtol=1e-3, atol=1e-14)
    what = f"the residuals of the returned states, {true.tolist()}"
    require(same, s.entry, what, residual.tolist())
