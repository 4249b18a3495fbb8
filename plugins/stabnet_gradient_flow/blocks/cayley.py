"""An orthogonal layer by the Cayley map, for vectors and for images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet.bounds import lipschitz_product
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import flag, whole

from ..activations import check_features, feed_forward_activation
from ..semi_orthogonal import SemiOrthogonal
from ._guarantees import check_finite, non_expansive
from ._states import state_sizes

__all__ = ["Cayley"]


@final
class Cayley(Block):
    r"""A layer :math:`z \mapsto \sigma(Qz + b)` with orthonormal columns or rows of ``Q``.

    ``Q`` is a matrix, or for images an orthogonal circular convolution; see
    :class:`.SemiOrthogonal`. Where there are at least as many features as those of the state,
    :math:`Q^\top Q = I`, and ``Q`` keeps all distances; else :math:`Q Q^\top = I`, and it keeps
    those within its row space. With MaxMin, which permutes features, gradients keep their length
    through the layer wherever ``Q`` does.

    The layer has the Lipschitz constant :math:`L_\sigma \|Q\|_2 = 1` at most.

    The matrices are computed at every call, once for all of its states, in eval mode too: some
    :math:`27 c^3` operations at each of :math:`h (\lfloor w/2 \rfloor + 1)` frequencies for ``c``
    channels. On one core of a CPU that took 44 ms for 64 channels of 14×14 pixels, and the rest of
    the layer 12 ms for 64 images; large batches pay for it.

    Args:
        state_shape: ``(n,)``, or ``(channels, height, width)``.
        features: those of the outgoing state; as many as there come in if ``None``.
        kernel_size: of the kernel that the convolution is computed from, for images; at most
            their size.
        activation: one that expands no distance; ``None`` for a linear layer.
        bias: whether to learn ``b``, one number per feature; it is zero otherwise.

    Attributes:
        out_shape: shape of the outgoing state.
        matrix: ``Q``.
        bias: ``b``, or ``None``.

    Raises:
        InvalidOptionError: for options out of range, or MaxMin with an odd number of features.

    References:
        Trockman, Kolter: "Orthogonalizing convolutional layers with the Cayley transform", ICLR
        2021.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        *,
        features: int | None = None,
        kernel_size: int = 3,
        activation: str | None = "maxmin",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.state_shape = state_sizes("cayley", state_shape)
        incoming, *image = self.state_shape
        outgoing = incoming if features is None else whole("features", features, 1)
        self.out_shape = (outgoing, *image)
        self.activation = None if activation is None else feed_forward_activation(activation)
        check_features(self.activation, outgoing)
        self.matrix = SemiOrthogonal(outgoing, incoming, tuple(image), kernel_size)
        self.bias = nn.Parameter(torch.zeros(outgoing)) if flag("bias", bias) else None

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return ``σ(Qz + b)``.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        out = self.matrix.multiply(self.matrix(), z)
        if self.bias is not None:
            out = out + self.matrix.along(self.bias)
        return out if self.activation is None else self.activation(out)

    def lipschitz_bound(self) -> float:
        r"""Return :math:`L_\sigma \|Q\|`, with a certified bound of the norm of ``Q``.

        It is that of ``Q`` as the forward pass computes it, so it exceeds 1 by that rounding.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        check_finite(self)
        norm = self.matrix.norm_bound()
        if self.activation is None:
            return norm
        return lipschitz_product([norm, self.activation.largest_slope])

    def guarantees(self) -> list[Guarantee]:
        """Return by how much the layer may increase distances between states."""
        tall = self.out_shape[0] >= self.state_shape[0]
        formula = "QᵀQ = I" if tall else "QQᵀ = I"
        return non_expansive(self, formula, "Trockman & Kolter 2021", "the Cayley map")

    def extra_repr(self) -> str:
        """Return shapes and activation."""
        name = None if self.activation is None else self.activation.name
        return f"{self.state_shape} -> {self.out_shape}, activation={name!r}"
