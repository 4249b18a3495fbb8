"""Optimizers by name, and how the learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from ..errors import InvalidOptionError
from ..plugin import build

__all__ = ["Schedule", "make_optimizer", "rate", "set_learning_rate"]

Schedule = Literal["cosine", "constant"]


def make_optimizer(
    optimizer: str | Mapping[str, Any], params: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """Build an optimizer by name.

    Args:
        optimizer: its name, or a dict of its ``"name"`` and options.
        params: what it optimizes.
        learning_rate: set on all of its parameter groups.

    Raises:
        UnknownNameError: for a name that nobody has.
        InvalidOptionError: for an option that the optimizer does not have, or a learning rate
            among its options.
    """
    if isinstance(optimizer, Mapping) and {"lr", "learning_rate"} & set(optimizer):
        raise InvalidOptionError(
            "the learning rate is fit's option learning_rate; leave it out of the optimizer's"
        )
    built: torch.optim.Optimizer = build(optimizer, kind="optimizer", params=list(params))
    set_learning_rate(built, learning_rate)
    return built


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def rate(schedule: Schedule, step: int, steps: int) -> float:
    r"""Return the share of the learning rate that is used at a step.

    Cosine annealing to zero over all optimizer steps of all epochs,
    :math:`\tfrac12 (1 + \cos(\pi\, k / K))` at step ``k`` of ``K``; or 1 throughout.

    Args:
        schedule: which of the two.
        step: ``k``, from 0.
        steps: ``K``.

    References:
        Loshchilov and Hutter, SGDR, ICLR 2017, equation 5, without restarts.
    """
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))
