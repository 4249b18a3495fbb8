"""The residual block without a constraint: what non-expansive blocks are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet.bounds import lipschitz_product
from stabnet.interfaces import Block, Features, check_block_state

from ..activations import monotone_activation
from ..operators import PaddingMode, operator

__all__ = ["FreeResidual"]


@final
class FreeResidual(Block):
    r"""A residual block :math:`z \mapsto z + B \sigma(Az + b)` with free matrices or convolutions.

    The non-expansive block :math:`z - h A^\top \sigma(Az + b)` is the case :math:`B = -h A^\top`.
    Here the two are free of each other, and nothing bounds their norms: the block is not
    non-expansive, and claims nothing. Its bound is what it is, and may be large.

    Args:
        state_shape: ``(n,)``, or ``(channels, height, width)``.
        hidden: number of hidden features or channels. ``None`` for half of those of the state,
            rounded up: the two matrices then have as many entries as the one of a non-expansive
            block of full width.
        kernel_size: of convolutions, odd.
        padding_mode: of convolutions, ``"zeros"`` or ``"circular"``.
        activation: σ, one of those that non-expansive blocks take.

    Attributes:
        weight: ``A``.
        outgoing: ``Bᵀ``.
        bias: ``b``, one number per hidden feature.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        [SNN] section 6.2, the ResNet of the comparison.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        *,
        hidden: int | None = None,
        kernel_size: int = 3,
        padding_mode: PaddingMode = "zeros",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if hidden is None:
            hidden = (operator(state_shape).state_shape[0] + 1) // 2
        self.operator = operator(state_shape, hidden, kernel_size, padding_mode)
        self.state_shape = self.operator.state_shape
        self.activation = monotone_activation(activation)
        self.weight = nn.Parameter(self.operator.initial_weight())
        self.outgoing = nn.Parameter(self.operator.initial_weight())
        self.bias = nn.Parameter(torch.zeros(hidden))

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return ``z + Bσ(Az + b)``.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        hidden = self.activation(self.operator(self.weight, z, self.bias))
        return z + self.operator.adjoint(self.outgoing, hidden)

    def lipschitz_bound(self) -> float:
        r"""Return :math:`1 + L_\sigma \|A\| \|B\|`, from certified bounds of the norms.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        norms = [self.operator.norm_bound(w) for w in (self.weight, self.outgoing)]
        branch = lipschitz_product([*norms, self.activation.largest_slope])
        # One rounding of the sum.
        return (1 + branch) * (1 + 2.0**-52)

    def extra_repr(self) -> str:
        """Return shape, hidden features and activation."""
        hidden = self.operator.hidden_shape[0]
        return f"{self.state_shape}, hidden={hidden}, activation={self.activation.name!r}"
