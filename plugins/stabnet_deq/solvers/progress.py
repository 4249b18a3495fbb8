"""Bookkeeping that every solver needs: the best iterate of each sample and its residual."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import SolverResult

__all__ = ["Progress", "check_common_options", "relative_residual"]


def check_common_options(tolerance: float, max_evaluations: int) -> None:
    """Raise :class:`stabnet.InvalidOptionError` for options that no solver can work with."""
    if not tolerance > 0:
        raise InvalidOptionError(f"tolerance must be positive; got {tolerance}")
    if max_evaluations < 1:
        raise InvalidOptionError(f"max_evaluations must be at least 1; got {max_evaluations}")


def relative_residual(
    z: Float[Tensor, "batch n"], image: Float[Tensor, "batch n"]
) -> Float[Tensor, " batch"]:
    """Return ``‖f(z) − z‖ / ‖f(z)‖`` per row; zero at an exact fixed point, also at the origin."""
    difference = image - z
    # Squares of very large or small numbers leave the float range; the scale cancels.
    scale = difference.abs().amax(-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1)
    residual = torch.linalg.vector_norm(difference / scale, dim=-1)
    return torch.where(
        residual == 0, residual, residual / torch.linalg.vector_norm(image / scale, dim=-1)
    )


class Progress:
    """The best finite iterate of each sample so far, its image and its residual.

    A sample that has converged, or whose iterate turned non-finite, is settled: its best iterate
    no longer changes.

    Args:
        z0: the initial iterates.
        tolerance: relative residual at which a sample has converged. Never taken below four units
            of rounding of the precision in which the map is evaluated (autocast's, if it is on),
            which no iterate can resolve.
        fixed: never look at the values, so that the loop compiles.
    """

    def __init__(self, z0: Float[Tensor, "batch n"], tolerance: float, fixed: bool) -> None:
        device = z0.device.type
        precision = z0.dtype
        if torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
        self.tolerance = max(tolerance, 4 * torch.finfo(precision).eps)
        self.best = self.best_image = z0
        self.residual = z0.new_full(z0.shape[:1], torch.inf)
        self.converged: Bool[Tensor, " batch"] = torch.zeros_like(self.residual, dtype=torch.bool)
        self.settled = self.converged
        self.nfe = 0
        self._fixed = fixed
        # Looking at a flag on an accelerator stalls it; the CPU has it at hand.
        self._check_every = 1 if device == "cpu" else 4

    def update(
        self, z: Float[Tensor, "batch n"], image: Float[Tensor, "batch n"]
    ) -> Float[Tensor, " batch"]:
        """Take note of an iterate and its image; return the iterate's residual."""
        self.nfe += 1
        residual = relative_residual(z, image)
        better = ~self.settled & (residual < self.residual)  # false for NaN
        self.best = torch.where(better[:, None], z, self.best)
        self.best_image = torch.where(better[:, None], image, self.best_image)
        self.residual = torch.where(better, residual, self.residual)
        self.converged = self.residual <= self.tolerance
        # Of the image, not the residual: that is infinite where a map passes through zero.
        self.settled = self.settled | self.converged | ~torch.isfinite(image).all(-1)
        return residual

    def finished(self) -> bool:
        """Return whether every sample is settled; always false in fixed-iteration mode."""
        if self._fixed or self.nfe % self._check_every:
            return False
        return bool(self.settled.all())

    def result(self) -> SolverResult:
        """Return the best iterates with their own residuals."""
        return SolverResult(self.best, self.residual, self.converged, self.nfe)
