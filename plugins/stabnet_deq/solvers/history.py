"""What methods that remember share: buffers of the last vectors, and the unit they are kept in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["combine", "put", "residual_unit"]


def residual_unit(g: Float[Tensor, "rows n"]) -> Float[Tensor, "rows 1"]:
    """Return the inverse of each row's largest entry, in single precision at least.

    Squares of numbers in this unit stay in range. Finite also for a row of zeros.
    """
    largest: Tensor = torch.linalg.vector_norm(g.detach(), torch.inf, 1, keepdim=True)
    largest = largest.to(torch.promote_types(g.dtype, torch.float32))
    return largest.clamp(min=torch.finfo(largest.dtype).tiny).reciprocal()


def put(buffer: Tensor, value: Tensor, dim: int, slot: int) -> Tensor:
    """Write a slot; into a copy where a gradient will need the buffer as it was."""
    if torch.is_grad_enabled():
        return buffer.select_scatter(value, dim, slot)
    buffer.select(dim, slot).copy_(value)
    return buffer


def combine(
    coefficients: Float[Tensor, "rows m"], vectors: Float[Tensor, "rows m n"]
) -> Float[Tensor, "rows n"]:
    """Return the linear combinations of each row's vectors."""
    # For tiny matrices the batched product is several times slower than summing up.
    if vectors[0].numel() < 400:
        return (coefficients[:, :, None] * vectors).sum(1)
    return torch.bmm(coefficients[:, None], vectors)[:, 0]
