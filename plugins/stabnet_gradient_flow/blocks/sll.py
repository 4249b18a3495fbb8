"""The SDP-based Lipschitz layer: a residual step that is rescaled in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet.interfaces import Block, Features, Guarantee, check_block_state

from ..activations import Activation, monotone_activation
from ..operators import Operator, PaddingMode, operator
from ..rescaling import rescaled_rows
from ._guarantees import check_finite, non_expansive

__all__ = ["SLL", "sll"]

_OUTWARD = 1 + 2.0**-50
"""More than the few operations on plain numbers below can round away."""


def sll(
    state_shape: Sequence[int],
    *,
    hidden: int | None = None,
    kernel_size: int = 3,
    padding_mode: PaddingMode = "zeros",
    activation: str = "relu",
) -> SLL:
    """Build an SDP-based Lipschitz layer, for vectors or for images.

    Args:
        state_shape: ``(n,)``, or ``(channels, height, width)`` for a convolution.
        hidden: number of hidden features or channels; those of the state if ``None``.
        kernel_size: of a convolution, odd.
        padding_mode: of a convolution, ``"zeros"`` or ``"circular"``.
        activation: name of an activation with slopes in [0, 1].

    Raises:
        InvalidOptionError: for another activation, or an option out of range.
    """
    return SLL(
        operator(state_shape, hidden, kernel_size, padding_mode), monotone_activation(activation)
    )


@final
class SLL(Block):
    r"""A residual step that expands no distance, for every value of its weights.

    .. math:: f(z) = z - \tfrac{2}{L_\sigma} A^\top D\, \sigma(Az + b), \qquad
              D = \operatorname{diag}\Bigl(\sum_j |AA^\top|_{ij}\, q_j/q_i\Bigr)^{-1}

    with :math:`q > 0` learned and :math:`L_\sigma \le 1` the largest slope of :math:`\sigma`. With
    :math:`B = D^{1/2} A`, of norm at most one as proven in :mod:`stabnet_gradient_flow.rescaling`
    (also for convolutions with zero and circular padding), what is computed is

    .. math:: f(z) = z - \tfrac{2}{L_\sigma} B^\top s(Bz), \qquad
              s_i(y) = D_i^{1/2} \sigma\bigl(D_i^{-1/2} y + b_i\bigr) .

    The slopes of :math:`s/L_\sigma` are in :math:`[0, 1]`, so that :math:`f(z) - f(z') =
    (I - 2 B^\top S B)(z - z')` with a diagonal :math:`0 \preceq S \preceq I`, and

    .. math:: \|I - 2 B^\top S B\|_2 \le \max(1,\, 2\|B\|_2^2 - 1) .

    A forward pass computes :math:`AA^\top` anew, one product of the weight with itself; see
    :func:`stabnet_gradient_flow.rescaled_rows` for its cost.

    Args:
        operator: the geometry of :math:`A`.
        activation: :math:`\sigma`, with slopes in [0, 1].

    Attributes:
        weight: the weights of :math:`A`.
        bias: :math:`b`, one number per hidden feature, initially 0.
        log_q: :math:`\log q`, one number per hidden feature, initially 0.

    References:
        Araujo, Havens, Delattre, Allauzen, Hu: "A unified algebraic perspective on Lipschitz neural
        networks", 2023, theorem 3, with :math:`W = A^\top`.
    """

    def __init__(self, operator: Operator, activation: Activation) -> None:
        super().__init__()
        features = operator.hidden_shape[0]
        self.state_shape = operator.state_shape
        self.operator, self.activation = operator, activation
        self.weight = nn.Parameter(operator.initial_weight())
        self.bias = nn.Parameter(torch.zeros(features))
        self.log_q = nn.Parameter(torch.zeros(features))

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return ``z − (2/L_σ) Aᵀ D σ(Az + b)``.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        weight, norms = rescaled_rows(self.weight, self.log_q)
        scale, bias = self.operator.along(norms), self.operator.along(self.bias)
        hidden = torch.addcmul(bias, self.operator(weight, z), scale)
        # Multiplied and divided by the same numbers, so that no slope exceeds that of σ.
        step = self.operator.adjoint(weight, self.activation(hidden) / scale)
        # The largest slope of every activation here is a power of two: this is no rounded number.
        return torch.sub(z, step, alpha=2 / self.activation.largest_slope)

    @torch.no_grad()
    def lipschitz_bound(self) -> float:
        """Return ``max(1, 2‖B‖² − 1)`` for ``B`` as forward computes it: 1 up to its rounding.

        Where a GPU computes the product of the kernels in TF32, that rounding is of 11 bits.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        weight, norms = rescaled_rows(self.weight, self.log_q)
        check_finite(self, norms)
        norm = self.operator.norm_bound(weight)
        return max(1.0, 2 * norm**2 * _OUTWARD - 1)

    def guarantees(self) -> list[Guarantee]:
        """Return by how much the block may increase distances between states."""
        return non_expansive(
            self,
            "‖I − 2BᵀSB‖₂ ≤ 1, from ‖B‖₂ ≤ 1 and 0 ≼ S ≼ I",
            "Araujo et al. 2023, theorem 3",
            "the rescaling",
        )

    def extra_repr(self) -> str:
        """Return shapes and activation."""
        return (
            f"{self.state_shape}, hidden={self.operator.hidden_shape[0]}, "
            f"activation={self.activation.name!r}"
        )
