"""An expansive and a contractive gradient flow, one after the other, as a block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidInputError
from stabnet.bounds import gamma
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import number

from ..activations import monotone_activation
from ..cayley_map import cayley, saturated
from ..gradient_step import gradient_step, growth_bound, step_scale
from ..norms import NormEstimate
from ..operators import PaddingMode, operator
from ._guarantees import as_it_stands, check_finite

__all__ = ["GradientFlowPair"]

_LARGEST_ANGLE = 100.0
"""Entries of the matrix that the second step is made of saturate there, which keeps it accurate."""


@final
class GradientFlowPair(Block):
    r"""A step along a gradient, which expands, and one against another, which contracts as much.

    .. math:: y = z + h_e A^\top \sigma(Az + b), \qquad z^+ = y - h_c B^\top \tau(By + c)

    ``B`` is square and orthogonal (for images at every pixel), and :math:`\tau` a leaky ReLU with
    the slopes ``a`` and 1. In the terms of :class:`GradientFlow`, the Jacobian of the second step
    is :math:`I - h_c B^\top D B` with ``D`` in [a, 1], so that it contracts by

    .. math:: \kappa = \max(1 - h_c a\, s_{\min}(B)^2,\; h_c s_{\max}(B)^2 - 1)
              = \frac{1 - a}{1 + a} \quad\text{for}\quad h_c = \frac{2}{1 + a},\ B^\top B = I

    and the first, with the Jacobian :math:`I + h_e A^\top D A`, expands by no more than
    :math:`1 + h_e L_\sigma \|A\|_2^2`. The product is at most 1 where :math:`h_e L_\sigma \|A\|_2^2
    \le 2a/(1 - a)`. The first step is as long as that allows, and no longer than ``time``.

    The larger ``a``, the more the pair expands in between; small ``a`` makes it a nearly isometric
    nonlinear second step alone.

    In training mode :math:`\|A\|_2` is a differentiable estimate, from below. In eval mode
    :math:`h_e` is fixed by the last estimate, and :meth:`lipschitz_bound` says what the block as it
    stands is bounded by; :meth:`renormalize` brings that to 1.

    Args:
        state_shape: ``(n,)`` or ``(channels, height, width)``.
        hidden: rows of ``A``, or channels of ``Az``; those of the state if ``None``.
        kernel_size: of ``A``, for images; odd.
        padding_mode: of ``A``, for images; ``"zeros"`` or ``"circular"``.
        slope: ``a``, in (0, 1).
        time: longest first step, from 1e-30 to 1e30.
        activation: ``σ``, an activation with slopes in [0, 1].
        power_iterations: iterations for the norm at every call in training mode.

    Attributes:
        weight: the weights of ``A``.
        bias: ``b``, one number per hidden feature.
        angle: a square matrix, of whose skew part ``B`` is the Cayley map.
        offset: ``c``, one number per feature or channel.
        norm: the estimate of the norm of ``A``.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        Celledoni, Murari, Owren, Schönlieb, Sherry: "Dynamical systems-based neural networks",
        2023, section 4.
    """

    def __init__(
        self,
        state_shape: Sequence[int],
        *,
        hidden: int | None = None,
        kernel_size: int = 3,
        padding_mode: PaddingMode = "zeros",
        slope: float = 0.5,
        time: float = 2.0,
        activation: str = "relu",
        power_iterations: int = 1,
    ) -> None:
        super().__init__()
        self.operator = operator(state_shape, hidden, kernel_size, padding_mode)
        self.rotation = operator(state_shape, kernel_size=1)
        self.state_shape = self.operator.state_shape
        self.slope = number("slope", slope, above=0, below=1)
        self.time = number("time", time, least=1e-30, below=1e30)
        self.activation = monotone_activation(activation)
        self.weight = nn.Parameter(self.operator.initial_weight())
        self.bias = nn.Parameter(torch.zeros(self.operator.weight_shape[0]))
        features = self.state_shape[0]
        self.angle = nn.Parameter(torch.randn(features, features) / math.sqrt(features))
        self.offset = nn.Parameter(torch.zeros(features))
        self.norm = NormEstimate(self.operator, self.weight, power_iterations)

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the states behind both steps.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        y = z + gradient_step(
            self.operator,
            self.weight,
            self.bias,
            self.activation,
            self._scale(self.norm(self.weight)),
            self._limit,
            z,
        )
        turn = self.orthogonal().view(self.rotation.weight_shape)
        turned = F.leaky_relu(self.rotation(turn, y, self.offset), self.slope)
        return y - 2 / (1 + self.slope) * self.rotation.adjoint(turn, turned)

    def orthogonal(self) -> Float[Tensor, "n n"]:
        """Return ``B``, by the Cayley map; see :func:`stabnet_gradient_flow.cayley_map.cayley`."""
        return cayley(saturated(self.angle, _LARGEST_ANGLE))

    def lipschitz_bound(self) -> float:
        r"""Return an upper bound of the Lipschitz constant in eval mode, of the block as it stands.

        The product of both steps' bounds, see above, with the :math:`h_e` of the forward pass, an
        upper bound of :math:`\|A\|_2`, and the ``B`` of the forward pass, whose singular values are
        bounded by :math:`|s^2 - 1| \le \|B^\top B - I\|_F`. It is computed in float64 and rounded
        up.

        Raises:
            InvalidInputError: for parameters or an estimate of the norm that are not finite.
        """
        scale = self._scale(self.norm.current(self.weight))
        growth = growth_bound(self.operator, self.weight, self.activation, scale, self._limit)
        return (1 + growth) * self.contraction_bound() * (1 + gamma(4))

    @torch.no_grad()
    def contraction_bound(self) -> float:
        r"""Return an upper bound of :math:`\kappa` for the ``B`` of the forward pass.

        Raises:
            InvalidInputError: for parameters that are not finite.
        """
        turn = self.orthogonal()
        check_finite(self, turn)
        # What the forward pass makes of the numbers a and 2/(1 + a) in its own precision.
        rounding = 4 * torch.finfo(turn.dtype).eps
        turn = turn.cpu().double()
        error = torch.linalg.matrix_norm(turn.mT @ turn - torch.eye(len(turn)).double())
        margin = gamma(len(turn) + 8) * (1 + turn.square().sum())
        off = float(error * (1 + gamma(len(turn) ** 2 + 8)) + margin)
        length = 2 / (1 + self.slope)
        least = length * self.slope * max(0.0, 1 - off) * (1 - rounding)
        most = length * (1 + off) * (1 + rounding)
        return max(1 - least, most - 1) + gamma(16)

    @torch.no_grad()
    def renormalize(self) -> None:
        """Make the block non-expansive: first steps for a certified bound of the norm.

        Raises:
            InvalidInputError: for parameters that are not finite, or a ``slope`` so close to 0
                that the second step contracts less than it is rounded.
        """
        allowed = 1 / self.contraction_bound() - 1
        if allowed <= 0:
            raise InvalidInputError(
                f"with slope={self.slope:g} the second step contracts by less than its rounding in "
                f"{self.angle.dtype}, so that no first step can be allowed; use a larger slope"
            )
        self.norm.certify(self.weight)
        self.norm.norm.mul_(math.sqrt(self._limit * self.activation.largest_slope / allowed))

    def guarantees(self) -> list[Guarantee]:
        """Return by how much the block, as it stands, may increase distances between states."""
        formula = "‖Φ(z) − Φ(w)‖₂ ≤ L ‖z − w‖₂, L = (1 + h_e L_σ ‖A‖₂²) κ"
        return [as_it_stands(self, formula, "Celledoni et al. 2023, section 4")]

    def extra_repr(self) -> str:
        """Return the options that matter."""
        return (
            f"weight={tuple(self.weight.shape)}, slope={self.slope:g}, time={self.time:g}, "
            f"activation={self.activation.name!r}"
        )

    @property
    def _limit(self) -> float:
        """What ``h‖A‖²`` is kept to in the first step."""
        return 2 * self.slope / ((1 - self.slope) * self.activation.largest_slope)

    def _scale(self, norm: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return step_scale(norm, self._limit, self.time)
