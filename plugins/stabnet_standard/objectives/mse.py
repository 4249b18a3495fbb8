"""Mean squared error for regression."""

from __future__ import annotations

from typing import Literal, final

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet.interfaces import Objective

from ._evaluate import evaluate

__all__ = ["MeanSquaredError"]


@final
class MeanSquaredError(Objective):
    """The squared error of the model's outputs, averaged over samples and outputs."""

    dynamics: Literal["any", "flow", "equilibrium"] = "any"
    task: Literal["classification", "regression"] = "regression"

    def __init__(self) -> None:  # nn.Module's own takes any arguments
        super().__init__()

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Float[Tensor, "batch outputs"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: the model.
            x: inputs ``(batch, *in_shape)``.
            y: target values ``(batch, num_outputs)``.

        Returns:
            The loss; and ``loss`` and what the dynamics did, to log.

        Raises:
            InvalidInputError: if the targets have another shape than the outputs, or are whole
                numbers.
        """
        outputs, logs = evaluate(model, x)
        if not y.is_floating_point():
            raise stabnet.InvalidInputError(
                f"target values are floating-point numbers; got {y.dtype}. Convert them with "
                "y.float(), or use the objective 'cross_entropy' if they are class labels"
            )
        if y.shape != outputs.shape:
            # Broadcasting (batch,) against (batch, 1) would silently compare all pairs.
            hint = "; use y[:, None]" if (*y.shape, 1) == outputs.shape else ""
            raise stabnet.InvalidInputError(
                f"target values have the shape of the outputs, {tuple(outputs.shape)}; "
                f"got {tuple(y.shape)}{hint}"
            )
        loss = F.mse_loss(outputs, y)
        return loss, {"loss": loss.detach(), **logs}
