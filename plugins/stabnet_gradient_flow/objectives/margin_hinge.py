"""Hinge loss of the radius."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet.interfaces import Objective
from stabnet.values import number

from ._radii import evaluate

__all__ = ["MarginHinge"]


@final
class MarginHinge(Objective):
    r"""How much the radius falls short of a margin.

    .. math:: \max\big(0,\ \rho - \min_{j \ne y} m_j\big), \qquad
              m_j = \frac{f_y - f_j}{L\, \|w_y - w_j\|_2}

    averaged over the batch. The radii are nominal, as in
    :class:`~stabnet_gradient_flow.MarginCrossEntropy`, whose limit at temperature zero this is.

    Args:
        margin: the radius :math:`\rho` to train for, in l2 and in the units of the inputs (pixels
            in [0, 1]), positive.

    Raises:
        InvalidOptionError: for a margin out of range.

    References:
        [SNN] section 6.2 for a loss with a margin. Anil, Lucas, Grosse: "Sorting out Lipschitz
        function approximation", 2019, for a hinge on the certified radius.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "any"
    task: Literal["classification", "regression"] = "classification"
    metric: Literal["accuracy", "loss"] | None = "loss"  # accuracy says nothing of the radius

    def __init__(self, margin: float = 0.5) -> None:
        super().__init__()
        self.margin = number("margin", margin, above=0)

    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: the model, usually a :class:`stabnet.StabilityModel`.
            x: inputs ``(batch, *in_shape)``.
            y: class labels ``(batch,)``. Their range is checked on the CPU only: elsewhere it
                would wait for the device.

        Returns:
            The loss; and to log ``loss``, ``accuracy``, the share ``nominal_certified`` of samples
            whose nominal radius is at least the margin, and what the dynamics did.

        Raises:
            InvalidInputError: for labels of another type, shape or range, or a model that does not
                return logits of two classes or more.
        """
        radii, logs = evaluate(model, x, y, self.margin)
        loss = torch.relu(self.margin - radii.amin(1)).mean()
        return loss, {"loss": loss.detach(), **logs}

    def extra_repr(self) -> str:
        """Return the margin."""
        return f"margin={self.margin}"
