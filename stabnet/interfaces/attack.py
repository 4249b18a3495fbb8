"""Attacks: what looks for inputs that a model gets wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Attack"]


class Attack(ABC):
    """A search for a misclassified input within a ball around the given one.

    Attributes:
        eps: radius of the ball, in pixel units (images in [0, 1]).
        norm: the norm of the ball.
        steps: gradient steps per image.
    """

    eps: float
    norm: Literal["linf", "l2"]
    steps: int

    @abstractmethod
    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch c h w"], y: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """Search for adversarial inputs.

        The model is attacked in eval mode, in pixel space, and every module's mode is restored.

        Args:
            model: the model under attack; normalization is part of it.
            x: images in [0, 1].
            y: their true labels.

        Returns:
            Images in [0, 1], each within ``eps`` of its original in ``norm``.
        """
