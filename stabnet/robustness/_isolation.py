"""Leaving the caller's model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..checks import modes_restored

__all__ = ["eval_mode"]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode within the block, and give every module its own mode back.

    Args:
        model: any module.
    """
    with modes_restored(model):
        model.eval()
        yield
