"""What a training came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from torch import nn

from .step_size import StepSizeSensitivity

__all__ = ["FitResult"]


@final
@dataclass(frozen=True)
class FitResult:
    """The outcome of :func:`stabnet.training.fit`.

    Attributes:
        model: the model that was given, holding the weights of the best validation epoch.
        history: one record per epoch, the lines of ``metrics.jsonl``.
        monitored: one record per call of the monitor, the lines of ``monitor.jsonl``: how many
            optimizer steps were done (``step``), and what it returned. Empty without a monitor.
        best_epoch: the epoch (from 1) whose weights the model holds.
        metric: what decided the best epoch: the highest ``"accuracy"`` or the lowest ``"loss"``.
        best_validation: the value of that metric on the validation set, at the best epoch.
        test: metrics of the model on the test set.
        step_size: what finer steps would change on the first test samples; ``None`` for a model
            without fixed-step integrators.
        seconds: wall time of training and validation, calls of the monitor within the epochs
            included, summed over resumed runs.
        complete: whether all epochs were run; false if the time limit cut training short.
        run_dir: the run folder.
        weights: the best weights, a safetensors file.
        checkpoint: what a resume continues from.
        report: the report, in Markdown.
    """

    model: nn.Module
    history: tuple[Mapping[str, float], ...]
    monitored: tuple[Mapping[str, Any], ...]
    best_epoch: int
    metric: Literal["accuracy", "loss"]
    best_validation: float
    test: Mapping[str, float]
    step_size: StepSizeSensitivity | None
    seconds: float
    complete: bool
    run_dir: Path
    weights: Path
    checkpoint: Path
    report: Path
