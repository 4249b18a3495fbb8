"""The sandwich layer of Lipschitz-bounded deep networks, for vectors and for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet.bounds import lipschitz_product
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import whole

from ..activations import monotone_activation
from ..cayley_map import saturated
from ..semi_orthogonal import SemiOrthogonal
from ._guarantees import check_finite, non_expansive
from ._states import state_sizes

__all__ = ["Sandwich"]

_LARGEST_LOG = 20.0
"""What the logarithm of a scale stays below, so that states remain in range in single precision."""


@final
class Sandwich(Block):
    r"""A layer of Lipschitz constant 1 that has an activation between two matrices.

    .. math:: z \mapsto \sqrt{2}\, A^\top \Psi\, \sigma(\sqrt{2}\, \Psi^{-1} B z + b), \qquad
              A A^\top + B B^\top = I, \qquad \Psi = \operatorname{diag}(e^d)

    with slopes of :math:`\sigma` in :math:`[0, 1]`. :math:`[A\ B]^\top` has orthonormal columns, by
    the Cayley map of a free matrix; for images it is a circular convolution, see
    :class:`.SemiOrthogonal`, and :math:`\Psi` has one number per channel. ``d`` saturates at ±20.

    *Why it increases no distance.* For two states the difference of the activations is ``S`` times
    the difference of their arguments, with ``S`` diagonal, its entries in :math:`[0, 1]`, one per
    feature and pixel. It commutes with :math:`\Psi`, which therefore cancels:

    .. math:: \Phi(z) - \Phi(w) = 2 A^\top S B\, (z - w) .

    Let :math:`M = [A\ B]` and :math:`\mu = \|M\|_2^2`, which is 1 where the columns of
    :math:`M^\top` are orthonormal. Then :math:`N = M^\top S M` satisfies :math:`0 \preceq N
    \preceq \mu I`, so that :math:`\|N - \tfrac{\mu}{2} I\|_2 \le \tfrac{\mu}{2}`. The block
    :math:`A^\top S B` of ``N`` lies off the diagonal, where :math:`\tfrac{\mu}{2} I` is zero: so
    :math:`\|2 A^\top S B\|_2 \le \mu`. With slopes up to :math:`L_\sigma` only, it is
    :math:`L_\sigma \mu`.

    Args:
        state_shape: ``(n,)``, or ``(channels, height, width)``.
        features: those of the outgoing state, and as many hidden ones; as many as there come in if
            ``None``.
        kernel_size: of the kernel that the convolution is computed from, for images; at most
            their size.
        activation: one with slopes in [0, 1].

    Attributes:
        out_shape: shape of the outgoing state.
        matrix: :math:`[A\ B]^\top`.
        log_scale: ``d``, one number per feature.
        bias: ``b``, one number per feature.

    Raises:
        InvalidOptionError: for options out of range.

    References:
        Wang, Manchester: "Direct parameterization of Lipschitz-bounded deep networks", ICML 2023,
        the sandwich layer. There it follows from the matrix inequality of LipSDP instead.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        *,
        features: int | None = None,
        kernel_size: int = 3,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.state_shape = state_sizes("sandwich", state_shape)
        incoming, *image = self.state_shape
        outgoing = incoming if features is None else whole("features", features, 1)
        self.out_shape = (outgoing, *image)
        self.activation = monotone_activation(activation)
        self.matrix = SemiOrthogonal(outgoing + incoming, outgoing, tuple(image), kernel_size)
        self.log_scale = nn.Parameter(torch.zeros(outgoing))
        self.bias = nn.Parameter(torch.zeros(outgoing))

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the next states.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        matrices, outgoing = self.matrix(), self.out_shape[0]
        transposed_a, transposed_b = matrices[..., :outgoing, :], matrices[..., outgoing:, :]
        # With Ψ/√2 both roots become one factor 2, which does not round; and multiplied by and
        # divided by as the same number, the scale cancels as the proof says.
        log_scale = saturated(self.log_scale, _LARGEST_LOG)
        scale = self.matrix.along(log_scale.exp() * math.sqrt(0.5))
        argument = self.matrix.multiply(transposed_b.mH, z) / scale + self.matrix.along(self.bias)
        return 2 * self.matrix.multiply(transposed_a, scale * self.activation(argument))

    def lipschitz_bound(self) -> float:
        r"""Return :math:`L_\sigma \|M\|^2`, with a certified bound of the norm of ``M``.

        It is that of ``M`` as the forward pass computes it, so it exceeds 1 by that rounding.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        check_finite(self)
        norm = self.matrix.norm_bound()
        return lipschitz_product([norm, norm, self.activation.largest_slope])

    def guarantees(self) -> list[Guarantee]:
        """Return by how much the layer may increase distances between states."""
        return non_expansive(
            self,
            "‖2AᵀSB‖₂ ≤ ‖[A B]‖₂² = 1",
            "Wang & Manchester 2023, the sandwich layer",
            "the Cayley map",
        )

    def extra_repr(self) -> str:
        """Return shapes and activation."""
        return f"{self.state_shape} -> {self.out_shape}, activation={self.activation.name!r}"
