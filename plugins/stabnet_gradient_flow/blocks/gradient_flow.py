"""The non-expansive gradient flow as a block, for vectors and for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stabnet import InvalidOptionError
from stabnet.bounds import gamma
from stabnet.interfaces import Block, Features, Guarantee, check_block_state
from stabnet.values import flag, number, shape, whole

from ..activations import monotone_activation
from ..gradient_step import gradient_step, growth_bound, step_scale
from ..norms import NormEstimate
from ..operators import Operator, PaddingMode, operator
from ._guarantees import as_it_stands, check_finite

__all__ = ["GradientFlow", "gradient_flow", "gradient_flow_conv"]


def gradient_flow(
    state_shape: Sequence[int],
    *,
    hidden: int | None = None,
    time: float = 2.0,
    max_steps: int = 1,
    activation: str = "relu",
    power_iterations: int = 1,
    bias: bool = True,
) -> GradientFlow:
    """Build the gradient flow of vectors, with a matrix ``A``.

    Args:
        state_shape: ``(n,)``.
        hidden: rows of ``A``; ``n`` if ``None``.
        time: how long the flow lasts, from 1e-30 to 1e30.
        max_steps: steps that may be spent on it.
        activation: an activation with slopes in [0, 1].
        power_iterations: iterations for the norm at every call in training mode.
        bias: whether to learn ``b``; it is zero otherwise.

    Raises:
        InvalidOptionError: for states of another shape, or an option out of range.
    """
    if len(shape("state_shape", state_shape)) != 1:
        raise InvalidOptionError(
            f"gradient_flow takes vectors (n,); got state_shape={tuple(state_shape)}. For images "
            "(channels, height, width) there is gradient_flow_conv"
        )
    return GradientFlow(
        operator(state_shape, hidden),
        time=time,
        max_steps=max_steps,
        activation=activation,
        power_iterations=power_iterations,
        bias=bias,
    )


def gradient_flow_conv(
    state_shape: Sequence[int],
    *,
    hidden: int | None = None,
    kernel_size: int = 3,
    padding_mode: PaddingMode = "zeros",
    time: float = 2.0,
    max_steps: int = 1,
    activation: str = "relu",
    power_iterations: int = 1,
    bias: bool = True,
) -> GradientFlow:
    """Build the gradient flow of images, with a convolution ``A`` of stride 1.

    Args:
        state_shape: ``(channels, height, width)``.
        hidden: channels of ``Az``; those of the state if ``None``.
        kernel_size: odd.
        padding_mode: ``"zeros"`` or ``"circular"``.
        time: how long the flow lasts, from 1e-30 to 1e30.
        max_steps: steps that may be spent on it.
        activation: an activation with slopes in [0, 1].
        power_iterations: iterations for the norm at every call in training mode.
        bias: whether to learn ``b``, one number per channel; it is zero otherwise.

    Raises:
        InvalidOptionError: for states of another shape, or an option out of range.
    """
    if len(shape("state_shape", state_shape)) != 3:
        raise InvalidOptionError(
            f"gradient_flow_conv takes images (channels, height, width); got "
            f"state_shape={tuple(state_shape)}. For vectors (n,) there is gradient_flow"
        )
    return GradientFlow(
        operator(state_shape, hidden, kernel_size, padding_mode),
        time=time,
        max_steps=max_steps,
        activation=activation,
        power_iterations=power_iterations,
        bias=bias,
    )


@final
class GradientFlow(Block):
    r"""The flow of the negative gradient of a convex function, by explicit Euler.

    .. math:: \dot z = -A^\top \sigma(Az + b), \qquad
              z^+ = z - h A^\top \sigma(Az + b), \qquad
              h = \min\Bigl(\frac{T}{n}, \frac{2}{L_\sigma \|A\|_2^2}\Bigr)

    with the smallest number ``n`` of steps for which :math:`T/n` is within the limit. Where that
    takes more than ``max_steps``, so many steps are made, of the length that is the limit: the
    flow then stops earlier. Zero weights give the identity.

    *A step within the limit increases no distance.* Let :math:`0 \le L_\sigma` bound the slopes of
    :math:`\sigma`, none of which is negative. For two states, :math:`\sigma(Az + b) -
    \sigma(Aw + b) = D A(z - w)`, where ``D`` is the diagonal matrix of the difference quotients,
    in :math:`[0, L_\sigma]`. So

    .. math:: z^+ - w^+ = (I - h A^\top D A)(z - w)

    with a symmetric matrix of spectrum in :math:`[1 - h L_\sigma \|A\|_2^2, 1]`, and the step has
    the constant :math:`\max(1, h L_\sigma \|A\|_2^2 - 1)`, which is 1 within the limit; n steps
    have its n-th power.

    In training mode :math:`\|A\|_2` is a differentiable estimate, from below: steps may be
    slightly too long. In eval mode ``h`` is fixed by the last estimate, and :meth:`lipschitz_bound`
    says what the block as it stands is bounded by; :meth:`renormalize` brings that to 1.

    Args:
        operator: ``A``, without its weights.
        time: ``T``, from 1e-30 to 1e30.
        max_steps: steps that may be spent on it, at least 1. With 1 the forward pass never waits
            for a device.
        activation: an activation with slopes in [0, 1].
        power_iterations: iterations for the norm at every call in training mode.
        bias: whether to learn ``b``.

    Attributes:
        weight: the weights of ``A``.
        bias: ``b``, one number per hidden feature, or ``None``.
        norm: the estimate of the norm of ``A``.

    Raises:
        InvalidOptionError: for an option out of range.

    References:
        [SNN] (18)–(19). (The program printed there multiplies by the transposed weights in the
        wrong place; that map expands.)
    """

    def __init__(
        self,
        operator: Operator,
        *,
        time: float = 2.0,
        max_steps: int = 1,
        activation: str = "relu",
        power_iterations: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.operator = operator
        self.state_shape = operator.state_shape
        self.time = number("time", time, least=1e-30, below=1e30)
        self.max_steps = whole("max_steps", max_steps, 1)
        self.activation = monotone_activation(activation)
        self.weight = nn.Parameter(operator.initial_weight())
        features = operator.weight_shape[0]
        self.bias = nn.Parameter(torch.zeros(features)) if flag("bias", bias) else None
        self.norm = NormEstimate(operator, self.weight, power_iterations)

    def forward(
        self, z: Float[Tensor, "batch ..."], u: Features = None
    ) -> Float[Tensor, "batch ..."]:
        """Return the states at the end of the flow.

        Raises:
            InvalidInputError: for states of another shape.
        """
        check_block_state(z, self.state_shape)
        scale, count = self._schedule(self.norm(self.weight))
        if count is None:
            return self._step(scale, z)
        if not (
            torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(count)
        ):
            for _ in range(int(count)):
                z = self._step(scale, z)
            return z
        for k in range(self.max_steps):  # a number that cannot be read; the same states
            z = torch.where(count > k, self._step(scale, z), z)
        return z

    def lipschitz_bound(self) -> float:
        r"""Return an upper bound of the Lipschitz constant in eval mode, of the block as it stands.

        The power of :math:`\max(1, h L_\sigma \|A\|_2^2 - 1)`, see above, with the ``h`` of the
        forward pass and an upper bound of :math:`\|A\|_2`, rounded up.

        Raises:
            InvalidInputError: for parameters or an estimate of the norm that are not finite.
        """
        check_finite(self)
        scale, count = self._schedule(self.norm.current(self.weight))
        growth = growth_bound(self.operator, self.weight, self.activation, scale, self._limit)
        steps = 1 if count is None else int(count)
        # A product: the power of floats raises an error where it overflows.
        bound = math.prod([max(1.0, growth - 1)] * steps)
        return bound if bound == 1 else bound * (1 + gamma(steps + 2))

    def renormalize(self) -> None:
        """Make the block non-expansive: steps for a certified bound of the norm.

        Raises:
            InvalidInputError: for weights that are not finite.
        """
        self.norm.certify(self.weight)

    def guarantees(self) -> list[Guarantee]:
        """Return by how much the block, as it stands, may increase distances between states."""
        formula = "‖Φ(z) − Φ(w)‖₂ ≤ L ‖z − w‖₂, L = max(1, h L_σ ‖A‖₂² − 1)ⁿ"
        return [as_it_stands(self, formula, "[SNN] (18)–(19)")]

    def extra_repr(self) -> str:
        """Return the options that matter."""
        return (
            f"weight={tuple(self.weight.shape)}, time={self.time:g}, max_steps={self.max_steps}, "
            f"activation={self.activation.name!r}"
        )

    @property
    def _limit(self) -> float:
        """What ``h‖A‖²`` is kept to."""
        return 2 / self.activation.largest_slope

    def _schedule(self, norm: Float[Tensor, ""]) -> tuple[Tensor, Tensor | None]:
        """Return the scale of the steps, and how many there are; ``None`` for always one."""
        if self.max_steps == 1:
            return step_scale(norm, self._limit, self.time), None
        needed = (norm.detach() * math.sqrt(self.time / self._limit)).square().ceil()
        count = needed.nan_to_num(1).clamp(1, self.max_steps)
        return step_scale(norm, self._limit, self.time, count), count

    def _step(self, scale: Tensor, z: Tensor) -> Tensor:
        return z - gradient_step(
            self.operator, self.weight, self.bias, self.activation, scale, self._limit, z
        )
