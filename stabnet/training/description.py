"""What a run is made of: its loaders, and the description that goes into ``config.json``."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from itertools import count
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from torch import nn

from .. import __version__
from ..errors import InvalidOptionError
from ..interfaces import Objective
from ..plugin import CONFIG_ATTRIBUTE
from .options import Options
from .protocol import Batches, TrainingData

__all__ = ["describe_run", "load_splits"]


def load_splits(data: TrainingData, batch_size: int, model: nn.Module) -> dict[str, Batches]:
    """Return the loaders of all three splits; only training is shuffled and augmented.

    Args:
        data: the data.
        batch_size: samples per batch.
        model: what will be trained on them.

    Raises:
        InvalidOptionError: if a split is empty, or the last training batch would be a single
            sample of which batch normalization has no statistics.
    """
    loaders: dict[str, Batches] = {
        split: data.loader(
            split, batch_size=batch_size, shuffle=split == "train", augment=split == "train"
        )
        for split in ("train", "validation", "test")
    }
    for split, loader in loaders.items():
        if len(loader) == 0:
            raise InvalidOptionError(
                f"the {split} set has no batch; the best epoch is chosen on the validation set, "
                "so all three must have samples"
            )
    samples = len(loaders["train"].dataset)  # type: ignore[arg-type]
    normalizes = any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    if normalizes and (batch_size == 1 or samples % batch_size == 1):
        other = next(size for size in count(batch_size + 1) if samples % size != 1)
        raise InvalidOptionError(
            f"batch_size={batch_size} leaves one of the {samples} training samples alone in a "
            f"batch, and batch normalization needs two; use another, such as {other}"
        )
    return loaders


def describe_run(
    model: nn.Module,
    objective: Objective,
    data: TrainingData,
    loaders: Mapping[str, Batches],
    options: Options,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return what describes the run; all of it but ``environment`` must agree for a resume.

    Args:
        model: the model.
        objective: what is minimized.
        data: the data.
        loaders: its loaders; the first validation batch tells one split from another.
        options: the options.
        accelerator: devices, processes and precision.
    """
    dataset = data.dataset
    x, y = next(iter(loaders["validation"]))
    seen = hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()
    return {
        "model": _described(model),
        "objective": _described(objective),
        "training": {**options.to_dict(), "processes": accelerator.num_processes},
        "data": {
            "name": dataset.name,
            "task": dataset.task,
            "in_shape": list(dataset.in_shape),
            "num_outputs": dataset.num_outputs,
            "augmentation": dataset.augmentation,
            "sizes": {split: _size(loader) for split, loader in loaders.items()},
            "first_validation_batch": seen[:16],
        },
        "environment": {
            "stabnet": __version__,
            "torch": torch.__version__,
            "accelerate": accelerate.__version__,
            "python": platform.python_version(),
            "device": str(accelerator.device),
        },
    }


def _size(loader: Batches) -> int:
    samples: Any = loader.dataset
    return len(samples)


def _described(module: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] | None = getattr(module, CONFIG_ATTRIBUTE, None)
    return config or {"class": f"{type(module).__module__}.{type(module).__qualname__}"}
