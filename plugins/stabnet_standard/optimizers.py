"""Optimizers of torch, with the options that matter spelled out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

import stabnet

__all__ = ["adam", "adamw", "sgd"]


def adam(
    params: Iterable[Tensor],
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> torch.optim.Adam:
    """Return Adam.

    Args:
        params: what to train.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: weight of an l2 penalty, added to the gradient.

    References:
        Kingma and Ba, "Adam: a method for stochastic optimization".
    """
    return torch.optim.Adam(params, lr, _pair(betas), eps, weight_decay)


def adamw(
    params: Iterable[Tensor],
    lr: float = 1e-3,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> torch.optim.AdamW:
    """Return Adam with decoupled weight decay.

    Args:
        params: what to train.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: share of ``lr`` by which the weights shrink in every step.

    References:
        Loshchilov and Hutter, "Decoupled weight decay regularization".
    """
    return torch.optim.AdamW(params, lr, _pair(betas), eps, weight_decay)


def sgd(
    params: Iterable[Tensor],
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """Return stochastic gradient descent with momentum.

    Args:
        params: what to train.
        lr: learning rate.
        momentum: decay of the average of the gradient; 0 for none.
        weight_decay: weight of an l2 penalty, added to the gradient.
        nesterov: look ahead along the momentum.
    """
    return torch.optim.SGD(
        params, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )


def _pair(betas: Sequence[float]) -> tuple[float, float]:
    if len(betas) != 2:
        raise stabnet.InvalidOptionError(f"betas are two numbers; got {betas!r}")
    return float(betas[0]), float(betas[1])
