"""Checks and switches that models and services share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import InvalidInputError

__all__ = ["check_finite", "frozen_batch_statistics", "is_traced"]


def is_traced() -> bool:
    """Return whether tensors have no values to look at: under compile, export or ``torch.func``."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def check_finite(x: Tensor, what: str) -> None:
    """Raise :class:`InvalidInputError` if a tensor holds a NaN or an infinity.

    Costs one host synchronization; does nothing where tensors are traced.
    """
    if is_traced() or bool(torch.isfinite(x).all()):
        return
    bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
    raise InvalidInputError(
        f"{what} holds NaN or infinite values in {len(bad)} of {x.shape[0]} samples "
        f"(first: {bad[:5]}); expected finite values. Clean the data first"
    )


@contextmanager
def frozen_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Leave the running statistics of batch normalization alone within the block.

    Layers in training mode still normalize by the batch's statistics; they only don't record them.
    """
    switched = [
        m
        for m in module.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    for m in switched:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in switched:
            m.track_running_stats = True
