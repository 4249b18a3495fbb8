"""Options that all solvers share: when to stop, when to look, and what to do on failure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stabnet import ConvergenceError, InvalidOptionError
from stabnet.interfaces import SolverResult

__all__ = ["Control"]


@dataclass(frozen=True)
class Control:
    """When a solve stops.

    Attributes:
        tolerance: relative residual ``‖f(z) − z‖ / ‖f(z)‖`` at which a sample has converged.
        max_evaluations: evaluations of the map at most.
        fixed_iterations: spend all evaluations without ever looking at a value.
        check_every: evaluations between two looks at whether samples are finished; ``None`` for
            1 on the CPU and 4 on accelerators, which a look stalls.
        compaction: share of finished samples, of those in the batch, at which they leave it; 1
            keeps all of them to the end.
        throw: raise where a sample did not converge.

    Raises:
        InvalidOptionError: for an option out of its range, or two that exclude each other.
    """

    tolerance: float
    max_evaluations: int
    fixed_iterations: bool
    check_every: int | None
    compaction: float
    throw: bool

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < math.inf:
            raise InvalidOptionError(f"tolerance must be positive; got {self.tolerance}")
        for name in ("max_evaluations", "check_every"):
            count = getattr(self, name)
            if count is None and name == "check_every":
                continue
            if not isinstance(count, int) or count < 1:
                raise InvalidOptionError(f"{name} must be a whole number from 1; got {count}")
        if not 0 < self.compaction <= 1:
            raise InvalidOptionError(f"compaction must be in (0, 1]; got {self.compaction}")
        if self.throw and self.fixed_iterations:
            raise InvalidOptionError(
                "throw looks at the outcome, and fixed_iterations never looks; leave one of them "
                "out and read Solution.converged instead"
            )

    def interval(self, device: torch.device) -> int:
        """Return the number of evaluations between two looks."""
        if self.check_every is not None:
            return self.check_every
        return 1 if device.type == "cpu" else 4

    def finish(self, result: SolverResult) -> SolverResult:
        """Return the result, or raise :class:`stabnet.ConvergenceError` where that is asked for."""
        if self.throw and not bool(result.converged.all()):
            missed = (~result.converged).nonzero().flatten().tolist()
            worst: Tensor = result.residual.max()
            raise ConvergenceError(
                f"{len(missed)} of {len(result.converged)} samples missed the tolerance "
                f"{self.tolerance:g} within {result.nfe} evaluations (first: {missed[:5]}; largest "
                f"relative residual {worst.item():.3g}). Allow more evaluations or a larger "
                "tolerance, or check that the map has a fixed point"
            )
        return result

    def __str__(self) -> str:
        return f"tolerance={self.tolerance}, max_evaluations={self.max_evaluations}"
