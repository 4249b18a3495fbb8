"""Norms whose squares may be out of range."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["lengths"]


def lengths(v: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
    """Return the l2 norm of each vector, which neither overflows nor underflows on the way."""
    flat = v.flatten(1)
    if not flat.shape[1]:
        return flat.new_zeros(len(flat))
    largest = flat.abs().amax(1)
    scale = torch.where(largest == 0, 1, largest)
    found: Tensor = scale * torch.linalg.vector_norm(flat / scale[:, None], dim=1)
    return found
