"""Cross entropy for classification."""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Objective

from ._evaluate import evaluate

__all__ = ["CrossEntropy"]


@final
class CrossEntropy(Objective):
    r"""The mean cross entropy of the model's logits.

    .. math:: -\sum_k q_k \log \operatorname{softmax}(\mathrm{logits})_k, \qquad
              q_k = (1 - s)\,[k = y] + s / C

    Args:
        label_smoothing: the share :math:`s` that is spread over all ``C`` classes, in [0, 1).

    Raises:
        InvalidOptionError: if ``label_smoothing`` is out of range.

    References:
        Szegedy et al., "Rethinking the Inception architecture for computer vision", section 7.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "any"
    task: Literal["classification", "regression"] = "classification"

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise stabnet.InvalidOptionError(
                f"label_smoothing is at least 0 and below 1; got {label_smoothing!r}"
            )
        self.label_smoothing = label_smoothing

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: the model.
            x: inputs ``(batch, *in_shape)``.
            y: class labels ``(batch,)``, whole numbers from 0 to the number of outputs less 1.
                The range is checked for labels on the CPU only: elsewhere it would wait for the
                device.

        Returns:
            The loss; and ``loss``, ``accuracy`` and what the dynamics did, to log.

        Raises:
            InvalidInputError: if the labels have another type, shape or range, or the model does
                not return ``(batch, classes)``.
        """
        logits, logs = evaluate(model, x)
        _check_labels(logits, y)
        loss = F.cross_entropy(logits, y.long(), label_smoothing=self.label_smoothing)
        accuracy = (logits.detach().argmax(dim=1) == y).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": accuracy, **logs}


def _check_labels(logits: Tensor, y: Tensor) -> None:
    if logits.ndim != 2:
        raise stabnet.InvalidInputError(
            f"cross entropy takes logits (batch, classes); the model returned {tuple(logits.shape)}"
        )
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise stabnet.InvalidInputError(
            f"class labels are whole numbers; got {y.dtype}. Convert them with y.long(), or use "
            "the objective 'mse' if they are values"
        )
    batch, classes = logits.shape
    if y.shape != (batch,):
        raise stabnet.InvalidInputError(
            f"class labels have shape (batch,), here ({batch},); got {tuple(y.shape)}"
        )
    if y.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = y[(y < 0) | (y >= classes)]
    if len(wrong):
        raise stabnet.InvalidInputError(
            f"label {wrong[0].item()} but the model has {classes} outputs; labels are 0 to "
            f"{classes - 1}. Build the model with the num_outputs of your data"
        )
