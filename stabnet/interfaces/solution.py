"""What a dynamics did: the one record that flows, equilibria and stacks all return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch.utils._pytree as pytree
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["BackwardRecord", "Features", "Solution", "SolverResult", "State"]

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""A state: one tensor ``(batch, *state_shape)``, or a tuple of such tensors."""

Features: TypeAlias = Tensor | tuple[Tensor, ...] | None
"""Features ``u`` of an input: tensors with a leading batch dimension, or none."""


@dataclass(frozen=True)
class SolverResult:
    """What a solver found, one row per sample.

    Attributes:
        state: best finite iterate of each sample, ``(batch, n)``.
        residual: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` of exactly that iterate, ``(batch,)``.
        converged: whether that residual is within the tolerance, ``(batch,)``. It is relative: even
            a map without a fixed point, such as ``z ↦ z + 1``, moves far states relatively little.
        nfe: evaluations of the map, each over all samples that were left in the batch.
    """

    state: Float[Tensor, "batch n"]
    residual: Float[Tensor, " batch"]
    converged: Bool[Tensor, " batch"]
    nfe: int


@dataclass(eq=False)
class BackwardRecord:
    """Statistics of the backward pass, filled in once it has run.

    Under transforms of ``torch.func`` only ``nfe`` is, and in a compiled program nothing.

    Attributes:
        nfe: vector–Jacobian products of the adjoint solve, ``None`` before the backward pass.
        residual: relative residual of the adjoint solve, one value per adjoint problem.
        converged: whether each adjoint problem was solved to its tolerance.
    """

    nfe: int | None = None
    residual: Tensor | None = None
    converged: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Solution:
    """The outcome of running a dynamics on a batch of features.

    Attributes:
        state: final state, ``(batch, *state_shape)`` or a tuple of such tensors.
        nfe: exact number of evaluations of the vector field or cell; over the whole batch, but for
            samples that a solver had finished and dropped.
        times: the requested times ``(T,)``, for a flow.
        states: the states at those times, ``(T, batch, *state_shape)``, for a flow.
        residual: relative residual per sample, for a solve; the largest over a stack's stages.
        converged: convergence per sample, for a solve; true where all stages converged.
        backward: statistics of the backward pass, once it has run.
        stages: one solution per stage, for a stack.
    """

    state: State
    nfe: int = 0
    times: Float[Tensor, " times"] | None = None
    states: State | None = None
    residual: Float[Tensor, " batch"] | None = None
    converged: Bool[Tensor, " batch"] | None = None
    backward: BackwardRecord | None = None
    stages: tuple[Solution, ...] = ()


_LEAVES = ("state", "times", "states", "residual", "converged", "stages")


def _flatten(solution: Solution) -> tuple[list[Any], tuple[Any, ...]]:
    # What is absent is no leaf: torch.vmap, for one, takes tensors only.
    present = tuple(n for n in _LEAVES if getattr(solution, n) is not None)
    return [getattr(solution, n) for n in present], (present, solution.nfe, solution.backward)


def _unflatten(leaves: Any, context: Any) -> Solution:
    present, nfe, backward = context
    return Solution(**dict(zip(present, leaves, strict=True)), nfe=nfe, backward=backward)


pytree.register_pytree_node(
    Solution,
    _flatten,
    _unflatten,
    serialized_type_name="stabnet.Solution",
    # An exported program has no backward pass to keep a record of.
    to_dumpable_context=lambda context: list(context[:2]),
    from_dumpable_context=lambda dumped: (tuple(dumped[0]), dumped[1], None),
)
