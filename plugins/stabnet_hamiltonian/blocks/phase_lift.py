"""From inputs to states of a Hamiltonian system, by zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from stabnet import InvalidOptionError
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import shape, whole

__all__ = ["PhaseLift"]


@final
class PhaseLift(Block):
    r"""Makes one half of the entries (channels) positions, the other momenta, and appends zeros.

    .. math:: (x_1, x_2) \mapsto (q, p) = (x_1, 0;\; x_2, 0)

    Of an odd number the larger half becomes positions. An isometry.

    Args:
        state_shape: ``(n,)``, or ``(channels, height, width)``, or any other shape.
        width: first size of ``(q, p)``; even, and at least ``n``. The smallest if ``None``.

    Attributes:
        out_shape: shape of ``(q, p)``.

    Raises:
        InvalidOptionError: for a width that is odd or too small.

    References:
        [SNN] section 4, where points ``(x₁, x₂)`` become ``(x₁, 0, x₂, 0)``.
    """

    def __init__(self, state_shape: Sequence[int], width: int | None = None) -> None:
        super().__init__()
        self.state_shape = shape("state_shape", state_shape)
        own, *rest = self.state_shape
        least = own + own % 2
        size = least if width is None else whole("width", width, 1)
        if size % 2 or size < least:
            raise InvalidOptionError(
                f"width={size} must be even, for positions and momenta, and at least {least} for "
                f"inputs of shape {self.state_shape}"
            )
        self.out_shape = (size, *rest)

    def forward(
        self, z: Float[Tensor, "batch n ..."], u: Features = None
    ) -> Float[Tensor, "batch width ..."]:
        """Return the states ``(q, p)``.

        Raises:
            InvalidInputError: for inputs of another shape.
        """
        check_block_state(z, self.state_shape)
        half, own = self.out_shape[0] // 2, self.state_shape[0]
        positions = (own + 1) // 2
        q, p = z[:, :positions], z[:, positions:]
        rest = z.shape[2:]
        zeros = [z.new_zeros(len(z), half - x.shape[1], *rest) for x in (q, p)]
        return torch.cat([q, zeros[0], p, zeros[1]], 1)

    def inverse(
        self, z: Float[Tensor, "batch width ..."], u: Features = None
    ) -> Float[Tensor, "batch n ..."]:
        """Return the inputs that the block maps to ``z``; what it makes zero is not looked at.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.out_shape)
        own = self.state_shape[0]
        q, p = z.chunk(2, 1)
        return torch.cat([q[:, : (own + 1) // 2], p[:, : own // 2]], 1)

    def lipschitz_bound(self) -> float:
        """Return 1: zeros add nothing to a distance."""
        return 1.0

    def guarantees(self) -> list[Guarantee]:
        """Return that the block keeps distances between states."""
        return [
            Guarantee(
                claim="the block keeps every distance between states",
                formula="‖f(z) − f(z′)‖₂ = ‖z − z′‖₂",
                source="f appends zeros, up to a permutation",
                status="by construction",
            )
        ]

    def extra_repr(self) -> str:
        """Return the shapes."""
        return f"{self.state_shape} -> {self.out_shape}"
