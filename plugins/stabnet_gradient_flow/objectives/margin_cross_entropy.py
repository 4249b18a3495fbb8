"""Cross entropy with a margin, in units of the certified radius."""

from __future__ import annotations

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stabnet.interfaces import Objective
from stabnet.values import number

from ._radii import evaluate

__all__ = ["MarginCrossEntropy"]


@final
class MarginCrossEntropy(Objective):
    r"""Cross entropy of radii instead of logits: it asks for a certified radius.

    .. math:: T \log\Big(1 + \sum_{j \ne y} e^{(\rho - m_j)/T}\Big), \qquad
              m_j = \frac{f_y - f_j}{L\, \|w_y - w_j\|_2}

    averaged over the batch, with the margin :math:`\rho`, the temperature :math:`T`, the rows
    :math:`w_j` of an affine head (for any other head :math:`\sqrt2` instead of their distances)
    and the Lipschitz constant :math:`L` of the model's normalization.

    The radii :math:`m_j` are *nominal*: what lies between normalization and head is counted as
    non-expansive. They are certified radii up to the rounding of such blocks; of a model without
    them they mean nothing, and :mod:`stabnet.certify` says what they are worth. Larger weights of
    the head do not change the loss. As :math:`T \to 0` it becomes the hinge of ``margin_hinge``.

    Args:
        margin: the radius :math:`\rho` to train for, in l2 and in the units of the inputs (pixels
            in [0, 1]), positive. About twice the radius at which accuracy is wanted is a start.
        temperature: :math:`T`, positive, in the same units: how far from the margin samples count.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        [SNN] section 6.2 for a loss with a margin. Tsuzuku, Sato, Sugiyama: "Lipschitz-margin
        training", 2018, for margins in units of the radius. Prach, Lampert: "Almost-orthogonal
        layers for efficient general-purpose Lipschitz networks", 2022, for offset and temperature.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "any"
    task: Literal["classification", "regression"] = "classification"
    metric: Literal["accuracy", "loss"] | None = "loss"  # accuracy says nothing of the radius

    def __init__(self, margin: float = 0.5, temperature: float = 0.2) -> None:
        super().__init__()
        self.margin = number("margin", margin, above=0)
        self.temperature = number("temperature", temperature, above=0)

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
        excess = (self.margin - radii) / self.temperature
        # The own class, at −∞ until here, is the 1 under the logarithm.
        exponents = excess.scatter(1, y.long()[:, None], 0.0)
        loss = self.temperature * torch.logsumexp(exponents, 1).mean()
        return loss, {"loss": loss.detach(), **logs}

    def extra_repr(self) -> str:
        """Return margin and temperature."""
        return f"margin={self.margin}, temperature={self.temperature}"
