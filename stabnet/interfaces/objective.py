"""Objectives: what training minimizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Objective"]


class Objective(nn.Module, ABC):
    """A training loss, called with the model itself and one batch.

    Attributes:
        dynamics: the dynamics it needs, ``"any"``, ``"flow"`` or ``"equilibrium"``; training
            refuses a model without it.
        inputs: ``"states"`` if inputs must be the states that a flow moves, as in a model of a
            physical system.
        task: whether targets are class labels or values.
        metric: what training judges an epoch by, on the validation set: the highest ``"accuracy"``
            or the lowest ``"loss"``; ``None`` for the accuracy of labels and the loss of values.
    """

    dynamics: Literal["any", "flow", "equilibrium"] = "any"
    inputs: Literal["any", "states"] = "any"
    task: Literal["classification", "regression"] = "classification"
    metric: Literal["accuracy", "loss"] | None = None

    @abstractmethod
    def forward(
        self, model: nn.Module, x: Float[Tensor, "batch ..."], y: Tensor
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Evaluate the loss of ``model`` on one batch.

        Args:
            model: the model, usually a :class:`stabnet.StabilityModel`.
            x: inputs ``(batch, *in_shape)``; images in [0, 1].
            y: class labels ``(batch,)``, target values ``(batch, num_outputs)``, or values at
                several times ``(batch, times, num_outputs)``.

        Returns:
            The scalar loss, and detached scalars to log (``accuracy``, ``nfe``, ``converged``, …).
        """
