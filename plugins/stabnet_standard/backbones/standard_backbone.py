"""What all standard backbones are: a network with a shape, weights from a file, and a freeze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, final

from jaxtyping import Float
from torch import Tensor, nn

import stabnet
from stabnet.bounds import interval, lipschitz_bound
from stabnet.interfaces import Backbone

__all__ = ["StandardBackbone"]


@final
class StandardBackbone(Backbone):
    """A backbone made of a plain network.

    Args:
        net: the network, from ``(batch, *in_shape)`` to ``(batch, *out_shape)``.
        in_shape: shape of one input.
        out_shape: shape of one input's features.
        weights: a safetensors file with the state dict of the backbone, loaded into it.
        frozen: train no parameter, and stay in eval mode even under :meth:`train`, so that the
            statistics of batch normalization do not move either. Gradients still pass through.

    Attributes:
        frozen: whether the backbone is frozen.
    """

    def __init__(
        self,
        net: nn.Module,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        *,
        weights: str | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)
        self.frozen = frozen
        if weights is not None:
            stabnet.load_weights(self, weights)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, unless frozen: a frozen backbone stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """Map inputs to features.

        Args:
            x: inputs ``(batch, *in_shape)``.

        Returns:
            Features ``(batch, *out_shape)``.

        Raises:
            InvalidInputError: if the inputs have another shape.
        """
        if x.shape[1:] != self.in_shape:
            raise stabnet.InvalidInputError(
                f"the backbone was built for inputs (batch, {', '.join(map(str, self.in_shape))}); "
                f"got {tuple(x.shape)}. Build it with the in_shape of your data"
            )
        features: Tensor = self.net(x)
        return features

    def interval(
        self, lower: Tensor, upper: Tensor, *, sound: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return bounds of the features over a box of inputs; see :mod:`stabnet.bounds`.

        Raises:
            NoBoundError: names the layer that cannot be bounded.
        """
        return interval(self.net, lower, upper, sound=sound)

    def lipschitz_bound(self) -> float:
        """Return a bound of the Lipschitz constant; see :func:`stabnet.bounds.lipschitz_bound`.

        Raises:
            NoBoundError: names the layer that cannot be bounded.
        """
        return lipschitz_bound(self.net, self.in_shape)
