"""Stages one after the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .errors import InvalidInputError, InvalidOptionError
from .interfaces import Block, Dynamics, Features, Invertible, Solution, State

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

    def resume(
        self, state: State | None, stage: int, u: Features, *, skip: Collection[int] = ()
    ) -> Solution:
        """Run the stages from index ``stage`` on.

        Args:
            state: the state before that stage.
            stage: index of the first stage to run.
            u: the features that the stack was given.
            skip: indices of stages to leave out, as if they were the identity.

        Returns:
            The final state, and one solution for each stage that ran.

        Raises:
            InvalidInputError: if a stage to skip is none of those that would run.
        """
        self._check_skipped(skip, stage)
        solutions: list[Solution] = []
        # A slice, because torch 2.6 exports no stage that is taken by its index.
        for index, module in enumerate(self.stages[stage:], stage):
            if index in skip:
                continue
            solutions.append(_run(module, state, u, None))
            state = solutions[-1].state
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

    def advance(
        self,
        state: State | None,
        stage: int,
        u: Features,
        times: Sequence[float] | Float[Tensor, " times"] | None = None,
    ) -> Solution:
        """Run one stage.

        Args:
            state: the state before it.
            stage: its index.
            u: the features that the stack was given.
            times: where the trajectory of a flow is wanted; ``None`` for its default interval.

        Raises:
            InvalidInputError: if ``times`` are given for a block, which has none.
        """
        module = self.stages[stage]
        if times is not None and not isinstance(module, Dynamics):
            raise InvalidInputError(f"stage {stage} is a {type(module).__name__}: it has no time")
        return _run(module, state, u, times)

    def inverse(self, state: Tensor, u: Features = None) -> Tensor:
        """Return the state that all stages together map to a state, inverting the last one first.

        Args:
            state: the state behind the last stage.
            u: the features that the stack was given, for blocks that look at them.

        Returns:
            The state before the first stage, up to the rounding of all inversions.

        Raises:
            InvalidInputError: if a stage has no inverse.
        """
        for index, module in reversed(list(enumerate(self.stages))):
            if not isinstance(module, Invertible):
                raise InvalidInputError(
                    f"stage {index} of the stack, {type(module).__name__}, has no inverse; invert "
                    "the stages that have one by themselves, see `stages`"
                )
            # A dynamics is driven by what is looked for here, and not by the stack's features.
            state = module.inverse(state, None if isinstance(module, Dynamics) else u)
        return state

    def _check_skipped(self, skip: Collection[int], first: int) -> None:
        wrong = [index for index in skip if not first <= index < len(self.stages)]
        if wrong:
            raise InvalidInputError(
                f"stages {wrong} cannot be skipped; those to come are "
                f"{list(range(first, len(self.stages)))}"
            )


def _run(
    module: nn.Module,
    state: State | None,
    u: Features,
    times: Sequence[float] | Float[Tensor, " times"] | None,
) -> Solution:
    """Run one stage: a dynamics on the state that drives it, a block on state and features."""
    out = module(state, times) if isinstance(module, Dynamics) else module(state, u)
    return out if isinstance(out, Solution) else Solution(state=out)
