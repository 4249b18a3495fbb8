"""What methods that remember share: buffers of the last vectors, and the unit they are kept in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["combine", "put", "residual_unit", "squares_stay_in_range"]


def residual_unit(g: Float[Tensor, "rows n"]) -> Float[Tensor, "rows 1"]:
    """Return a power of two near the inverse of each row's largest entry; one for a row of zeros.

    In single precision at least. Squares of numbers in this unit stay in range, and a power of two
    rounds nothing: where squares stay in range anyway, it makes no difference.
    """
    largest: Tensor = torch.linalg.vector_norm(g.detach(), torch.inf, 1, keepdim=True)
    largest = largest.to(torch.promote_types(g.dtype, torch.float32))
    return torch.exp2(-torch.where(largest > 0, largest, 1).log2().floor())


def squares_stay_in_range(g: Float[Tensor, "rows n"]) -> bool:
    """Return whether first residuals are far from both ends of the range of single precision."""
    largest: Tensor = torch.linalg.vector_norm(g.detach(), torch.inf, 1)
    return largest.min().item() > 1e-6 and largest.max().item() < 1e6


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
