"""Where the equilibrium of a model is, and the transposed Jacobian of its cell there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import Equilibrium, InvalidInputError, StabilityModel, Stack
from stabnet.interfaces import Cell, Features, Solution, State

__all__ = ["Solved", "flatten", "solve", "transposed_jacobian"]


@final
@dataclass(frozen=True)
class Solved:
    """The equilibrium of a model for one batch.

    Attributes:
        equilibrium: the dynamics that was solved.
        u: the features that drove it.
        solution: what it found.
        output: the final state of the whole dynamics, behind any later stages.
        features: the features that the whole dynamics was given.
        stage: its place among the stages of a stack; ``None`` where it is the whole dynamics.
    """

    equilibrium: Equilibrium
    u: Features
    solution: Solution
    output: State
    features: Features
    stage: int | None


def solve(part: nn.Module, x: Features) -> Solved:
    """Solve a model once, and keep what went in and out of its equilibrium.

    Args:
        part: a :class:`stabnet.StabilityModel` whose dynamics is an equilibrium, or a stack with
            one equilibrium among its stages; or a :class:`stabnet.Equilibrium`.
        x: the model's inputs; for an equilibrium, its features.

    Raises:
        InvalidInputError: if there is no such equilibrium, or more than one.
    """
    dynamics = part.dynamics if isinstance(part, StabilityModel) else part
    stages = list(dynamics.stages) if isinstance(dynamics, Stack) else [dynamics]
    found = [k for k, stage in enumerate(stages) if isinstance(stage, Equilibrium)]
    if len(found) != 1:
        raise InvalidInputError(
            f"{type(part).__name__} has {len(found)} equilibria where one is expected: as the "
            "dynamics of a StabilityModel, or as one stage of its stack. Give such a model, or "
            "one Equilibrium with its features"
        )
    (k,) = found
    features = x
    if isinstance(part, StabilityModel):
        assert isinstance(x, Tensor)
        features = part.features(x)
    solution: Solution = dynamics(features)
    equilibrium = stages[k]
    assert isinstance(equilibrium, Equilibrium)
    if not isinstance(dynamics, Stack):
        return Solved(equilibrium, features, solution, solution.state, features, None)
    u: Features = features if k == 0 else solution.stages[k - 1].state
    return Solved(equilibrium, u, solution.stages[k], solution.state, features, k)


def flatten(z: State) -> Float[Tensor, "batch n"]:
    """Return a state as one matrix, a row per sample."""
    parts = z if isinstance(z, tuple) else (z,)
    return torch.cat([p.flatten(1) for p in parts], 1)


def transposed_jacobian(
    cell: Cell, z: State, u: Features
) -> Callable[[Float[Tensor, "batch n"]], Float[Tensor, "batch n"]]:
    r"""Return the map :math:`w \mapsto J^\top w` with :math:`J = \partial f/\partial z` at a state.

    The cell is evaluated once, in its present mode, on copies of its buffers: the running
    statistics of batch normalization stay as they are. Where the cell couples the samples of a
    batch (batch normalization in training mode), ``J`` is the Jacobian of the whole batch, and the
    rows of ``w`` are the parts of one vector.

    Args:
        cell: the cell.
        z: where to differentiate it.
        u: the features there.

    Returns:
        A map of raveled states, differentiable in ``z``, ``u`` and the cell's parameters.
    """
    parts = z if isinstance(z, tuple) else (z,)
    shapes = [p.shape[1:] for p in parts]
    sizes = [s.numel() for s in shapes]

    def f(flat: Tensor) -> Tensor:
        pieces = flat.split(sizes, 1)
        state = tuple(p.unflatten(1, s) for p, s in zip(pieces, shapes, strict=True))
        # Copied in here: a transform of torch.func refuses writes to what it has captured.
        buffers = {name: b.clone() for name, b in cell.named_buffers()}
        given = (state if isinstance(z, tuple) else state[0], u)
        return flatten(torch.func.functional_call(cell, buffers, given)).to(flat.dtype)

    vjp = torch.func.vjp(f, flatten(z))[1]
    return lambda w: vjp(w)[0]
