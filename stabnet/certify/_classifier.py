"""What every certificate needs of a classifier: an exact copy, checked labels, right answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..checks import is_traced
from ..errors import InvalidInputError
from ..plugin import CONFIG_ATTRIBUTE
from ..robustness import check_logits

__all__ = ["check_labels", "classified_rightly", "device_of", "exact_copy", "name_of"]

_Module = TypeVar("_Module", bound=nn.Module)


def exact_copy(model: _Module) -> _Module:
    """Return a float64 copy in eval mode, with the weights and buffers as they stand."""
    return copy.deepcopy(model).double().eval()


def check_labels(logits: Float[Tensor, "_ classes"], y: Int[Tensor, " batch"]) -> None:
    """Raise unless ``y`` holds labels for this many classes, of which there must be two.

    Raises:
        InvalidInputError: says what is wrong with the labels.
    """
    classes = logits.shape[1]
    if classes < 2:
        raise InvalidInputError(f"margins are between classes; the model has {classes} output")
    if y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        raise InvalidInputError(
            f"labels have shape {tuple(y.shape)} and dtype {y.dtype}; expected one integer class "
            "per input"
        )
    if not is_traced() and y.numel() and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise InvalidInputError(
            f"labels go from {int(y.min())} to {int(y.max())}; the model has {classes} classes "
            f"(0 to {classes - 1})"
        )


def classified_rightly(
    logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]
) -> Bool[Tensor, " batch"]:
    """Return where the largest logit is that of ``y``; nowhere in a row with a NaN."""
    check_logits(logits, y)
    # argmax would take the first NaN for an answer.
    return (logits.argmax(1) == y) & ~logits.isnan().any(1)


def device_of(model: nn.Module) -> torch.device | None:
    """Return where the model's tensors are; ``None`` if it has none."""
    return next((t.device for t in chain(model.parameters(), model.buffers())), None)


def name_of(model: nn.Module) -> str:
    """Return the model's registered name, or its class."""
    config: Mapping[str, Any] = getattr(model, CONFIG_ATTRIBUTE, {})
    return str(config.get("name", type(model).__name__))
