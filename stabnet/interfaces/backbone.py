"""Backbones: what computes the features of an input, once."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """A map from inputs to features.

    Attributes:
        in_shape: shape of one input, without the batch.
        out_shape: shape of one input's features.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Map inputs ``(batch, *in_shape)`` to features ``(batch, *out_shape)``."""
