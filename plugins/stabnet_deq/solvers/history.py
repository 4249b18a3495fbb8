"""What methods that remember share: buffers of the last vectors, and the unit they are kept in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["combine", "put", "residual_unit", "squares_stay_in_range"]


_LEAST, _MOST = 1e-6, 1e6
"""First residuals between these are far from where squares leave the range of single precision."""


def residual_unit(g: Float[Tensor, "rows n"]) -> Float[Tensor, "rows 1"]:
    """Return what to multiply the residuals of each row by, so that squares stay in range.

    In single precision at least. One where they stay in range anyway, so that a row is computed
    alike whether or not others need a unit; else a power of two, which rounds nothing.
    """
    largest: Tensor = torch.linalg.vector_norm(g.detach(), torch.inf, 1, keepdim=True)
    largest = largest.to(torch.promote_types(g.dtype, torch.float32))
    usual = (largest == 0) | ((largest > _LEAST) & (largest < _MOST))
    # The mantissa of a number over the number itself is a power of two, exactly.
    return torch.where(usual, 1, torch.frexp(largest).mantissa / torch.where(usual, 1, largest))


def squares_stay_in_range(g: Float[Tensor, "rows n"]) -> bool:
    """Return whether no row needs a unit."""
    largest: Tensor = torch.linalg.vector_norm(g.detach(), torch.inf, 1)
    return largest.min().item() > _LEAST and largest.max().item() < _MOST


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
