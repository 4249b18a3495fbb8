"""Stages one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import InvalidInputError, InvalidOptionError
from .interfaces import Block, Dynamics, Features, Solution, State

__all__ = ["Stack"]


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
