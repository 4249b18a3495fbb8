"""Checks of what a model reports of itself."""

from __future__ import annotations

import torch

from ...interfaces import Solution, State
from ...model import StabilityModel
from ...plugin import Entry
from .._numbers import identical
from .._outcome import require
from .._specimen import specimen

__all__ = ["check_solution"]


def check_solution(entry: Entry) -> None:
    """``run`` returns the outputs with a solution, true to the state that the head reads."""
    s = specimen(entry, dtype=torch.float64)
    model, (x,) = s.part, s.inputs
    assert isinstance(model, StabilityModel)
    outputs, solution = model.run(x)
    require(identical([outputs], s()), entry, "run to return the outputs of the call", "others")
    require(isinstance(solution, Solution), entry, "a Solution", type(solution).__qualname__)
    shapes = [tuple(t.shape) for t in _parts(solution.state)]
    leads = all(shape[:1] == (3,) for shape in shapes)
    require(leads, entry, "states with the batch, 3, first", shapes)
    require(type(solution.nfe) is int and solution.nfe >= 0, entry, "a count as nfe", solution.nfe)
    decoded = model.decode(solution.state)
    require(identical([decoded], [outputs]), entry, "decode(state) to give the outputs", "others")
    again = model.solve(x).state
    same = identical(_parts(again), _parts(solution.state))
    require(same, entry, "solve to return the state of run", "another")
    if solution.residual is not None:
        shape = tuple(solution.residual.shape)
        require(shape == (3,), entry, "one residual per sample", f"shape {shape}")
    if solution.converged is not None:
        found = solution.converged.tolist()
        what = "the example to converge; give it a tolerance that it can reach"
        require(found == [True] * 3, entry, what, f"converged = {found}")


def _parts(state: State) -> tuple[torch.Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)
