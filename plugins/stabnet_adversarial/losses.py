"""Losses that an attack raises, one value per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stabnet import InvalidInputError, InvalidOptionError

__all__ = ["LOSSES", "Loss", "check_loss", "dlr", "margin"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""``(logits, labels) -> one value per image``, larger where the classification is worse."""


def cross_entropy(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Return the cross entropy; its gradient vanishes where a model is very confident."""
    return F.cross_entropy(logits, y, reduction="none")


def margin(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    r"""Return by how much the best other class beats the true one.

    .. math:: \max_{j \ne y} f_j(x) - f_y(x)

    It is positive exactly where the classification is wrong. Scaling the logits scales it, and so
    changes no direction of ascent; confidence does not flatten it.

    Args:
        logits: at least two classes.
        y: true labels.

    Raises:
        InvalidInputError: for a single class.

    References:
        Carlini, Wagner: "Towards evaluating the robustness of neural networks", 2017, the
        objective f6 without its bound.
    """
    _check_classes(logits, 2)
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf)
    return others.amax(1) - own


def dlr(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    r"""Return the difference of logits ratio, the margin relative to the spread of the top three.

    .. math:: \frac{\max_{j \ne y} f_j(x) - f_y(x)}{f_{(1)}(x) - f_{(3)}(x)}

    Args:
        logits: at least three classes.
        y: true labels.

    Raises:
        InvalidInputError: for fewer classes.

    References:
        Croce, Hein: "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", 2020, (6).
    """
    _check_classes(logits, 3)
    top = logits.topk(3, dim=1).values
    spread = (top[:, 0] - top[:, 2]).clamp_min(torch.finfo(logits.dtype).tiny)
    return margin(logits, y) / spread


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
)
"""All losses by name."""


def check_loss(loss: str) -> Loss:
    """Return the loss of a name.

    Raises:
        InvalidOptionError: for an unknown one.
    """
    if loss not in LOSSES:
        raise InvalidOptionError(f"loss={loss!r} is unknown; it is one of {', '.join(LOSSES)}")
    return LOSSES[loss]


def _check_classes(logits: Float[Tensor, "batch classes"], least: int) -> None:
    if logits.shape[1] < least:
        raise InvalidInputError(
            f"the model has {logits.shape[1]} classes; the attack compares at least {least}, with "
            "the loss 'dlr' three"
        )
