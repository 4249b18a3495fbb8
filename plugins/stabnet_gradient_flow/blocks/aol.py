"""The almost-orthogonal Lipschitz layer: columns rescaled so that the norm is at most one."""

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

from ..activations import Activation, check_features, feed_forward_activation
from ..operators import Operator, PaddingMode, operator
from ..rescaling import rescaled_rows
from ._guarantees import check_finite, non_expansive

__all__ = ["AOL", "aol"]


def aol(
    state_shape: Sequence[int],
    *,
    features: int | None = None,
    kernel_size: int = 3,
    padding_mode: PaddingMode = "zeros",
    activation: str | None = "maxmin",
) -> AOL:
    """Build an almost-orthogonal Lipschitz layer, for vectors or for images.

    Args:
        state_shape: ``(n,)``, or ``(channels, height, width)`` for a convolution.
        features: number of outgoing features or channels; those of the state if ``None``.
        kernel_size: of a convolution, odd.
        padding_mode: of a convolution, ``"zeros"`` or ``"circular"``.
        activation: name of an activation that expands no distance, ``None`` for an affine layer.

    Raises:
        InvalidOptionError: for another activation, an option out of range, or an odd number of
            outgoing features with ``"maxmin"``.
    """
    outgoing = None if features is None else whole("features", features, 1)
    return AOL(
        operator(state_shape, outgoing, kernel_size, padding_mode),
        None if activation is None else feed_forward_activation(activation),
    )


@final
class AOL(Block):
    r"""An affine map and an activation that expand no distance, for every value of the weights.

    .. math:: f(z) = \sigma(WDz + b), \qquad
              D = \operatorname{diag}\Bigl(\sum_i |W^\top W|_{ij}\Bigr)^{-1/2}

    :math:`\|WD\|_2 \le 1`, as proven in :mod:`stabnet_gradient_flow.rescaling` for the rows of
    :math:`W^\top`, with one :math:`d_j` per incoming feature, or channel of an image. The bound is
    tight where the columns are orthogonal, and there the layer starts: at orthonormal columns, for
    a convolution those of its center tap, which make :math:`WD` an isometry; with fewer outgoing
    than incoming features, where they cannot be orthogonal, at a :math:`WD` with orthonormal rows.
    Orthogonal columns are a kink of :math:`|W^\top W|`, where gradients are those of one side.

    A forward pass computes :math:`W^\top W` anew, one product of the weight with itself; see
    :func:`stabnet_gradient_flow.rescaled_rows` for its cost.

    Args:
        operator: the geometry of :math:`W`.
        activation: :math:`\sigma`, which expands no distance, or ``None``.

    Attributes:
        out_shape: shape of one outgoing state.
        weight: the weights :math:`W`.
        bias: :math:`b`, one number per outgoing feature, initially 0.

    Raises:
        InvalidOptionError: for MaxMin with an odd number of outgoing features.

    References:
        Prach, Lampert: "Almost-orthogonal layers for efficient general-purpose Lipschitz networks",
        2022, theorems 1 and 2.
    """

    def __init__(self, operator: Operator, activation: Activation | None = None) -> None:
        super().__init__()
        features = operator.hidden_shape[0]
        check_features(activation, features)
        self.state_shape, self.out_shape = operator.state_shape, operator.hidden_shape
        self.operator, self.activation = operator, activation
        self.weight = nn.Parameter(_initial_weight(operator.weight_shape))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return ``σ(WDz + b)``.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        out = self.operator(self._rescaled(), z, self.bias)
        return out if self.activation is None else self.activation(out)

    @torch.no_grad()
    def lipschitz_bound(self) -> float:
        """Return a bound of ``L_σ‖WD‖`` for ``WD`` as forward computes it: 1 up to its rounding.

        Where a GPU computes the product of the kernels in TF32, that rounding is of 11 bits.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        check_finite(self)
        slope = 1.0 if self.activation is None else self.activation.largest_slope
        return lipschitz_product([self.operator.norm_bound(self._rescaled()), slope])

    def guarantees(self) -> list[Guarantee]:
        """Return by how much the layer may increase distances between states."""
        return non_expansive(
            self, "‖WD‖₂ ≤ 1", "Prach & Lampert 2022, theorems 1 and 2", "the rescaling"
        )

    def extra_repr(self) -> str:
        """Return shapes and activation."""
        name = None if self.activation is None else self.activation.name
        return f"{self.state_shape} -> {self.out_shape}, activation={name!r}"

    def _rescaled(self) -> Float[Tensor, "out in ..."]:
        """Return ``WD``."""
        columns, _ = rescaled_rows(self.weight.transpose(0, 1))
        return columns.transpose(0, 1)


def _initial_weight(shape: tuple[int, ...]) -> Float[Tensor, "out in ..."]:
    """Return weights with orthonormal columns, in the center tap of a kernel.

    Where there are more columns than rows, columns repeat in turn, which rescaling divides by the
    root of their number: then the rows are orthonormal.
    """
    rows, columns = shape[:2]
    basis = nn.init.orthogonal_(torch.empty(rows, min(rows, columns)))
    weight = torch.zeros(math.prod(shape[2:]), rows, columns)
    weight[len(weight) // 2] = basis[:, torch.arange(columns) % basis.shape[1]]
    return weight.movedim(0, -1).reshape(shape).contiguous()
