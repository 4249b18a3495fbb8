"""Evaluation: exact means over a whole set, with every module's mode restored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import nn

from ..checks import modes_restored
from ..errors import InvalidInputError
from ..interfaces import Objective
from ..plugin import build
from .metrics import Means
from .protocol import Batches

__all__ = ["evaluate"]


def evaluate(
    model: nn.Module,
    loader: Batches,
    objective: str | Mapping[str, Any] | Objective = "cross_entropy",
    *,
    accelerator: Accelerator | None = None,
    name: str = "evaluation",
) -> dict[str, float]:
    """Evaluate a model on a whole set, in eval mode and without gradients.

    Every sample counts once: with several processes each takes some of the batches, none padded,
    and the sums are added up. For an objective that is a mean over samples the result is thus the
    mean over the set, whatever the batch size.

    Args:
        model: the model.
        loader: batches ``(x, y)`` of the whole set.
        objective: the loss to report, and where the other metrics come from.
        accelerator: shares the work among its processes, in its precision; without one, the work
            is done where the model is.
        name: what messages call the set.

    Returns:
        ``loss``, ``accuracy`` for classification, and what else the objective logs (``nfe``,
        ``converged``, …).

    Raises:
        InvalidInputError: if the loader has no batch.
        NonFiniteLossError: if a loss is NaN or infinite.
    """
    module: Objective = build(objective, kind="objective")
    tensor = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    device = tensor.device if accelerator is None else accelerator.device
    batches: Any = loader
    if accelerator is not None:
        batches = prepare_data_loader(
            loader, device, accelerator.num_processes, accelerator.process_index, even_batches=False
        )
    module.to(device)
    means = Means(device)
    precision = nullcontext() if accelerator is None else accelerator.autocast()
    # Not inference_mode: objectives and potentials may differentiate inside their forward.
    with modes_restored(model, module), torch.no_grad(), precision:
        model.eval()
        module.eval()
        for x, y in batches:
            x, y = x.to(device), y.to(device)
            loss, logs = module(model, x, y)
            if module.task == "classification" and "accuracy" not in logs:
                logs = {**logs, "accuracy": (model(x).argmax(1) == y).float().mean()}
            means.update(loss, logs, len(x))
    result = (means if accelerator is None else means.across(accelerator)).read(f"of the {name}")
    if not result:
        raise InvalidInputError(f"the {name} set has no batch; give at least one sample")
    return result
