"""Bring what lags behind the weights up to date."""

from __future__ import annotations

from torch import nn

from .interfaces import Renormalizable

__all__ = ["renormalize"]


def renormalize(model: nn.Module) -> int:
    """Let every part that follows its weights by an estimate compute it anew, from a sound bound.

    In training, a block whose step depends on the norm of its weights follows that norm by an
    estimate, which is cheap, late and too low. After this call the step is within its limit, and
    certificates are as good as the method promises. :func:`stabnet.training.fit` makes it once,
    before the final test; whoever trains by hand or edits weights calls it before deployment.
    Certificates are sound without it, but may be worse.

    Args:
        model: any module; parts with a method ``renormalize()`` are called, in their order.

    Returns:
        How many parts there were.

    Raises:
        InvalidInputError: for weights that are not finite.
    """
    parts = [module for module in model.modules() if isinstance(module, Renormalizable)]
    for part in parts:
        part.renormalize()
    return len(parts)
