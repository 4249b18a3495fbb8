"""Linear maps of states that a known orthogonal change of basis makes block-diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

__all__ = ["BlockOperator"]


@final
class BlockOperator:
    r"""A linear map :math:`W` of states, block-diagonal in a unitary basis up to scale.

    A dense matrix is a single block in the basis as it is; a circular convolution has one block
    per frequency. Adjoint, inverse and norm are then those of the blocks.

    Args:
        blocks: the blocks, in single precision at least.
        encode: change of basis, ``(batch, *state_shape) → (*frequencies, batch, n)``.
        decode: the way back.
    """

    # No dataclass: torch 2.6 compiles none that a program makes and calls.
    def __init__(
        self,
        blocks: Inexact[Tensor, "*frequencies n n"],
        encode: Callable[[Tensor], Tensor],
        decode: Callable[[Tensor], Tensor],
    ) -> None:
        self.blocks, self.encode, self.decode = blocks, encode, decode

    def __call__(self, z: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Return ``Wz`` for each row."""
        return self.decode(self.encode(z) @ self.blocks.mT).to(z.dtype)

    def adjoint(self) -> BlockOperator:
        """Return ``Wᵀ``."""
        return self._with(self.blocks.mH)

    def resolvent(self, alpha: float) -> BlockOperator:
        """Return ``(I + α(I − W))⁻¹``, well conditioned where ``I − W ⪰ mI``."""
        # Unlike inv, inv_ex does not look at the outcome, which would stall an accelerator.
        matrix = self._identity() + alpha * self._complement()
        return self._with(torch.linalg.inv_ex(matrix).inverse)

    def _with(self, blocks: Tensor) -> BlockOperator:
        return BlockOperator(blocks, self.encode, self.decode)

    @torch.no_grad()
    def complement_norm(self) -> float:
        """Return ``‖I − W‖₂`` of the blocks as they are; NaN where they are not finite.

        Computed in float64, from the eigenvalues of the Gram matrices: exact to a share of about
        ``n²`` times 2⁻⁵³, which is enough to choose a step by, but no proven bound.
        """
        complement = self._double()._complement()
        if not bool(torch.isfinite(complement).all()):
            return math.nan
        largest = float(torch.linalg.eigvalsh(complement.mH @ complement).max())
        return math.sqrt(max(largest, 0.0))

    @torch.no_grad()
    def monotonicity(self) -> float:
        """Return the smallest eigenvalue of the symmetric part of ``I − W``, in float64."""
        complement = self._double()._complement()
        return float(torch.linalg.eigvalsh((complement + complement.mH) / 2).min())

    def _double(self) -> BlockOperator:
        wide = torch.promote_types(self.blocks.dtype, torch.float64)
        return self._with(self.blocks.to(wide))

    def _identity(self) -> Tensor:
        return torch.eye(self.blocks.shape[-1], dtype=self.blocks.dtype, device=self.blocks.device)

    def _complement(self) -> Tensor:
        return self._identity() - self.blocks
